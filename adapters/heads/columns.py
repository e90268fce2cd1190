"""A head on some columns of the rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.heads.head import Head
from onceclip.adapters.unit import unit


@dataclass(frozen=True)
class Columns(Head):
    """Another head on some columns of the rows, scaled to unit length: chosen channels, or one of several outputs.

    index: (columns,) int64. head: takes rows (n, columns).
    """

    index: Tensor
    head: Head

    def __call__(self, rows: Tensor) -> Tensor:
        return self.head(unit(rows.index_select(-1, self.index)))

    @property
    def width(self) -> int:
        return max(len(self.index), self.head.width)

    @property
    def dtype(self) -> torch.dtype:
        return self.head.dtype
