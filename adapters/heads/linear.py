"""Heads of one product, or two, with the rows, and maps and sums in front of heads that stay linear."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.heads.base import Head
from onceclip.adapters.ops import per_run, product, unit


@dataclass(frozen=True)
class Linear(Head):
    """Logits `x W^T + b`.

    weight: (classes, dim), with any logit scale already multiplied in.
    bias: (classes,) or None.
    """

    name = "linear"

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        logits = product(rows, self.weight)
        return logits if self.bias is None else logits + self.bias.unsqueeze(-2)

    @property
    def width(self) -> int:
        return self.weight.shape[-2]


@dataclass(frozen=True)
class Sum(Head):
    """Weighted sum of heads.

    heads: the terms. weights: one factor per term.
    """

    name = "sum"

    heads: tuple[Head, ...]
    weights: tuple[float | Tensor, ...]

    def __call__(self, rows: Tensor) -> Tensor:
        return sum((per_run(weight) * head(rows) for weight, head in zip(self.weights, self.heads, strict=True)),
                   start=rows.new_zeros(()))

    @property
    def width(self) -> int:
        return max(head.width for head in self.heads)


@dataclass(frozen=True)
class Columns(Head):
    """Another head on some columns of the rows, scaled to unit length: chosen channels, or one of several outputs.

    index: (columns,) int64. head: takes rows (n, columns).
    """

    name = "columns"

    index: Tensor
    head: Head

    def __call__(self, rows: Tensor) -> Tensor:
        return self.head(unit(rows.index_select(-1, self.index)))

    @property
    def width(self) -> int:
        return max(len(self.index), self.head.width)


@dataclass(frozen=True)
class Projected(Head):
    """A linear map in front of another head: `head(unit(M x + b))`.

    head: the other one. matrix: (dim, width), or None for the identity. bias: (dim,) or None.
    """

    name = "projected"

    head: Head
    matrix: Tensor | None = None
    bias: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        mapped = rows if self.matrix is None else product(rows, self.matrix)
        return self.head(unit(mapped if self.bias is None else mapped + self.bias.unsqueeze(-2)))

    @property
    def width(self) -> int:
        return self.head.width if self.matrix is None else max(self.head.width, *self.matrix.shape[-2:])


@dataclass(frozen=True)
class ProbabilityBilinear(Head):
    """Logits `p M + H(p) e` of the probabilities `p = softmax(x W^T / tau)` and their entropy H in nats.

    weight: W, (anchors, dim). temperature: tau. matrix: M, (anchors, classes).
    entropy: e, (classes,), or None where all classes are treated alike, so that it would change no probability.
    """

    name = "probability-bilinear"

    weight: Tensor
    temperature: float | Tensor
    matrix: Tensor
    entropy: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        logarithm = (product(rows, self.weight) / per_run(self.temperature)).log_softmax(dim=-1)
        probability = logarithm.exp()
        logits = product(probability, self.matrix.transpose(-1, -2))
        if self.entropy is None:
            return logits
        spread = -(probability * logarithm).sum(dim=-1, keepdim=True)
        return logits + spread * self.entropy.unsqueeze(-2)

    @property
    def width(self) -> int:
        return max(self.weight.shape[-2], self.matrix.shape[-1])


def mixed(first: Head, second: Head, share: float) -> Head:
    """The head of logits `(1 - share) first + share second`: one linear head where both are, else a sum."""
    if share in (0.0, 1.0):
        return second if share else first
    if not (isinstance(first, Linear) and isinstance(second, Linear)):
        return Sum((first, second), (1 - share, share))
    weight = torch.lerp(first.weight, second.weight, share)
    if first.bias is None and second.bias is None:
        return Linear(weight)
    start, end = (weight.new_zeros(head.width) if head.bias is None else head.bias for head in (first, second))
    return Linear(weight, torch.lerp(start, end, share))


def as_linear(head: Head) -> Linear | None:
    """The one linear head that gives the same logits on unit rows, or None if there is none.

    A weighted sum of linear heads is one, whatever its depth; so is a linear head behind a scaling to unit length.
    """
    if isinstance(head, Linear):
        return head
    if isinstance(head, Projected) and head.matrix is None and head.bias is None:
        return as_linear(head.head)
    if not isinstance(head, Sum):
        return None
    terms = [as_linear(each) for each in head.heads]
    linear = [each for each in terms if each is not None]
    if len(linear) < len(terms):
        return None
    # In float64: the terms of a sum may be much larger than what is left of them.
    weight = sum((float(factor) * each.weight.double() for factor, each in zip(head.weights, linear, strict=True)),
                 start=torch.zeros((), dtype=torch.float64))
    biases = [float(factor) * each.bias.double() for factor, each in zip(head.weights, linear, strict=True)
              if each.bias is not None]
    bias: Tensor | None = torch.stack(biases).sum(dim=0).to(head.dtype) if biases else None
    return Linear(weight.to(head.dtype), bias)


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
