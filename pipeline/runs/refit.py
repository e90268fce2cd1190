"""A classifier fitted once more, on all labelled rows, with the hyperparameters that were chosen for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from onceclip.adapters import Classifier, Method, MethodError, Task
from onceclip.adapters.classifier import to_device
from onceclip.adapters.selection.automatic import AUTOMATIC, fit_again
from onceclip.pipeline.evaluation.metrics import CALIBRATED, SCORES
from onceclip.pipeline.runs.run import REFITS, RunSpec
from onceclip.pipeline.tasks.classes import ALL
from onceclip.pipeline.tasks.draws import Draw
from onceclip.pipeline.tasks.tasks import Drawn, draw_labelled
from onceclip.pipeline.workers.devices import CPU
from onceclip.stores import Store

NO_ACCURACY = "no test accuracy: the test images were fitted on"


@dataclass(frozen=True)
class Refit:
    """All labelled rows of the splits that a run is fitted on in the end. task: of them, where training is done."""

    spec: RunSpec
    method: Method
    draw: Draw
    task: Task

    @classmethod
    def of(cls, store: Store, spec: RunSpec, drawn: Drawn, method: Method, where: torch.device) -> Refit:
        """Draw the rows. drawn: what chose the hyperparameters."""
        rows, task = draw_labelled(store, drawn, REFITS[spec.refit])
        return cls(spec, method, rows, task if where.type == CPU else task.to(where))

    def fitted(self, classifier: Classifier) -> Classifier | MethodError:
        """Fit a classifier again; it keeps its temperature, for no row is left to find another one on."""
        try:
            if classifier.method == AUTOMATIC:
                again = fit_again(classifier, self.task, self.spec.seed)
            else:
                values = {name: classifier.hyperparameters[name] for name in self.method.values}
                again = self.method.with_values(**values).fit(self.task, self.spec.seed)
            again, = to_device([again], CPU)
        except MethodError as error:
            return error
        provenance = {**classifier.provenance, "refit": {
            "splits": list(REFITS[self.spec.refit]), "fingerprint": self.draw.fingerprint}}
        return replace(classifier, head=again.head, parameters=again.parameters, provenance=provenance)

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row of the run; of one that was fitted on test rows it says that there is no accuracy."""
        row = {**row, "refit": self.spec.refit, "n_refit": len(self.draw.rows),
               "fingerprints": {**row["fingerprints"], "refit": self.draw.fingerprint}}
        if self.spec.refit != ALL:
            return row
        return {**row, **dict.fromkeys((*SCORES, *CALIBRATED[1:], "details")), "n_test": 0, "remark": NO_ACCURACY,
                "accuracy_before_refit": row["accuracy"]}
