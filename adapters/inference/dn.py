"""Distribution normalization: the mean image's scores subtracted."""

from __future__ import annotations

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.inference.base import Inductive, Queries, fit_setting, log_scores, with_bias
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter


class DistributionNormalization(Inductive):
    """A bias per class: minus a share of the mean logits of unlabelled rows.

    Of the published `s (x - lambda mean x) . (w_c - lambda mean w)` all terms but `s x . w_c - s lambda mean x . w_c`
    are the same for every class of a row, and of zero-shot the latter is this bias.

    Source: Test-Time Distribution Normalization for Contrastively Learned Vision-language Models (Zhou et al.,
    NeurIPS 2023), equation 6.
    """

    name = "dn"
    summary = "distribution normalization: a share of the mean image's logits subtracted"
    equation = "logits_c = l_c(x) - subtract mean_n l_c(x_n)"
    hyperparameters = {
        "subtract": Hyperparameter(0.25, "share of the mean logits that is subtracted", high=10.0),
        **fit_setting(),
    }

    def fit(self, classifier: Classifier, rows: Queries, task: Task) -> Classifier:
        mean = log_scores(classifier, rows).mean(dim=0)
        return with_bias(self, classifier, -self.subtract * mean)
