"""A residual two-layer map that ends in a relu, in front of another head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu

from onceclip.adapters.heads.head import Head
from onceclip.adapters.run_axis import per_run, product
from onceclip.adapters.unit import unit


@dataclass(frozen=True)
class Rectified(Head):
    """A residual two-layer map in front of another head: `head(unit(relu(r U relu(D x) + (1 - r) x)))`.

    down: (hidden, width). up: (width, hidden). ratio: r. Unlike a `Bottleneck` it leaves no row negative in a column.
    """

    down: Tensor
    up: Tensor
    ratio: float | Tensor
    head: Head

    def __call__(self, rows: Tensor) -> Tensor:
        return self.head(rectify(rows, self.down, self.up, self.ratio))

    @property
    def width(self) -> int:
        return max(self.head.width, *self.down.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.down.dtype


def rectify(rows: Tensor, down: Tensor, up: Tensor, ratio: float | Tensor) -> Tensor:
    """Mix rows (n, width) with their two-layer map, cut off what is negative, and scale to unit length."""
    return unit(relu(torch.lerp(rows, product(relu(product(rows, down)), up), per_run(ratio))))
