"""Given crops: the scores of an image and of its crops, as one."""

from __future__ import annotations

import torch

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.inference.base import Inference, Inferred, Queries, log_scores
from onceclip.adapters.inference.views import scores_of, views_of
from onceclip.adapters.ops import unit
from onceclip.adapters.training.trainable import Hyperparameter

_SAME = 1e-5  # 1 - cosine below which a view is the whole image once more


class Crops(Inference):
    """Mean or maximum over an image and its crops, such as the boxes of a detector, of scores or of unit features.

    A view that is the whole image once more does not count: a store fills up images with fewer crops so.

    Source: Zero-Shot Visual Classification with Guided Cropping (Saranrittichai et al., 2023); no code was found.
    """

    name = "crops"
    summary = "given crops: scores averaged over an image and its views"
    equation = "logits_c = mean_v f_c(x_v), or max_v f_c(x_v), or f_c(unit(mean_v x_v))"
    hyperparameters = {"pool": Hyperparameter("mean", "mean or max of the scores, or the scores of the mean feature",
                                              choices=("mean", "max", "feature"))}
    sees = "views"

    def infer(self, classifier: Classifier, queries: Queries, prepared: object) -> Inferred:
        views = views_of(queries)
        counts = 1 - (views * views[:, :1]).sum(dim=-1, keepdim=True) > _SAME
        counts[:, 0] = True
        number = counts.sum(dim=1)
        if self.pool == "feature":
            return Inferred(log_scores(classifier, Queries(unit((views * counts).sum(dim=1) / number))))
        scores = scores_of(classifier, views)
        if self.pool == "max":
            return Inferred(scores.masked_fill(~counts, -torch.inf).amax(dim=1))
        return Inferred((scores * counts).sum(dim=1) / number)
