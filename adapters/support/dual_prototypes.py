"""Pseudo-labels by two prototypes of a class, its text and the mean of its images: DPA with a frozen encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.ops import unit
from onceclip.adapters.support.source import Choice, SupportSource, probabilities
from onceclip.adapters.task import Pool
from onceclip.adapters.text import Text
from onceclip.adapters.training.trainable import Hyperparameter

_TINY = 1e-12


class DPA(SupportSource):
    """Every row of the pool with the label that text and image prototypes of the classes agree on, and how well.

    `p_t` is the zero-shot probability over its mean over all rows, so that no class is guessed more often than others;
    `p_v = softmax(s x . centre)` with the centres of the rows of each guess, or the class's text where it has none; the
    label is the largest of `mixing p_v + (1 - mixing) p_t`, found in turns. The weight of a row is the share of its
    label in the largest of p_v, times that in the largest of p_t: 1 where both say the same.

    A set in which some classes are much more frequent than others breaks what the mean is divided out for.

    Source: DPA: Dual Prototypes Alignment for Unsupervised Adaptation of Vision-Language Models (Ali et al., WACV
    2025), with the mean over all rows for that of the last batches, and without its training of the encoder.
    """

    name = "dpa"
    summary = "all images, labelled by text and image prototypes, weighted by their agreement"
    hyperparameters = {
        "rounds": Hyperparameter(2, "turns of centres and labels", low=1, high=1000),
        "mixing": Hyperparameter(0.3, "share of the image prototypes", high=1.0),
        "weighted": Hyperparameter(True, "give every row its weight, for methods that weigh rows"),
    }

    def choose(self, text: Text, pool: Pool, seed: int = 0) -> Choice:
        label, weight, _ = aligned(text, pool, int(self.values["rounds"]), float(self.values["mixing"]))
        return Choice(torch.arange(len(label), device=label.device), label, weight if self.values["weighted"] else None)


def aligned(text: Text, pool: Pool, rounds: int, mixing: float, keep: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (rows,) and weights (rows,) of all rows, and the probabilities (keep, classes) of the first of them."""
    total, count = text.embedding.new_zeros(len(text.class_names)), 0
    for _, each in probabilities(text, pool):
        total, count = total + each.sum(dim=0), count + len(each)
    mean = (total / count).clamp_min(_TINY)
    centre = None
    for _ in range(rounds + 1):  # the first are by the text alone
        found = [_piece(place, each / mean, pool, centre, mixing, keep) for place, each in probabilities(text, pool)]
        label, weight, first = (torch.cat(parts) for parts in zip(*found, strict=True))
        centre = _centres(text, pool, label)
    return label, weight, first


def _piece(place: slice, by_text: Tensor, pool: Pool, centre: Tensor | None, mixing: float,
           keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, weights and some probabilities of one piece of the pool."""
    by_text = by_text / by_text.sum(dim=1, keepdim=True)
    by_image = by_text
    if centre is not None:
        rows = unit(pool.image[place].to(centre.dtype))
        by_image = (pool.logit_scale * rows @ centre.T).softmax(dim=1)
    mixed = mixing * by_image + (1 - mixing) * by_text
    label = mixed.argmax(dim=1)
    shares = [each.gather(1, label.unsqueeze(1)).squeeze(1) / each.amax(dim=1) for each in (by_image, by_text)]
    return label, shares[0] * shares[1], mixed[:max(0, keep - place.start)]


def _centres(text: Text, pool: Pool, label: Tensor) -> Tensor:
    """Unit mean (classes, dim) of the rows of each label; the class's text where there are none."""
    weights = text.class_weights
    total = torch.zeros_like(weights)
    for place, rows in pool.pieces(len(weights)):
        total = total.index_add(0, label[place], rows.to(weights.dtype))
    there = torch.bincount(label, minlength=len(weights)) > 0
    return torch.where(there.unsqueeze(1), unit(total), unit(weights))
