"""A head with several class vectors per class, of which each image is given to a few."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.heads.base import Head
from onceclip.adapters.ops import product


@dataclass(frozen=True)
class RoutedPrompts(Head):
    """Logits `sum_k g_k(x) x . w_kc + b`, with g the softmax over the `top` largest of `r_k . x`, and 0 elsewhere.

    router: r, (experts, dim). vectors: w, (experts, classes, dim), with any logit scale multiplied in. bias: the
    encoder's.
    """

    name = "routed-prompts"

    router: Tensor
    vectors: Tensor
    top: int = 2
    bias: float = 0.0

    def __call__(self, rows: Tensor) -> Tensor:
        scores = torch.einsum("...nd,...kcd->...nkc", rows, self.vectors)
        return (gates(product(rows, self.router), self.top).unsqueeze(-1) * scores).sum(dim=-2) + self.bias

    @property
    def width(self) -> int:
        return self.vectors.shape[-3] * self.vectors.shape[-2]


def gates(scores: Tensor, top: int) -> Tensor:
    """Softmax over the `top` largest of scores (..., experts); the others are 0."""
    best = scores.topk(min(top, scores.shape[-1]), dim=-1)
    return torch.zeros_like(scores).scatter(-1, best.indices, best.values.softmax(dim=-1))
