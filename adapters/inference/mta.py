"""MTA: mean shift over the views of an image, which weighs them meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.inference.base import Inference, Inferred, Queries, log_scores
from onceclip.adapters.inference.views import number_of, scores_of, views_of
from onceclip.adapters.ops import unit
from onceclip.adapters.training.trainable import Hyperparameter

STEPS = 5  # of the whole, and at most of each half of it
TOLERANCE = 1e-6
_NARROWEST = 1e-12  # bandwidth of a view with exact duplicates


class MTA(Inference):
    """The classifier's scores of the mode of the views' density, in which views that agree with others count more.

    The affinity of two views is the product of their probabilities, as this classifier gives them.

    Source: On the Test-Time Zero-Shot Generalization of Vision-Language Models: Do We Really Need Prompt Learning?
    (Zanella and Ben Ayed, CVPR 2024), algorithm 1.
    """

    name = "mta"
    summary = "MTA: mean shift over the views, with weights of views that agree"
    equation = "logits = f(m),  m = unit(sum_v K(x_v - m) y_v x_v),  y = softmax((K(x - m) + lq P P^T y) / ly)"
    hyperparameters = {
        "spread": Hyperparameter(0.2, "ly: how evenly the views are weighed", low=1e-3, high=1e3),
        "agreement": Hyperparameter(4.0, "lq: weight of the views' agreement", high=1e3),
        "neighbors": Hyperparameter(0.3, "share of the other views whose distance is a view's bandwidth", high=1.0),
    }
    sees = "views"

    def infer(self, classifier: Classifier, queries: Queries, prepared: object) -> Inferred:
        views = views_of(queries, 2)
        share = scores_of(classifier, views).softmax(dim=-1)
        mode, _ = mean_shift(views, share, self.spread, self.agreement, self.neighbors)
        return Inferred(log_scores(classifier, Queries(mode)))


def mean_shift(views: Tensor, share: Tensor, spread: float, agreement: float,
               neighbors: float) -> tuple[Tensor, Tensor]:
    """The mode of every image's views (n, dim), unit, and the weights of its views (n, views), which sum to 1.

    views: (n, views, dim), unit, the plain one first. share: their probabilities (n, views, classes).
    """
    affinity = share @ share.transpose(1, 2)
    distance = (2 - 2 * views @ views.transpose(1, 2)).clamp_min_(0)
    near = number_of(neighbors, views.shape[1] - 1)
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    bandwidth = distance.topk(near, dim=2, largest=False).values.mean(dim=2) / 2
    mode, weight = views[:, 0], torch.full_like(views[:, :, 0], 1 / views.shape[1])

    def density(mode: Tensor) -> Tensor:
        away = (2 - 2 * (views @ mode[..., None])[..., 0]).clamp_min_(0)
        return torch.exp(-away / (2 * bandwidth.clamp_min(_NARROWEST)))

    def weigh(kernel: Tensor, weight: Tensor) -> Tensor:
        return torch.softmax((kernel + agreement * (affinity @ weight[..., None])[..., 0]) / spread, dim=1)

    def move(weight: Tensor, mode: Tensor) -> Tensor:
        return unit(((density(mode) * weight)[:, None] @ views)[:, 0])

    for _ in range(STEPS):
        weight = _settled(weight, partial(weigh, density(mode)))
        mode = _settled(mode, partial(move, weight))
    return mode, weight


def _settled(start: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
    """Rows (n, d) after at most STEPS steps; each stays once it has moved by less than TOLERANCE."""
    value, moving = start, torch.ones_like(start[:, :1], dtype=torch.bool)
    for _ in range(STEPS):
        after = step(value)
        still = (after - value).norm(dim=1, keepdim=True) >= TOLERANCE
        value, moving = torch.where(moving, after, value), moving & still
        if not moving.any():
            break
    return value
