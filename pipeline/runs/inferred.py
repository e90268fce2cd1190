"""A run whose test rows are read by a strategy: the row of the run alone, with the scores that the strategy gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onceclip.adapters import Classifier
from onceclip.adapters.inference.base import INFERENCE
from onceclip.pipeline.evaluation.batches import Batches
from onceclip.pipeline.evaluation.detection import DETECTION
from onceclip.pipeline.evaluation.evaluate import score
from onceclip.pipeline.evaluation.inference import read
from onceclip.pipeline.evaluation.metrics import CALIBRATED, SCORES
from onceclip.pipeline.evaluation.orders import read_orders
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.words import percent
from onceclip.stores import Store


def inferred_row(store: Store, spec: RunSpec, classifier: Classifier, row: dict[str, Any]) -> dict[str, Any]:
    """The result row of a run with a strategy.

    classifier, row: of the run alone. The scores become those with the strategy; `inference` says what was done and
    what the classifier reaches alone. A stream is read in the usual orders. A store without test rows has none.
    Raises MethodError if the strategy cannot work with the classifier or the store.
    """
    strategy = spec.strategy
    own = {"run": spec.identity(store), "asked": spec.as_values()}
    if strategy is None or not row["n_test"]:
        return {**row, **own}
    alone = score(classifier, store)
    found = (read(alone, strategy, Batches.of(spec.batches)) if spec.batches else
             read_orders(alone, strategy) if strategy.sees == "stream" else read(alone, strategy)).as_values()
    return {**row, **{name: found[name] for name in (*SCORES, *CALIBRATED, *DETECTION) if name in found},
            "n_test": found["n"], "details": found["details"], INFERENCE: found[INFERENCE],
            "seconds_total": row["seconds_total"] + found["seconds"], **own}


def read_by(row: Mapping[str, Any]) -> str:
    """Which strategy the accuracy of a row is of, and what the classifier alone reaches; empty without a strategy."""
    found = row.get(INFERENCE)
    return f", read by {found['name']}; {percent(found['alone']['accuracy'])} without it" if found else ""
