"""A retrained text projection, which other methods may start from; it is no method to choose."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.heads import Head
from onceclip.adapters.method import Method
from onceclip.adapters.prototypes import cosine_head
from onceclip.adapters.recipe import recipe
from onceclip.adapters.task import Task


class TextProjection(Method):
    """A linear map of the class vectors, trained from the identity: TaskRes's enhanced base.

    The authors train the encoder's text projection anew. An embedding is that projection of what the text tower gives,
    and as long as the tower is no wider than the embedding, every other projection of it is a linear map of this one.
    """

    name = "text-projection"
    hyperparameters = recipe(learning_rate=1e-4, epochs=50, weight_decay=0.0, optimiser="adam")
    trained = True

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        like = prepared.text.embedding
        return {"matrix": torch.eye(prepared.dim, dtype=like.dtype, device=like.device)}

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return cosine_head(prepared, prepared.text.raw_mean @ parameters["matrix"].T)
