"""Logits read out of a graph over which labels have spread."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.heads.base import Head

LEAST = 1e-30  # the score of a class that no path leads to, for its logarithm


@dataclass(frozen=True)
class GraphLabels(Head):
    """Logits `ln(sum_j a_j F_j)` over the images and the classes of a graph that a row is nearest to.

    An image's `a_j` is its cosine. A class's is the row's similarity `(head(x) / scale)_c + const` to the power gamma,
    where the constant makes their mean that of the row's cosines with the class vectors. Neither is below 0.

    head: its logits. image: (images, dim), unit. scores: F, (classes + images, classes). centre: (dim,), mean of the
        class vectors. scale: of the logits. neighbors: images and classes that a row looks at. gamma: power.
    """

    name = "graph-labels"

    head: Head
    image: Tensor
    scores: Tensor
    centre: Tensor
    scale: float
    neighbors: int
    gamma: float

    def __call__(self, rows: Tensor) -> Tensor:
        similarity = self.head(rows) / self.scale
        similarity = similarity + ((rows @ self.centre) - similarity.mean(dim=1)).unsqueeze(1)
        classes = similarity.shape[1]
        near_class = similarity.topk(min(self.neighbors, classes), dim=1)
        near_image = (rows @ self.image.T).topk(min(self.neighbors, len(self.image)), dim=1)
        value = torch.cat([near_class.values.clamp_min(0) ** self.gamma, near_image.values.clamp_min(0)], dim=1)
        index = torch.cat([near_class.indices, near_image.indices + classes], dim=1)
        found = (value.unsqueeze(1) @ self.scores[index]).squeeze(1)
        return found.clamp_min(LEAST).log()

    @property
    def width(self) -> int:
        return max(self.head.width, len(self.image), 2 * self.neighbors * self.scores.shape[1])
