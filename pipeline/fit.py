"""Stage 2: draw a task from a store, choose hyperparameters, fit, score on the test split, make the result row."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onceclip
from onceclip.adapters import Classifier, Selection, fit_selected, method_class
from onceclip.adapters.engine import no_progress
from onceclip.pipeline.draws import GENERATOR, Draw
from onceclip.pipeline.evaluate import evaluate
from onceclip.pipeline.tasks import Drawn, draw_task
from onceclip.stores import Store


@dataclass(frozen=True)
class RunSpec:
    """One run: a method, hyperparameters set by the user, shots (None for all), seed, text set, selection policy.

    select: None takes the method's own policy, as far as the store has the rows for it.
    """

    method: str
    shots: int | None = None
    seed: int = 1
    values: Mapping[str, Any] | None = None
    text: str = "default"
    select: str | None = None


@dataclass(frozen=True)
class Fitted:
    """A classifier, its result row, and remarks for the user."""

    classifier: Classifier
    row: dict[str, Any]
    remarks: list[str]


def fit(store: Store, spec: RunSpec, progress: Callable[[float], None] = no_progress) -> Fitted:
    """Carry out one run on a store.

    Raises MethodError, TaskError or StoreError, each with one line that says how to mend it.
    """
    begun = time.perf_counter()
    method = method_class(spec.method)(**(spec.values or {}))
    policy = spec.select or method.select
    drawn = draw_task(store, spec.shots, spec.seed, spec.text, policy)
    if spec.select is None and policy != "fixed" and drawn.task.val is None:
        drawn.remarks.append(f"no validation rows in {store.path}: hyperparameters stay at their defaults")
        policy = "fixed"
    fitting = time.perf_counter()
    selection = fit_selected(method, drawn.task, policy, frozenset(spec.values or {}), spec.seed, progress)
    seconds = time.perf_counter() - fitting
    classifier = replace(selection.classifier, provenance=_provenance(store, spec, drawn, policy))
    scores = evaluate(classifier, store, "test")
    row = _row(store, spec, drawn, policy, selection, scores)
    row |= {"seconds": seconds, "seconds_total": time.perf_counter() - begun, "version": onceclip.__version__}
    return Fitted(classifier, row, drawn.remarks)


def _provenance(store: Store, spec: RunSpec, drawn: Drawn, policy: str) -> dict[str, Any]:
    return {
        "version": onceclip.__version__,
        "encoder": store.encoder,
        "store": store.fingerprint,
        "text": {"name": spec.text, "fingerprint": drawn.text.fingerprint, **drawn.text.source},
        "shots": spec.shots or "all", "seed": spec.seed, "select": policy,
        "support": _draw(drawn.support, spec), "val": drawn.val and _draw(drawn.val, spec),
    }


def _draw(draw: Draw, spec: RunSpec) -> dict[str, Any]:
    """A draw as data; one of all rows is the store's split itself, which may have millions of keys."""
    return {"fingerprint": draw.fingerprint, "generator": GENERATOR, "keys": list(draw.keys) if spec.shots else "all"}


def _row(store: Store, spec: RunSpec, drawn: Drawn, policy: str, selection: Selection,
         scores: Mapping[str, Any]) -> dict[str, Any]:
    task = drawn.task
    return {
        "method": spec.method, "shots": spec.shots or "all", "seed": spec.seed,
        "hyperparameters": selection.classifier.hyperparameters, "select": policy,
        "accuracy": scores["accuracy"], "accuracy_val": selection.accuracy,
        "macro_recall": scores["macro_recall"], "nll": scores["nll"], "ece": scores["ece"],
        "n_support": len(task.support), "n_val": 0 if task.val is None else len(task.val), "n_test": scores["n"],
        "classes": task.classes, "encoder": store.encoder["name"], "text": spec.text, "store": store.path,
        "settings_tried": selection.tried, "mixing_interval": selection.interval and list(selection.interval),
        "fingerprints": {"encoder": store.encoder["fingerprint"], "store": store.fingerprint,
                         "text": drawn.text.fingerprint, "support": drawn.support.fingerprint,
                         "val": drawn.val and drawn.val.fingerprint},
    }
