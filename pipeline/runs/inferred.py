"""How test rows are read by a strategy: what a run asks for, and its row with the scores that the strategy gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from onceclip.adapters import Classifier
from onceclip.adapters.inference import Inference, inference_class
from onceclip.adapters.inference.base import INFERENCE
from onceclip.adapters.plugin import full_name
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.evaluation.batches import Batches
from onceclip.pipeline.evaluation.evaluate import score
from onceclip.pipeline.evaluation.inference import read
from onceclip.pipeline.evaluation.metrics import CALIBRATED, DETECTION, SCORES
from onceclip.pipeline.evaluation.orders import read_orders
from onceclip.pipeline.evaluation.several import OUTPUTS
from onceclip.stores import Store
from onceclip.stores.identity import fingerprint

NO_INFERENCE = "none"


@dataclass(frozen=True)
class InferenceSpec:
    """How test rows are read.

    inference: the strategy, a name or MODULE:CLASS; "none" reads each row by itself. inference_values: its
        hyperparameters. batches: fields of `Batches`, where it sees one batch at a time.
    """

    _: KW_ONLY
    inference: str = NO_INFERENCE
    inference_values: Mapping[str, Any] = field(default_factory=dict)
    batches: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.inference == NO_INFERENCE:
            if self.inference_values or self.batches:
                raise TaskError("hyperparameters and batches of inference are for a strategy: add --inference")
            return
        strategy = inference_class(self.inference)
        values = strategy(**self.inference_values).values
        object.__setattr__(self, "inference", full_name(strategy))
        object.__setattr__(self, "inference_values", {name: values[name] for name in self.inference_values})
        if self.batches:
            object.__setattr__(self, "batches", Batches.of(self.batches).as_values())

    @property
    def strategy(self) -> Inference | None:
        """The strategy by which test rows are read, if there is one."""
        if self.inference == NO_INFERENCE:
            return None
        return inference_class(self.inference)(**self.inference_values)

    def read_of(self, store: Store) -> dict[str, str]:
        """Fingerprints of what the strategy reads and the store's own fingerprint does not cover."""
        strategy, found = self.strategy, {}
        if strategy and strategy.wants_tower:
            found["tower"] = str(store.tower_attributes.get("fingerprint", ""))
        if strategy and strategy.sees in OUTPUTS:
            output = store.outputs.get(name := OUTPUTS[strategy.sees])
            found[name] = "" if output is None else fingerprint([list(output.shape), output.spec])
        return found

    def inferred(self, store: Store, classifier: Classifier, row: Mapping[str, Any]) -> dict[str, Any]:
        """The result row of a run with the strategy; `inference` says what was done and what the classifier reaches
        alone.

        classifier, row: of the run alone. A stream is read in the usual orders. A store without test rows has none.
        Raises MethodError if the strategy cannot work with the classifier or the store.
        """
        strategy = self.strategy
        if strategy is None or not row["n_test"]:
            return dict(row)
        alone = score(classifier, store)
        found = (read(alone, strategy, Batches.of(self.batches)) if self.batches else
                 read_orders(alone, strategy) if strategy.sees == "stream" else read(alone, strategy)).as_values()
        return {**row, **{name: found[name] for name in (*SCORES, *CALIBRATED, *DETECTION) if name in found},
                "n_test": found["n"], "details": found["details"], INFERENCE: found[INFERENCE],
                "seconds_total": row["seconds_total"] + found["seconds"]}
