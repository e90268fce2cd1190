"""RLA: one linear map in front of zero-shot, held near where it starts."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.heads import Head, Projected
from onceclip.adapters.method import Method, zero_shot_head
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, recipe


class RLA(Method):
    """A square matrix on the embeddings that starts as the identity and is held near it.

    `logits = s unit(A x) W^T`, with the penalty `strength / shots |A - I|^2`, which needs no validation rows. The
    matrix belongs to no class and serves other ones.

    Source: CLIP's Visual Embedding Projector is a Few-shot Cornucopia (Fahes et al., 2024): the regularised linear
    adapter; optimizer, epsilon, schedule and full batches from the authors' code of ProLIP.
    """

    name = "rla"
    summary = "regularised linear map of the embeddings"
    family = "adapter"
    equation = "logits = s unit(A x).W',  min mean CE + strength / shots |A - I|^2,  A from I"
    hyperparameters = {
        "strength": Hyperparameter(1.0, "factor of the penalty", search=(0.1, 1.0, 10.0), high=1e6),
        "power": Hyperparameter(1, "the penalty is divided by the number of shots to this power", high=4.0),
        **recipe(learning_rate=1e-3, epochs=300, weight_decay=0.0, epsilon=1e-4, optimizer="adam"),
    }
    transfers = True

    def start(self, task: Task) -> Tensor:
        """The matrix (dim, width) before training."""
        like = task.text.embedding
        return torch.eye(task.dim, dtype=like.dtype, device=like.device)

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        return {"matrix": self.start(prepared)}

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return Projected(zero_shot_head(prepared), parameters["matrix"])

    def penalty(self, prepared: Task, parameters: dict[str, Tensor]) -> Tensor:
        moved = parameters["matrix"] - self.start(prepared)
        return self.strength / prepared.support.shots**self.power * moved.square().sum()
