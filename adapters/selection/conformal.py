"""Prediction sets: so many classes that the true one is among them with the probability that was asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError, unknown

KINDS = ("lac", "aps")
_MOST = 499  # scores that an adapter keeps; of more, each stands for those below it
_DIGITS = 1e8


def conformity(logits: Tensor, label: Tensor, temperature: float) -> dict[str, list[float]]:
    """How little the true classes of rows conform, by kind and in ascending order; at most 499 of each.

    logits: (rows, classes), of rows that the classifier was not fitted on. label: (rows,).
    lac: `1 - p_y` (Sadinle, Lei and Wasserman, JASA 2019). aps: the probabilities of all that are more likely and half
    of the class's own: the mean of the randomized score of Romano, Sesia and Candès (NeurIPS 2020, equation 7), so that
    a row has one set; with all of it, sets of a classifier that is mostly right would be far too large.
    """
    probability = (logits.double() / temperature).softmax(dim=1)
    own = label.to(logits.device)[:, None]
    found = {"lac": 1 - probability.gather(1, own)[:, 0], "aps": _summed(probability).gather(1, own)[:, 0]}
    return {kind: _thinned([math.ceil(score * _DIGITS) / _DIGITS for score in scores.sort().values.tolist()])
            for kind, scores in found.items()}


def _summed(probability: Tensor) -> Tensor:
    """The sum of all probabilities higher than each class's, and half of its own: (rows, classes)."""
    values, order = probability.sort(dim=1, descending=True, stable=True)
    return torch.empty_like(values).scatter_(1, order, values.cumsum(dim=1) - values / 2)


def _thinned(scores: list[float]) -> list[float]:
    """Some of many scores, so that a quantile of them is never below that of all."""
    n = len(scores)
    if n <= _MOST:
        return scores
    return [scores[min(math.ceil(place * (n + 1) / (_MOST + 1)), n) - 1] for place in range(1, _MOST + 1)]


@dataclass(frozen=True)
class SetRule:
    """Which classes are in a set: those whose score is not above a threshold, and the most likely one.

    kind: "lac" or "aps". coverage: the least probability that the true class is in the set. threshold: infinite where
    there were too few rows to promise it, which makes every set all classes.
    """

    kind: str
    coverage: float
    threshold: float
    temperature: float

    def members(self, logits: Tensor) -> Tensor:
        """Whether each class is in the set of each row: (rows, classes) bool. logits: (rows, classes)."""
        probability = (logits.double() / self.temperature).softmax(dim=1)
        score = 1 - probability if self.kind == "lac" else _summed(probability)
        inside = score <= self.threshold + 1 / _DIGITS
        return inside.scatter(1, logits.argmax(dim=1, keepdim=True), True)

    def as_values(self) -> dict[str, Any]:
        """As JSON values; the threshold is None where it is infinite."""
        return {"kind": self.kind, "coverage_asked": self.coverage,
                "threshold": self.threshold if math.isfinite(self.threshold) else None}


def set_rule(classifier: Classifier, coverage: float, kind: str = KINDS[0]) -> SetRule:
    """The rule of a classifier's sets: the ceil((n + 1) coverage)-th of its n scores is the threshold.

    The promise is one of a mean over rows like those that calibrated it (Vovk et al., 2005), not of every class.
    Raises MethodError for a classifier without scores.

    Example:
        >>> fitted = onceclip.fit(store, "gda", shots=4, select="val")
        >>> onceclip.adapters.set_rule(fitted.classifier, 0.9).members(fitted.classifier.logits(embeddings)).shape
        torch.Size([5, 4])
    """
    if kind not in KINDS:
        raise MethodError(unknown("kind of sets", kind, KINDS))
    if not (isinstance(coverage, int | float) and 0 < coverage < 1):
        raise MethodError(f"coverage {coverage}: give a probability between 0 and 1, such as 0.9")
    scores: Sequence[float] = classifier.conformity.get(kind, ())
    if not scores:
        raise MethodError(f"this {classifier.method} has no scores to make sets with: fit it again, where there are "
                          "validation images, or four training images of each class and a method that leaves one out; "
                          "a merge without validation images, what --inference saved, and an adapter given other "
                          "classes have none")
    place = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return SetRule(kind, float(coverage), scores[place - 1] if place <= len(scores) else math.inf,
                   classifier.temperature)
