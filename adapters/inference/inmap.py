"""InMaP: class vectors moved from the texts to where the images are."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.heads import Linear
from onceclip.adapters.inference.base import (
    Inductive,
    Queries,
    fit_setting,
    log_scores,
    prototypes,
    replaced,
    require_embeddings,
)
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

SINKHORN = 20
CERTAIN = 0.6
RATE = 10.0


class InMaP(Inductive):
    """Vision proxies: class vectors that give images the classifier's probabilities, balanced over the classes.

    The probabilities are balanced by Sinkhorn's iterations, those of rows above 0.6 become certain, and the vectors,
    which begin at the texts, are found by projected gradient descent. What is left behind is linear and replaces the
    classifier.

    Source: Intra-Modal Proxy Learning for Zero-Shot Visual Categorization with CLIP (Qian et al., NeurIPS 2023),
    equations 5 and 7, algorithm 1.
    """

    name = "inmap"
    summary = "class vectors learned from unlabelled images and the classifier's balanced probabilities"
    equation = ("logits = x.W/temperature,  W = argmin KL(P || softmax(X.W/temperature)), |w_c| = 1,  "
                "P = sinkhorn(softmax(l))")
    hyperparameters = {
        "temperature": Hyperparameter(0.04, "of the cosines with the proxies", low=1e-4, high=10.0),
        "iterations": Hyperparameter(2000, "steps of gradient descent", high=1e6),
        "balance": Hyperparameter(True, "balance the probabilities over the classes"),
        **fit_setting(),
    }

    @property
    def prior(self) -> str:  # type: ignore[override]
        return "uniform" if self.balance else "none"

    def fit(self, classifier: Classifier, rows: Queries, task: Task) -> Classifier:
        require_embeddings(self, classifier, rows)
        weight = prototypes(classifier, task)
        target = log_scores(classifier, rows).softmax(dim=1)
        if self.balance:
            balanced(target, SINKHORN)
        largest, place = target.max(dim=1)
        sure = largest > CERTAIN
        target[sure] = 0
        target[sure, place[sure]] = 1
        proxies = self._proxies(rows.embedding, target, weight)
        return replaced(self, classifier, Linear(proxies / self.temperature))

    def _proxies(self, rows: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        rate, before = RATE, float("inf")
        for step in range(self.iterations):
            probability = (rows @ (weight.T / self.temperature)).softmax(dim=1)
            gradient = probability.sub_(target).T @ rows
            norm = float(gradient.norm())
            if norm > before:
                rate /= 2
            before = norm
            weight = unit(weight - rate / (len(rows) * self.temperature) * gradient)
            self.progress((step + 1) / self.iterations)
        return weight


def balanced(probability: Tensor, steps: int) -> Tensor:
    """Scale columns of (n, classes) to equal sums and rows to one, in turn and in place (Sinkhorn, 1967)."""
    least = torch.finfo(probability.dtype).tiny
    for _ in range(steps):
        probability.div_(probability.sum(dim=0).clamp_min(least))
        probability.div_(probability.sum(dim=1, keepdim=True).clamp_min(least))
    return probability
