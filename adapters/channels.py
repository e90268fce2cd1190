"""Which channels of the embedding tell the classes of a task apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from onceclip.adapters.task import Task

TEXT, FULL = CRITERIA = ("text", "full")


@dataclass(frozen=True)
class Channels:
    """Channels scored by `-w sim + (1 - w) var`: alike across classes is bad, spread over the class vectors is good.

    sim is the mean product of a channel's values over all pairs of different classes, var its variance over the class
    vectors. By the criterion "text" a class stands for its text vector alone, by "full" for the mean of that vector
    and its keys, so that classes count the same whatever their shots. With equal shots this is the published mean over
    all pairs of rows. No loop over pairs is needed: it is `((sum_c m_c)^2 - sum_c m_c^2) / (C (C - 1))`,
    channel by channel.

    Source: APE (Zhu et al., ICCV 2023), section 3.1.
    """

    task: Task

    def best(self, criterion: str, weight: float | Tensor, per_1024: int) -> Tensor:
        """Positions of the channels with the best scores, best first.

        criterion: one of CRITERIA. weight: of the similarity, from 0 to 1. per_1024: how many of every 1,024.
        """
        score = (1 - weight) * self._variance - weight * self._similarity[criterion]
        return score.topk(max(1, round(self.task.dim * per_1024 / 1024))).indices

    @cached_property
    def _variance(self) -> Tensor:
        return self.task.text.class_weights.var(dim=0)

    @cached_property
    def _similarity(self) -> dict[str, Tensor]:
        text, support = self.task.text.class_weights, self.task.support
        rows = 1 + torch.bincount(support.label, minlength=len(text)).unsqueeze(1)
        return {TEXT: _between(text), FULL: _between(text.index_add(0, support.label, support.keys) / rows)}


def _between(mean: Tensor) -> Tensor:
    """Mean product of class means (classes, dim) over all pairs of different classes: (dim,)."""
    classes = len(mean)
    return (mean.sum(dim=0).square() - mean.square().sum(dim=0)) / (classes * (classes - 1))
