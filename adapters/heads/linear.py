"""A linear head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.heads.head import Head
from onceclip.adapters.run_axis import product


@dataclass(frozen=True)
class Linear(Head):
    """Logits `x W^T + b`.

    weight: (classes, dim), with any logit scale already multiplied in.
    bias: (classes,) or None.
    """

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        logits = product(rows, self.weight)
        return logits if self.bias is None else logits + self.bias.unsqueeze(-2)

    @property
    def width(self) -> int:
        return self.weight.shape[-2]

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype
