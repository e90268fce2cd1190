"""Heads that see every prompt: the best one of each class, or a mean whose weights each image chooses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.heads.base import Head

WEIGHTINGS = ("autoclip", "softmax")
_HALVINGS = 60
_FLAT = 1e-6  # spread of the prompts' scores, cosines, below which they differ by rounding alone
_SHARPEST = 2.0**20  # in standard deviations: no prompt but the best one has any weight there


@dataclass(frozen=True)
class PromptMax(Head):
    """Logits `max_p s x . t_cp + b`.

    prompts: (prompts, dim), unit vectors times the logit scale. class_index: (prompts,) int64.
    classes: number of classes. bias: the encoder's.
    """

    name = "prompt-max"

    prompts: Tensor
    class_index: Tensor
    classes: int
    bias: float = 0.0

    def __call__(self, rows: Tensor) -> Tensor:
        scores = rows @ self.prompts.T
        lowest = scores.new_full((rows.shape[0], self.classes), -math.inf)
        return lowest.scatter_reduce(1, self.class_index.expand_as(scores), scores, "amax") + self.bias

    @property
    def width(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class PromptWeighted(Head):
    """Logits `s sum_p w_p(x) x . t_cp + b`, where every image weighs the templates anew, the same for all classes.

    With cosines `a_cp = x . t_cp`, "autoclip" takes the gradient `m_p = sum_c softmax_c(mean_p a_cp) a_cp` of the
    log-sum-exp of the class scores, "softmax" the plain mean `m_p = mean_c a_cp`. Then `w = softmax(k m)`, with k such
    that the entropy of w is the given share of its maximum, found by bisection.

    bank: (templates, classes, dim), unit vectors or means of them. scale, bias: the encoder's.
    weighting: one of WEIGHTINGS. entropy: the share, 1 for equal weights.
    Source: AutoCLIP (Metzen et al., TMLR 2024), section 3 and appendix A.3.
    """

    name = "prompt-weighted"

    bank: Tensor
    scale: float
    bias: float = 0.0
    weighting: str = WEIGHTINGS[0]
    entropy: float = 0.85

    def __call__(self, rows: Tensor) -> Tensor:
        templates, classes, _ = self.bank.shape
        cosine = (rows @ self.bank.flatten(0, 1).T).view(-1, templates, classes)
        if self.weighting == "softmax":
            merit = cosine.mean(dim=2)
        else:
            merit = (cosine.mean(dim=1).softmax(dim=1).unsqueeze(1) * cosine).sum(dim=2)
        weight = tempered(merit, self.entropy * math.log(templates))
        return self.scale * (weight.unsqueeze(1) @ cosine).squeeze(1) + self.bias

    @property
    def width(self) -> int:
        return self.bank.shape[0] * self.bank.shape[1]


def tempered(merit: Tensor, entropy: float) -> Tensor:
    """Softmax weights of merits (rows, n), each row as sharp as gives it an entropy (in nats): (rows, n).

    Merits that differ by no more than rounding weigh the same.
    """
    spread = merit.std(dim=1, correction=0, keepdim=True)
    standard = torch.where(spread > _FLAT, (merit - merit.mean(dim=1, keepdim=True)) / spread, 0.0)
    low, high = torch.zeros_like(spread), torch.full_like(spread, _SHARPEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        logarithm = (middle * standard).log_softmax(dim=1)
        sharper = -(logarithm.exp() * logarithm).sum(dim=1, keepdim=True) > entropy
        low, high = torch.where(sharper, middle, low), torch.where(sharper, high, middle)
    return (low * standard).softmax(dim=1)
