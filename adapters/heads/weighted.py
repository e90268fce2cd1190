"""A weighted sum of heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.heads.head import Head
from onceclip.adapters.run_axis import per_run


@dataclass(frozen=True)
class Sum(Head):
    """Weighted sum of heads.

    heads: the terms. weights: one factor per term.
    """

    heads: tuple[Head, ...]
    weights: tuple[float | Tensor, ...]

    def __call__(self, rows: Tensor) -> Tensor:
        return sum((per_run(weight) * head(rows) for weight, head in zip(self.weights, self.heads, strict=True)),
                   start=rows.new_zeros(()))

    @property
    def width(self) -> int:
        return max(head.width for head in self.heads)

    @property
    def dtype(self) -> torch.dtype:
        return self.heads[0].dtype
