"""The best patch of every class: what retrieval by parts starts from."""

from __future__ import annotations

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.inference.base import Inference, Inferred, Queries
from onceclip.adapters.inference.views import patches_of, scores_of


class PatchMax(Inference):
    """Each class scores as the patch of the image that looks most like it: for small objects.

    Source: the baseline of FOR: Finetuning for Object Level Open Vocabulary Image Retrieval (Levi et al., 2024).
    """

    name = "patch-max"
    summary = "every class scores as its best patch does"
    equation = "logits_c = max_p f_c(x_p)"
    sees = "patches"

    def infer(self, classifier: Classifier, queries: Queries, prepared: object) -> Inferred:
        return Inferred(scores_of(classifier, patches_of(queries)).amax(dim=1))
