"""DMN: a memory of the stream that every image reads with weights of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.inference.base import Inference, Inferred, Queries, log_scores, prototypes
from onceclip.adapters.inference.memory import Memory
from onceclip.adapters.inference.tda import ORDERS
from onceclip.adapters.inference.views import entropy
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

_TOLD = 64  # images between two reports of progress


class DMN(Inference):
    """The classifier's probabilities plus those of a classifier that each image reads out of the dynamic memory.

    The memory has the class vector and the surest images so far of each predicted class. It is the form of one view.
    The published code picks the weight on test accuracy; here it is 1, or what you say.

    Source: Dual Memory Networks: A Versatile Adaptation Approach for Vision-Language Models (Zhang et al., CVPR 2024),
    equations 3 to 6, without the static memory.
    """

    name = "dmn"
    summary = "DMN: a memory of the stream's sure images, read anew by every image"
    source = "Zhang et al., Dual Memory Networks: A Versatile Adaptation Approach for VLMs, CVPR 2024"
    equation = "p = softmax(f(x)) + a softmax(s v(x) x),  v_c(x) = unit(sum_j exp(-b (1 - x.m_cj)) m_cj)"
    hyperparameters = {
        "weight": Hyperparameter(1.0, "a: weight of the memory's probabilities", high=1e3),
        "sharpness": Hyperparameter(5.5, "b: how fast a remembered image fades with distance", high=1e3),
        "capacity": Hyperparameter(50, "images of each class in the memory", high=1e4),
        **ORDERS,
    }
    sees = "stream"

    def infer(self, classifier: Classifier, queries: Queries, prepared: Task) -> Inferred:
        logits = log_scores(classifier, queries).log_softmax(dim=1)
        kept = 0
        if len(queries):
            kept = self.stream(queries.embedding, logits, prototypes(classifier, prepared), prepared.logit_scale)
        return Inferred(logits, diagnostics={"cached": kept})

    def stream(self, rows: Tensor, logits: Tensor, weights: Tensor, scale: float) -> int:
        """Mix the memory's probabilities into log-probabilities (n, classes) in place; gives the memory's size.

        rows: (n, dim), unit, in the order of the stream. weights: (classes, dim), unit.
        """
        memory = Memory(len(weights), self.capacity, rows[0])
        for number, (row, scores) in enumerate(zip(rows, logits, strict=True)):
            entry = int(scores.argmax()), float(entropy(scores)), row
            if self.enters == "before":
                memory.add(*entry)
            dynamic = scale * read(memory, weights, row, self.sharpness) @ row
            mixed = torch.logaddexp(scores, dynamic.log_softmax(dim=0) + torch.tensor(self.weight).log().to(scores))
            scores.copy_(mixed.log_softmax(dim=0))
            if self.enters == "after":
                memory.add(*entry)
            if number % _TOLD == 0:
                self.progress(number / len(rows))
        return len(memory.keys)


def read(memory: Memory, weights: Tensor, row: Tensor, sharpness: float) -> Tensor:
    """The class vectors (classes, dim), unit, that a row (dim,) reads out of class vectors and memory."""
    found = torch.exp(-sharpness * (1 - weights @ row))[:, None] * weights
    near = torch.exp(-sharpness * (1 - memory.keys @ row))
    return unit(found.index_add_(0, memory.label, near[:, None] * memory.keys))
