"""DMN: memories of the stream and of the support that every image reads with weights of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError
from onceclip.adapters.inference.base import Inference, Inferred, Queries, log_scores, prototypes
from onceclip.adapters.inference.stream import ORDERS, Memory, in_order
from onceclip.adapters.inference.views import entropy
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter


class DMN(Inference):
    """The classifier's probabilities plus those of classifiers that each image reads out of two memories.

    The dynamic memory has the class vector and the surest images so far of each predicted class; the static one, where
    `static` is above 0, has the class vector and the labelled images that the classifier was fitted on. It is the form
    of one view, without training. The published code picks both weights on test accuracy; here they are what you say.

    Source: Dual Memory Networks: A Versatile Adaptation Approach for Vision-Language Models (Zhang et al., CVPR 2024),
    equations 3 to 6.
    """

    name = "dmn"
    summary = "DMN: a memory of the stream's sure images, read anew by every image"
    equation = ("p = softmax(f(x)) + a softmax(s v(x) x) + a' softmax(s v'(x) x),  "
                "v_c(x) = unit(sum_j exp(-b (1 - x.m_cj)) m_cj)")
    hyperparameters = {
        "weight": Hyperparameter(1.0, "a: weight of the dynamic memory's probabilities", high=1e3),
        "static": Hyperparameter(0.0, "a': weight of the probabilities of the static memory, which the support of an "
                                 "adapter is", high=1e3),
        "sharpness": Hyperparameter(5.5, "b: how fast a remembered image fades with distance", high=1e3),
        "capacity": Hyperparameter(50, "images of each class in the memory", high=1e4),
        **ORDERS,
    }
    sees = "stream"

    @property
    def wants_support(self) -> bool:
        return bool(self.static > 0)

    def infer(self, classifier: Classifier, queries: Queries, prepared: Task) -> Inferred:
        logits, support = log_scores(classifier, queries).log_softmax(dim=1), prepared.support
        if self.wants_support and not len(support):
            raise MethodError(f"{self.name} with static={self.static:g} reads the labelled images that an adapter was "
                              f"fitted on, and {classifier.method} has none here: fit it with --shots on a store with "
                              "class prompts, or leave static at 0")
        kept = 0
        if len(queries):
            kept = self.stream(queries.embedding, logits, prototypes(classifier, prepared), prepared.logit_scale,
                               support.unit.to(logits), support.label)
        static = {"static": len(support)} if self.wants_support else {}
        return Inferred(logits, diagnostics={"cached": kept, **static})

    def stream(self, rows: Tensor, logits: Tensor, weights: Tensor, scale: float, keys: Tensor, label: Tensor) -> int:
        """Mix the memories' probabilities into log-probabilities (n, classes) in place; gives the dynamic one's size.

        rows: (n, dim), unit, in the order of the stream. weights: (classes, dim), unit. keys: (m, dim), unit, of the
        static memory, and their label (m,).
        """
        memory = Memory(len(weights), self.capacity, rows[0])
        shares = torch.tensor([1.0, self.weight, self.static][:2 + self.wants_support]).log().to(logits)[:, None]
        for _, row, scores in in_order(rows, logits, self.progress):
            entry = int(scores.argmax()), float(entropy(scores)), row
            if self.enters == "before":
                memory.add(*entry)
            read = [(memory.keys, memory.label), *[(keys, label)] * self.wants_support]
            parts = [scores, *((scale * vectors(*each, weights, row, self.sharpness) @ row).log_softmax(dim=0)
                               for each in read)]
            mixed = (torch.stack(parts) + shares).logsumexp(dim=0)
            scores.copy_(mixed.log_softmax(dim=0))
            if self.enters == "after":
                memory.add(*entry)
        return len(memory.keys)


def vectors(keys: Tensor, label: Tensor, weights: Tensor, row: Tensor, sharpness: float) -> Tensor:
    """The class vectors (classes, dim), unit, that a row (dim,) reads out of class vectors and a memory's keys."""
    found = torch.exp(-sharpness * (1 - weights @ row))[:, None] * weights
    near = torch.exp(-sharpness * (1 - keys @ row))
    return unit(found.index_add_(0, label, near[:, None] * keys))
