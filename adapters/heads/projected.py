"""A linear map in front of another head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.heads.head import Head
from onceclip.adapters.run_axis import product
from onceclip.adapters.unit import unit


@dataclass(frozen=True)
class Projected(Head):
    """A linear map in front of another head: `head(unit(M x + b))`.

    head: the other one. matrix: (dim, width), or None for the identity. bias: (dim,) or None.
    """

    head: Head
    matrix: Tensor | None = None
    bias: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        mapped = rows if self.matrix is None else product(rows, self.matrix)
        return self.head(unit(mapped if self.bias is None else mapped + self.bias.unsqueeze(-2)))

    @property
    def width(self) -> int:
        return self.head.width if self.matrix is None else max(self.head.width, *self.matrix.shape[-2:])

    @property
    def dtype(self) -> torch.dtype:
        return self.head.dtype
