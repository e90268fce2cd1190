"""OnZeta: class vectors that follow the stream, and a label distribution that is held near a uniform one."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.inference.base import Inference, Inferred, Queries, log_scores, prototypes
from onceclip.adapters.inference.stream import in_order
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter


class OnZeta(Inference):
    """Probabilities of the text, evened out over classes, mixed with those of class vectors that learn from them.

    No image is kept: time and memory per image are those of the class vectors. An image is predicted before anything
    learns from it. The weight of the learned vectors grows with the share of the stream that is through, so that the
    length of the stream has to be known; it assumes that the classes are about equally frequent.

    Source: Online Zero-Shot Classification with CLIP (Qian and Hu, ECCV 2024), algorithm 1.
    """

    name = "onzeta"
    summary = "OnZeta: class vectors and a label distribution that follow the stream"
    equation = ("p = b_i softmax(x P / t) + (1 - b_i) q,  q ~ softmax(f(x)) exp(r),  r <- max(r - c_r/sqrt(i) "
                "(q - a/C), 0),  P <- unit(P - c_w/(t sqrt(i)) (p_P - q) x)")
    hyperparameters = {
        "mix": Hyperparameter(0.8, "b: weight of the learned class vectors at the end of the stream", high=1.0),
        "class_rate": Hyperparameter(0.5, "c_w: step size of the class vectors", high=1e3),
        "prior_rate": Hyperparameter(20.0, "c_r: step size of the label distribution", high=1e4),
        "even": Hyperparameter(1.0, "a: share of a uniform distribution that each class is held to; 0 for none",
                               high=1.0),
        "temperature": Hyperparameter(0.04, "t: what cosines with learned class vectors are divided by", low=1e-4,
                                      high=10.0),
    }
    sees = "stream"

    @property
    def prior(self) -> str:  # type: ignore[override]
        return "uniform" if self.even else "none"

    def infer(self, classifier: Classifier, queries: Queries, prepared: Task) -> Inferred:
        logits = log_scores(classifier, queries)
        if len(queries):
            self.stream(queries.embedding, logits, prototypes(classifier, prepared))
        return Inferred(logits)

    def stream(self, rows: Tensor, logits: Tensor, weights: Tensor) -> None:
        """Replace the classifier's logits (n, classes), in place, by logarithms of the mixed probabilities.

        rows: (n, dim), unit, in the order of the stream. weights: (classes, dim), unit.
        """
        vectors, dual, classes = weights.clone(), torch.zeros_like(weights[:, 0]), len(weights)
        for number, row, scores in in_order(rows, logits, self.progress):
            root = (number + 1) ** 0.5
            mix = self.mix * ((number + 1) / len(rows)) ** 0.5
            even = (scores + dual).softmax(dim=0)
            learned = (vectors @ row / self.temperature).softmax(dim=0)
            dual = (dual - self.prior_rate / root * (even - self.even / classes)).clamp_min_(0)
            step = self.class_rate / (root * self.temperature)
            vectors = unit(vectors.addr_(learned - even, row, alpha=-step))
            scores.copy_((mix * learned + (1 - mix) * even).clamp_min_(torch.finfo(scores.dtype).tiny).log())
