"""TransCLIP: Gaussian classes with one variance, and neighbours that agree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.heads import Head, Linear
from onceclip.adapters.inference.base import QUERY, Joint, Queries, fit_setting, log_scores
from onceclip.adapters.inference.graph import affinity, assign
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

TEMPERATURE = 50.0  # of the Gaussian and the neighbours' term, whose sizes are those of sums over dimensions
ROWS, OUTER, INNER = 8, 10, 5
SETTINGS = {
    "text_weight": Hyperparameter(1.0, "exponent of the classifier's probabilities", high=100.0),
    "neighbors": Hyperparameter(3, "nearest rows whose classes each row leans to", high=1000),
}


class TransCLIP(Joint):
    """Classes are Gaussians of unit means and one diagonal variance, fitted to all rows together.

    A row's assignment z follows the classifier, the Gaussians and the assignments of its nearest rows. Squares are
    multiplied out, so that nothing of (rows, classes, dim) is ever made. What it leaves behind is the Gaussians, which
    are linear, on top of the classifier.

    With no more rows than classes every row may be a class of its own: the variance falls to nothing, as the published
    equations have it, and probabilities are 0 or 1 whatever is right. `stata` holds there.

    Source: Boosting Vision-Language Models with Transduction (Zanella et al., NeurIPS 2024), equations 6 to 9.
    """

    name = "transclip"
    summary = "Gaussian classes and neighbours that agree, fitted to all rows together"
    equation = "z ~ p^text_weight exp((-|x - mu_c|^2/v / 2 + (50/6) (A + A') z) / 50),  mu_c = unit(z'X)"
    hyperparameters = {**SETTINGS, **fit_setting(QUERY)}

    def solve(self, classifier: Classifier, queries: Queries, task: Task) -> tuple[Tensor, Head, dict[str, Any]]:
        logits, mean, variance = self.fitted(classifier, queries)
        return logits, _gaussian(mean, variance), {}

    def fitted(self, classifier: Classifier, queries: Queries) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, classes) of the rows, Gaussian means (classes, dim) and the variance (dim,)."""
        rows, first = queries.embedding, log_scores(classifier, queries).mul_(self.text_weight)
        z = first.softmax(dim=1)
        graph, square = affinity(rows, self.neighbors), rows.double().square().sum(dim=0)
        largest, index = z.topk(min(ROWS, len(rows)), dim=0)
        mean = unit(sum((weight.unsqueeze(1) * rows[row] for weight, row in zip(largest, index, strict=True)),
                        start=rows.new_zeros(())))
        variance = rows.new_full((rows.shape[1],), 1 / rows.shape[1])
        for step in range(OUTER + 1):
            # The classifier's share and the Gaussians', added in place: two matrices (n, classes) less.
            logits = assign(_gaussian(mean, variance)(rows).add_(first), z, graph, 1 / 6, INNER)
            self.progress((step + 1) / (OUTER + 1))
            if step < OUTER:
                total = z.T @ rows
                mean = unit(total)
                # Over all classes z sums to 1 for every row, so that the squares of the rows need no class.
                scatter = square + (z.sum(dim=0, dtype=torch.float64).unsqueeze(1) * mean.double().square()
                                    - 2 * mean.double() * total.double()).sum(dim=0)
                variance = (scatter / len(rows)).clamp_min(torch.finfo(rows.dtype).eps).to(rows)
        return logits, mean, variance


def _gaussian(mean: Tensor, variance: Tensor) -> Linear:
    """Log-densities over TEMPERATURE, less what all classes of a row have in common."""
    weight = mean / (variance * TEMPERATURE)
    return Linear(weight, -(weight * mean).sum(dim=1) / 2)
