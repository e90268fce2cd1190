"""StatA: Gaussian classes that stay near the text as far as they have few rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.heads import Head, Quadratic, Sum
from onceclip.adapters.inference.base import QUERY, Joint, Queries, fit_setting, log_scores, prototypes
from onceclip.adapters.inference.graph import affinity, assign
from onceclip.adapters.inference.transclip import INNER, OUTER, SETTINGS, TEMPERATURE
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter


class StatA(Joint):
    """As TransCLIP, with a variance per class, and statistics that an anchor of the text holds.

    A class of n_c rows keeps the share `alpha / (alpha + n_c)` of the anchor: its text vector, and the spread of all
    rows around their texts. So it holds where a batch has few of the classes. Squares are multiplied out, so that
    nothing of (rows, classes, dim) or (classes, dim, dim) is ever made.

    Source: Realistic Test-Time Adaptation of Vision-Language Models (Zanella, Fuchs et al., CVPR 2025), equations 5 to
    11.
    """

    name = "stata"
    summary = "Gaussian classes held by their texts, for batches with few of the classes"
    equation = ("z ~ p^text_weight exp((ln N(x; mu_c, v_c) + (50/6) (A + A') z) / 50),  "
                "mu_c = unit(b_c unit(z'X) + (1 - b_c) w_c),  b_c = n_c/(alpha + n_c)")
    hyperparameters = {
        "alpha": Hyperparameter(1.0, "rows that the text's anchor counts for", high=1e6),
        "count": Hyperparameter("hard", "rows of a class: those it is the most likely class of, or the sum of their z",
                                choices=("hard", "soft")),
        **SETTINGS,
        **fit_setting(QUERY),
    }

    def solve(self, classifier: Classifier, queries: Queries, task: Task) -> tuple[Tensor, Head, dict[str, Any]]:
        rows, anchor = queries.embedding, prototypes(classifier, task)
        first = log_scores(classifier, queries).mul_(self.text_weight)
        z = first.softmax(dim=1)
        graph, both = affinity(rows, self.neighbors), torch.cat([rows, rows.square()], dim=1)
        mean, size = anchor, _size(z)
        spread = _spread(z.T @ both, size, anchor).sum(dim=0) / len(rows)
        variance = spread.expand_as(anchor)
        for step in range(OUTER):
            gaussian = Quadratic.gaussian(mean, _positive(variance))
            density = torch.addmm(first + gaussian.bias / TEMPERATURE, both,
                                  torch.cat([gaussian.weight, gaussian.square], dim=1).T, alpha=1 / TEMPERATURE)
            logits = assign(density, z, graph, 1 / 6, INNER)
            self.progress((step + 1) / OUTER)
            size, sums = _size(z), z.T @ both
            count = torch.bincount(z.argmax(dim=1), minlength=len(size)).unsqueeze(1)
            share = (count if self.count == "hard" else size).to(rows)
            share = share / (self.alpha + share).clamp_min(torch.finfo(rows.dtype).tiny)
            mean = unit(share * unit(sums[:, :rows.shape[1]]) + (1 - share) * anchor)
            variance = (share * _spread(sums, size, mean) / size.to(rows).clamp_min(torch.finfo(rows.dtype).tiny)
                        + (1 - share) * (spread + (anchor - mean).square()))
        return logits, Sum((Quadratic.gaussian(mean, _positive(variance)),), (1 / TEMPERATURE,)), {}


def _spread(sums: Tensor, size: Tensor, centre: Tensor) -> Tensor:
    """`sum_n z_nc (x_n - centre_c)^2` of every coordinate: (classes, dim).

    sums: (classes, 2 dim) of z times the rows, and times their squares. size: (classes, 1) of z, in float64.
    """
    total, square = sums.double().chunk(2, dim=1)
    return (square - 2 * centre.double() * total + size * centre.double().square()).to(sums)


def _size(z: Tensor) -> Tensor:
    """Rows of each class: (classes, 1), in float64, without a copy of z in it."""
    return z.sum(dim=0, dtype=torch.float64).unsqueeze(1)


def _positive(variance: Tensor) -> Tensor:
    return variance.clamp_min(torch.finfo(variance.dtype).eps)
