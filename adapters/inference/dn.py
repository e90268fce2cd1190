"""Distribution normalization: the mean image and the mean text subtracted before the product."""

from __future__ import annotations

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.heads import Linear
from onceclip.adapters.inference.base import Inductive, Queries, extended, fit_setting, prototypes
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter


class DistributionNormalization(Inductive):
    """A bias per class, `-s lambda mu . w_c`, with mu the mean of unlabelled unit rows.

    Of `(x - lambda mu) . (w_c - lambda mean w)` all other terms are the same for every class of a row.

    Source: Test-Time Distribution Normalization for Contrastively Learned Vision-language Models (Zhou et al.,
    NeurIPS 2023), equation 6.
    """

    name = "dn"
    summary = "distribution normalization: the mean image's scores subtracted from every image's"
    source = "Zhou et al., Test-Time Distribution Normalization for Contrastively Learned VLMs, NeurIPS 2023"
    equation = "logits_c = log p_c - s lambda mu.w_c,  mu = mean x"
    hyperparameters = {
        "lambda": Hyperparameter(0.25, "share of the mean that is subtracted", high=10.0),
        **fit_setting(),
    }
    prior = "none"

    def fit(self, classifier: Classifier, rows: Queries, task: Task) -> Classifier:
        weights = prototypes(classifier, task)
        bias = -task.logit_scale * self.values["lambda"] * (weights @ rows.embedding.mean(dim=0))
        return extended(self, classifier, Linear(weights.new_zeros(len(weights), classifier.dim), bias))
