"""Heads that look rows up in a bank of images with captions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.heads.base import Head
from onceclip.adapters.ops import product


@dataclass(frozen=True)
class CaptionEnsemble(Head):
    """Logits `log(a / a' p + b / b' q)` of a row's own probabilities p and those q of the captions of its neighbours.

    With `p = softmax(x W^T)` and q the mean of `softmax(t W^T)` over the captions t of the `neighbours` bank images
    nearest to x; a and b are `1 - H / ln classes` of p and of q, and a', b' what they are on average.

    weight: W, (classes, dim), with the logit scale. image, caption: (bank, dim), unit. sure, caption_sure: a' and b'.
    """

    name = "caption-ensemble"

    weight: Tensor
    image: Tensor
    caption: Tensor
    neighbours: int
    sure: float
    caption_sure: float

    def __call__(self, rows: Tensor) -> Tensor:
        own, read = self.probabilities(rows)
        mixed = certainty(own) / self.sure * own + certainty(read) / self.caption_sure * read
        return mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log()

    def probabilities(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of the rows and of their neighbours' captions, both (rows, classes)."""
        nearest = product(rows, self.image).topk(min(self.neighbours, len(self.image)), dim=-1).indices
        of_captions = product(self.caption[nearest].flatten(0, 1), self.weight).softmax(dim=-1)
        return product(rows, self.weight).softmax(dim=-1), of_captions.unflatten(0, nearest.shape).mean(dim=1)

    @property
    def width(self) -> int:
        return max(len(self.image), self.neighbours * max(self.weight.shape))


def certainty(probability: Tensor) -> Tensor:
    """`1 - H / ln classes` of probabilities (rows, classes): (rows, 1), 0 where all classes are equally likely."""
    entropy = -(probability * probability.clamp_min(torch.finfo(probability.dtype).tiny).log()).sum(-1, keepdim=True)
    return (1 - entropy / math.log(probability.shape[-1])).clamp_min(0)
