"""TDA: a stream's surest images as a cache beside the classifier, and its unsure ones against it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.inference.base import Inference, Inferred, Queries, log_scores
from onceclip.adapters.inference.stream import ORDERS, Memory, in_order
from onceclip.adapters.inference.views import entropy
from onceclip.adapters.training.trainable import Hyperparameter


class TDA(Inference):
    """A positive cache of the surest images of each predicted class, a negative one of images of middling entropy.

    An image is predicted with what came before it, and itself, and never with what comes after.

    Source: Efficient Test-Time Adaptation of Vision-Language Models (Karmanov et al., CVPR 2024), equations 2 to 6.
    """

    name = "tda"
    summary = "TDA: sure images of the stream as a positive cache, unsure ones as a negative one"
    equation = "logits_c = f_c(x) + a sum_i exp(-b (1 - x.k_i)) [c_i = c] - a' sum_j exp(-b' (1 - x.k_j)) m_jc"
    hyperparameters = {
        "weight": Hyperparameter(2.0, "a: weight of the positive cache", high=1e3),
        "sharpness": Hyperparameter(5.0, "b: how fast a key of the positive cache fades with distance", high=1e3),
        "negative_weight": Hyperparameter(0.117, "a': weight of the negative cache", high=1e3),
        "negative_sharpness": Hyperparameter(1.0, "b': the same of the negative cache", high=1e3),
        "capacity": Hyperparameter(3, "images of each class in the positive cache", high=1e4),
        "negative_capacity": Hyperparameter(2, "images of each class in the negative cache", high=1e4),
        "entropy_low": Hyperparameter(0.2, "entropy in nats over log2 of the number of classes (0.69 at most), above "
                                      "which an image is for the negative cache", high=1.0),
        "entropy_high": Hyperparameter(0.5, "the same, below which", high=1.0),
        "mask_low": Hyperparameter(0.03, "probability from which on the negative cache counts against a class",
                                   high=1.0),
        **ORDERS,
    }
    sees = "stream"

    def infer(self, classifier: Classifier, queries: Queries, prepared: object) -> Inferred:
        logits = log_scores(classifier, queries)
        sizes = self.stream(queries.embedding, logits)
        return Inferred(logits, diagnostics=dict(zip(("cached", "cached_negative"), sizes, strict=True)))

    def stream(self, rows: Tensor, logits: Tensor) -> tuple[int, int]:
        """Add the caches' scores to logits (n, classes) in place, image by image; gives the sizes of the caches.

        rows: (n, dim), unit, in the order of the stream.
        """
        if not len(rows):
            return 0, 0
        classes = logits.shape[1]
        positive = Memory(classes, self.capacity, rows[0])
        negative = Memory(classes, self.negative_capacity, rows[0], masked=True)
        for _, row, scores in in_order(rows, logits, self.progress):
            surprise, label = float(entropy(scores)), int(scores.argmax())
            mask = None
            if self.entropy_low < surprise / math.log2(classes) < self.entropy_high:
                share = scores.softmax(dim=0)
                mask = ((share > self.mask_low) & (share < 1)).to(scores)
            if self.enters == "before":
                self._enter(positive, negative, label, surprise, row, mask)
            near = torch.exp(-self.sharpness * (1 - positive.keys @ row))
            scores.index_add_(0, positive.label, near, alpha=self.weight)
            far = torch.exp(-self.negative_sharpness * (1 - negative.keys @ row))
            scores.sub_(far @ negative.mask, alpha=self.negative_weight)
            if self.enters == "after":
                self._enter(positive, negative, label, surprise, row, mask)
        return len(positive.keys), len(negative.keys)

    @staticmethod
    def _enter(positive: Memory, negative: Memory, label: int, surprise: float, row: Tensor,
               mask: Tensor | None) -> None:
        positive.add(label, surprise, row)
        if mask is not None:
            negative.add(label, surprise, row, mask)
