"""Heads behind one layer with a ReLU: trained, or random."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import relu

from onceclip.adapters.heads.base import Head
from onceclip.adapters.ops import product


@dataclass(frozen=True)
class Perceptron(Head):
    """Logits `relu(x D^T + d) U^T + u`.

    down: D, (hidden, width), with down_bias d. up: U, (classes, hidden), with up_bias u.
    """

    name = "perceptron"

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        hidden = relu(product(rows, self.down) + self.down_bias.unsqueeze(-2))
        return product(hidden, self.up) + self.up_bias.unsqueeze(-2)

    @property
    def width(self) -> int:
        return max(self.down.shape[-2], self.up.shape[-2])


@dataclass(frozen=True)
class RandomFeatures(Head):
    """Another head on `relu(x R^T)`.

    projection: R, (features, dim). head: takes rows (n, features).
    """

    name = "random-features"

    projection: Tensor
    head: Head

    def __call__(self, rows: Tensor) -> Tensor:
        return self.head(relu(product(rows, self.projection)))

    @property
    def width(self) -> int:
        return max(self.head.width, self.projection.shape[-2])
