"""Heads that join the answers of others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.heads.base import Head
from onceclip.adapters.heads.layers import Perceptron
from onceclip.adapters.heads.neighbors import certainty
from onceclip.adapters.ops import unit

LOG_PROBABILITY, CONFIDENT = "log-probability", "confidence"


@dataclass(frozen=True)
class Answers(Head):
    """The answers of several heads as one: by "log-probability" `sum_b w_b log p_b`, by "confidence" the logarithm of
    `sum_b c_b p_b / sum_b c_b` with `c_b = 1 - H(p_b) / ln classes`, where `p_b = softmax(logits_b / temperature_b)`.

    heads: the others. temperatures, weights: one of each. rule: LOG_PROBABILITY or CONFIDENT.
    """

    name = "answers"

    heads: tuple[Head, ...]
    temperatures: tuple[float, ...]
    weights: tuple[float, ...]
    rule: str = LOG_PROBABILITY

    def __call__(self, rows: Tensor) -> Tensor:
        answers = self.answers(rows)
        if self.rule == LOG_PROBABILITY:
            return sum((weight * each for weight, each in zip(self.weights, answers, strict=True)),
                       start=rows.new_zeros(()))
        probability = torch.stack([each.exp() for each in answers])
        share = certainty(probability).clamp_min(torch.finfo(rows.dtype).eps)
        return ((share * probability).sum(dim=0) / share.sum(dim=0)).clamp_min(torch.finfo(rows.dtype).tiny).log()

    def answers(self, rows: Tensor) -> list[Tensor]:
        """Log-probabilities (rows, classes) of each head."""
        return [(head(rows) / temperature).log_softmax(dim=-1)
                for head, temperature in zip(self.heads, self.temperatures, strict=True)]

    @property
    def width(self) -> int:
        return max(head.width for head in self.heads) * 2


@dataclass(frozen=True)
class Controlled(Head):
    """The answers of several heads, of which every row weighs each: `1/B sum_b exp(g_b(x)) log p_b`.

    head: the others. network: g, which takes the unit embeddings of all encoders side by side and gives (rows, heads).
    widths: of these embeddings.
    """

    name = "controlled"

    head: Answers
    network: Perceptron
    widths: tuple[int, ...]

    def __call__(self, rows: Tensor) -> Tensor:
        return self.weighed(rows, torch.stack(self.head.answers(rows), dim=1))

    def weighed(self, rows: Tensor, answers: Tensor) -> Tensor:
        """Logits (n, classes) of rows (n, width) with answers (n, heads, classes)."""
        parts = torch.cat([unit(each) for each in rows.split(self.widths, dim=-1)], dim=-1)
        return (self.network(parts).exp().unsqueeze(2) * answers).mean(dim=1)

    @property
    def width(self) -> int:
        return self.head.width * len(self.head.heads)
