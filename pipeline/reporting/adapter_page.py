"""The page of one saved adapter on one store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onceclip.adapters import load_classifier
from onceclip.pipeline.evaluation.evaluate import evaluate
from onceclip.pipeline.reporting.mistakes import MOST, surest_mistakes, with_pictures
from onceclip.pipeline.reporting.page import write_page
from onceclip.pipeline.reporting.provenance import Facts, encoder_facts, text_facts
from onceclip.pipeline.reporting.reliability import reliability
from onceclip.stores import open_store

WHOLE_MATRIX = 30  # classes up to which the confusion matrix is drawn whole
WORST = 20  # classes shown at once
PAIRS = 15


def write_adapter_report(adapter: Path, store: str, out: Path, split: str = "test",
                         images: str | None = None, modules: Sequence[str] = ()) -> dict[str, Any]:
    """Write one self-contained HTML file on what a saved adapter does on a split of a store.

    images: the source of the store's images, for pictures of mistakes. modules: as for `load_classifier`.
    Raises AdapterFileError, StoreError or TaskError if there is nothing to score.
    """
    classifier, opened = load_classifier(adapter, modules), open_store(store)
    scores = evaluate(classifier, opened, split)
    mistakes, remark = with_pictures(surest_mistakes(classifier, opened, split), opened, images)
    classes = sorted(scores["per_class"], key=lambda each: (each["recall"] is None, each["recall"], each["class"]))
    wrong = scores["n"] - sum(each["right"] for each in classes)
    write_page(out, "adapter.html", title=adapter.name, adapter=str(adapter), scores=scores, split=split,
               classes=[each for each in classes if each["n"]], worst=WORST, matrix=_matrix(scores),
               confusions=scores["confusions"][:PAIRS], counts={each["class"]: each["n"] for each in classes},
               reliability=reliability(classifier.method, scores["details"]["reliability"], scores["ece"]),
               mistakes=mistakes, remark=remark, wrong=wrong, most=MOST, hyperparameters=classifier.hyperparameters,
               temperature=classifier.temperature if classifier.calibrated_on else None,
               facts=_facts({**classifier.provenance, "encoder": classifier.encoder}, opened.path, opened.fingerprint))
    return {"report": str(out), "accuracy": scores["accuracy"], "mistakes": [each.key for each in mistakes],
            "pictures": sum(bool(each.picture) for each in mistakes), "bytes": out.stat().st_size}


def _matrix(scores: dict[str, Any]) -> list[tuple[str, list[int]]] | None:
    """Rows of the confusion matrix by class, or None where there are too many classes."""
    names = [each["class"] for each in scores["per_class"]]
    if len(names) > WHOLE_MATRIX:
        return None
    cells = {(true, predicted): number for true, predicted, number in scores["confusions"]}
    cells |= {(each["class"], each["class"]): each["right"] for each in scores["per_class"]}
    return [(true, [cells.get((true, predicted), 0) for predicted in names]) for true in names]


def _facts(made: dict[str, Any], store: str, fingerprint: str) -> Facts:
    text = made.get("text") or {}
    return [("fitted with", ", ".join(f"{name} {made[name]}" for name in ("shots", "seed", "select") if name in made)),
            ("scored on", store), ("store fingerprint", fingerprint),
            ("fitted on store fingerprint", str(made.get("store", ""))), *encoder_facts(made.get("encoder") or {}),
            *text_facts(str(text.get("name", "")), text),
            ("support draw fingerprint", str((made.get("support") or {}).get("fingerprint", ""))),
            ("draws made by", str((made.get("support") or {}).get("generator", ""))),
            ("fitted by onceclip", str(made.get("version", "")))]
