"""Conf-OT: three steps of optimal transport to balanced classes, as before split conformal prediction."""

from __future__ import annotations

import math

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.heads import Sum
from onceclip.adapters.inference.base import Inductive, Queries, fit_setting, log_scores, replaced, with_bias
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter


class ConfOT(Inductive):
    """Rows and classes of `exp(l / epsilon)` are scaled in turn, classes to equal sums and rows to one.

    The scaling of the classes is a bias, which serves rows that were not among these. The first scaling takes the
    logits as they are, so that rows of larger logits count more in it, as in the authors' code.

    Source: Conformal Prediction for Zero-Shot Models (Silva-Rodriguez et al., CVPR 2025), section 4.2.
    """

    name = "conf-ot"
    summary = "a few steps of optimal transport to balanced classes"
    equation = "p = softmax(l/epsilon + b),  b_c = -ln (C sum_n exp(l_nc/epsilon + a_n)),  steps times in turn with a"
    hyperparameters = {
        "epsilon": Hyperparameter(1.0, "weight of the entropy: what the logits are divided by", low=1e-3, high=1e3),
        "steps": Hyperparameter(3, "scalings of classes and rows", low=1, high=1e5),
        **fit_setting(),
    }
    prior = "uniform"

    def fit(self, classifier: Classifier, rows: Queries, task: Task) -> Classifier:
        scores = log_scores(classifier, rows).div_(self.epsilon)
        bias, of_row = scores.new_zeros(scores.shape[1]), scores.new_zeros(len(scores), 1)
        for step in range(self.steps):
            bias = -(scores + of_row).logsumexp(dim=0) - math.log(scores.shape[1])
            of_row = -(scores + bias).logsumexp(dim=1, keepdim=True) - math.log(len(scores))
            self.progress((step + 1) / self.steps)
        bias = bias - bias.mean()
        if self.epsilon == 1:
            return with_bias(self, classifier, bias)
        cooler = replaced(self, classifier, Sum((classifier.head,), (1 / self.epsilon,)))
        return with_bias(self, cooler, bias)
