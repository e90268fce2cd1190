"""Heads behind one or two layers with a ReLU: residual, trained, or random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu

from onceclip.adapters.heads.base import Head
from onceclip.adapters.ops import per_run, product, unit


@dataclass(frozen=True)
class Bottleneck(Head):
    """A residual two-layer map in front of another head: `head(unit(r relu(U relu(D x)) + (1 - r) x))`.

    down: (hidden, dim). up: (dim, hidden). ratio: r, between 0 and 1.
    renormalize: False leaves out the scaling to unit length, as the cross-modal adapter does.
    """

    name = "bottleneck"

    down: Tensor
    up: Tensor
    ratio: float | Tensor
    head: Head
    renormalize: bool = True

    def __call__(self, rows: Tensor) -> Tensor:
        return self.head(blend(rows, self.down, self.up, self.ratio, self.renormalize))

    @property
    def width(self) -> int:
        return max(self.head.width, *self.down.shape)


def blend(rows: Tensor, down: Tensor, up: Tensor, ratio: float | Tensor, renormalize: bool = True) -> Tensor:
    """Mix rows (n, dim) with their two-layer map and scale to unit length."""
    adapted = relu(product(relu(product(rows, down)), up))
    mixed = torch.lerp(rows, adapted, per_run(ratio))
    return unit(mixed) if renormalize else mixed


@dataclass(frozen=True)
class Rectified(Head):
    """A residual two-layer map in front of another head: `head(unit(relu(r U relu(D x) + (1 - r) x)))`.

    down: (hidden, width). up: (width, hidden). ratio: r. Unlike a `Bottleneck` it leaves no row negative in a column.
    """

    name = "rectified"

    down: Tensor
    up: Tensor
    ratio: float | Tensor
    head: Head

    def __call__(self, rows: Tensor) -> Tensor:
        return self.head(rectify(rows, self.down, self.up, self.ratio))

    @property
    def width(self) -> int:
        return max(self.head.width, *self.down.shape)


def rectify(rows: Tensor, down: Tensor, up: Tensor, ratio: float | Tensor) -> Tensor:
    """Mix rows (n, width) with their two-layer map, cut off what is negative, and scale to unit length."""
    return unit(relu(torch.lerp(rows, product(relu(product(rows, down)), up), per_run(ratio))))


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
