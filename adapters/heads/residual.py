"""Residual two-layer maps in front of another head."""

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
