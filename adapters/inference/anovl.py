"""AnoVL's scorer: how abnormal the patches of an image are by the texts of normal and abnormal states."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, logsigmoid, pad

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError
from onceclip.adapters.inference.anomaly import SETTING, anomaly_score, normal_class, with_odds
from onceclip.adapters.inference.base import Inference, Inferred, Queries, log_scores
from onceclip.adapters.inference.views import patches_of, scores_of
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter


class AnoVL(Inference):
    """Abnormality of an image: of its most abnormal patch, of the whole image, or the mean of the two.

    It is the scorer alone: patch tokens are those of the store, best `extract --tokens value`, without the paper's
    attention in every block, and nothing is adapted at test time. A text set has the states, such as normal: flawless,
    perfect ...; abnormal: damaged, with a flaw ....

    Source: AnoVL: Adapting Vision-Language Models for Unified Zero-shot Anomaly Localization (Deng et al., 2023),
    section 3.1; WinCLIP (Jeong et al., CVPR 2023) for the states.
    """

    name = "anovl"
    summary = "AnoVL's scorer: the most abnormal patch by texts of normal and abnormal states"
    equation = "a = max_p smooth(1 - softmax(s' f(x_p) / s)_normal)"
    hyperparameters = {
        **SETTING,
        "scale": Hyperparameter(100.0, "s': what cosines are multiplied with; the published code has 1", high=1e4),
        "smooth": Hyperparameter(1, "patches across a square whose mean is taken; 1 for none", low=1, high=99),
        "score": Hyperparameter("patches", "of the most abnormal patch, of the image, or the mean of both",
                                choices=("patches", "image", "mean")),
    }
    sees = "patches"

    def infer(self, classifier: Classifier, queries: Queries, prepared: Task) -> Inferred:
        normal, factor = normal_class(classifier.class_names, self.normal), self.scale / prepared.logit_scale
        image = log_scores(classifier, queries)
        parts, patches = [], None
        if self.score != "image":
            patches = patch_odds(factor * scores_of(classifier, patches_of(queries)), normal, self.smooth)
            parts.append(patches.amax(dim=1))
        if self.score != "patches":
            parts.append(anomaly_score(factor * image, normal))
        return Inferred(with_odds(image, normal, parts[0] if len(parts) == 1 else _odds(
            *(logsigmoid(sign * torch.stack(parts)).logsumexp(dim=0) for sign in (1, -1)))), abnormal=patches)


def patch_odds(scores: Tensor, normal: int, smooth: int = 1) -> Tensor:
    """Log-odds of patches not to be normal, of scores (n, patches, classes): (n, patches).

    smooth: patches across a square over which the probability is averaged.
    """
    odds = anomaly_score(scores.flatten(0, 1), normal).view(scores.shape[:2])
    if smooth == 1:
        return odds
    least = torch.finfo(odds.dtype).tiny
    return _odds(*(_smoothed(torch.sigmoid(sign * odds), smooth).clamp_min(least).log() for sign in (1, -1)))


def _smoothed(values: Tensor, size: int) -> Tensor:
    """Mean of values (n, patches) over size x size patches, the edge repeated beyond it: (n, patches).

    Raises MethodError where the patches are no square, or the size is even.
    """
    if size == 1:
        return values
    side = math.isqrt(values.shape[1])
    if side * side != values.shape[1] or size % 2 == 0:
        raise MethodError(f"means over {size} x {size} of {values.shape[1]} patches cannot be taken: the size must be "
                          "odd and the patches a square; use smooth=1")
    square = pad(values.view(-1, 1, side, side), (size // 2,) * 4, mode="replicate")
    return avg_pool2d(square, size, stride=1).flatten(1)


def _odds(abnormal: Tensor, normal: Tensor) -> Tensor:
    """Log-odds of two log-probabilities: of the small one, not of one less the other, so that sure ones stay apart."""
    return abnormal - normal
