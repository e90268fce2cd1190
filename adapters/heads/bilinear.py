"""A head on the zero-shot probabilities of a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.heads.head import Head
from onceclip.adapters.run_axis import per_run, product


@dataclass(frozen=True)
class ProbabilityBilinear(Head):
    """Logits `p M + H(p) e` of the probabilities `p = softmax(x W^T / tau)` and their entropy H in nats.

    weight: W, (anchors, dim). temperature: tau. matrix: M, (anchors, classes).
    entropy: e, (classes,), or None where all classes are treated alike, so that it would change no probability.
    """

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

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype
