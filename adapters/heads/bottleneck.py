"""A residual two-layer map in front of another head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu

from onceclip.adapters.heads.head import Head
from onceclip.adapters.run_axis import per_run, product
from onceclip.adapters.unit import unit


@dataclass(frozen=True)
class Bottleneck(Head):
    """A residual two-layer map in front of another head: `head(unit(r relu(U relu(D x)) + (1 - r) x))`.

    down: (hidden, dim). up: (dim, hidden). ratio: r, between 0 and 1.
    renormalise: False leaves out the scaling to unit length, as the cross-modal adapter does.
    """

    down: Tensor
    up: Tensor
    ratio: float | Tensor
    head: Head
    renormalise: bool = True

    def __call__(self, rows: Tensor) -> Tensor:
        return self.head(blend(rows, self.down, self.up, self.ratio, self.renormalise))

    @property
    def width(self) -> int:
        return max(self.head.width, *self.down.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.down.dtype


def blend(rows: Tensor, down: Tensor, up: Tensor, ratio: float | Tensor, renormalise: bool = True) -> Tensor:
    """Mix rows (n, dim) with their two-layer map and scale to unit length."""
    adapted = relu(product(relu(product(rows, down)), up))
    mixed = torch.lerp(rows, adapted, per_run(ratio))
    return unit(mixed) if renormalise else mixed
