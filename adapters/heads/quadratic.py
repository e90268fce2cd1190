"""Logits of classes with a diagonal variance each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from onceclip.adapters.heads.base import Head
from onceclip.adapters.ops import product


@dataclass(frozen=True)
class Quadratic(Head):
    """Logits `x^2 S^T + x W^T + b`, with the square of every coordinate.

    square, weight: (classes, dim). bias: (classes,).
    """

    name = "quadratic"

    square: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def gaussian(cls, mean: Tensor, variance: Tensor) -> Quadratic:
        """Log-densities `-1/2 sum ((x - mean)^2 / variance + ln variance)` but for a constant of all classes.

        mean, variance: (classes, dim).
        """
        precision = variance.reciprocal()
        bias = -(mean.square() * precision + variance.log()).sum(dim=-1) / 2
        return cls(-precision / 2, mean * precision, bias - bias.max())

    def __call__(self, rows: Tensor) -> Tensor:
        return product(rows.square(), self.square) + product(rows, self.weight) + self.bias.unsqueeze(-2)

    @property
    def width(self) -> int:
        return max(self.weight.shape[-2:])
