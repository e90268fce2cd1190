"""Linear probe: multinomial logistic regression on the image embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.heads import Head, Linear
from onceclip.adapters.method import Method
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter


class LinearProbe(Method):
    """Logistic regression on unit embeddings, solved to convergence by L-BFGS; it never sees the text.

    Minimises `mean cross-entropy + l2 / 2 |W|^2` with a free bias. The problem is convex, so neither seed nor
    start matters. scikit-learn's C is `1 / (l2 rows)`. The bias is trained at the mean of the rows: the same
    problem, but embeddings share a large common part, and away from it the solver needs far fewer steps.

    Source: Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021), appendix A.3:
    L-BFGS, strength of the decay chosen on validation rows.
    """

    name = "linear-probe"
    summary = "logistic regression, decay chosen on validation rows"
    family = "linear"
    equation = "logits = x.W' + b,  min mean CE + l2/2 |W|^2"
    hyperparameters = {
        "l2": Hyperparameter(1e-5, "strength of the decay", search=tuple(10.0**-power for power in range(1, 9)),
                             high=1e6),
    }
    solver = "lbfgs"
    needs_text = False

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        rows, _ = self.training_rows(prepared, prepared, 0)
        return {"weight": rows.new_zeros(prepared.classes, rows.shape[1]), "bias": rows.new_zeros(prepared.classes)}

    def training_rows(self, task: Task, prepared: Task, epoch: int) -> tuple[Tensor, Tensor]:
        return task.support.stacked

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        weight = parameters["weight"]
        return Linear(weight, parameters["bias"] - weight @ self.centre(prepared))

    def centre(self, prepared: Task) -> Tensor:
        """Mean of the images' unit rows (width,), at which the bias is trained."""
        return prepared.support.centre

    def penalty(self, prepared: Task, parameters: dict[str, Tensor]) -> Tensor:
        return self.l2 / 2 * parameters["weight"].square().sum()
