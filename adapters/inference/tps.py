"""TPS: a shift of the class vectors for every image, one step against the entropy of its views."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.inference.base import Inference, Inferred, Queries, prototypes
from onceclip.adapters.inference.views import chosen, log_mean, most_confident, scores_of, views_of
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

_EPSILON = 1e-8  # AdamW's
_ELEMENTS = 1 << 22  # of shifts that are held at once


class TPS(Inference):
    """Class vectors that a step of AdamW has shifted, per image, towards a confident mean of its confident views.

    The first step has a closed form, `-rate G / (|G| + 1e-8)`, with G the gradient of the entropy of the mean
    probability. What the shift does to the scores of the text is added to the classifier's; of a zero-shot classifier
    the sum is the published score.

    Source: Just Shift It: Test-Time Prototype Shifting for Zero-Shot Generalization with Vision-Language Models (Sui
    et al., WACV 2025), section 3.2, with a shift per class.
    """

    name = "tps"
    summary = "TPS: class vectors shifted for every image by one step against the entropy of its views"
    equation = "logits_c = f_c(x) + s x.(w'_c - w_c),  w'_c = unit(w_c - rate G_c / (|G_c| + 1e-8)),  G = dH(mean p)/dw"
    hyperparameters = {
        "rate": Hyperparameter(5e-3, "size of the step", high=10.0),
        "share": Hyperparameter(0.1, "share of the views that the step looks at, those of lowest entropy", high=1.0),
    }
    sees = "views"

    def infer(self, classifier: Classifier, queries: Queries, prepared: Task) -> Inferred:
        views, weights = views_of(queries), prototypes(classifier, prepared)
        scores = scores_of(classifier, views)
        kept = most_confident(scores, self.share)
        change = text_change(views[:, 0], chosen(views, kept), chosen(scores, kept), weights, prepared.logit_scale,
                             self.rate)
        return Inferred(scores[:, 0] + change)


def gradient(views: Tensor, scores: Tensor, weights: Tensor, scale: float) -> Tensor:
    """Gradient of the entropy of the views' mean probability in every class vector: (n, classes, dim).

    views: (n, kept, dim), unit. scores: (n, kept, classes). weights: (classes, dim), unit.
    """
    share, mean = scores.softmax(dim=-1), log_mean(scores)[:, None]
    by_score = -share / scores.shape[1] * (mean - (share * mean).sum(dim=-1, keepdim=True))
    found = scale * by_score.transpose(1, 2) @ views
    return found - (found * weights).sum(dim=-1, keepdim=True) * weights


def text_change(plain: Tensor, views: Tensor, scores: Tensor, weights: Tensor, scale: float, rate: float) -> Tensor:
    """What one step changes in the scores of the text of the plain images (n, dim): (n, classes).

    views, scores, weights, scale: as of `gradient`.
    """
    changes, size = [], max(1, _ELEMENTS // weights.numel())
    for own, seen, given in zip(*(each.split(size) for each in (plain, views, scores)), strict=True):
        found = gradient(seen, given, weights, scale)
        moved = unit(weights - rate * found / (found.abs() + _EPSILON))
        changes.append(scale * ((moved - weights) @ own[..., None])[..., 0])
    return torch.cat(changes)
