"""Probabilities that are as sure as they are right, by one temperature; and sets of classes made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError, unknown
from onceclip.adapters.heads.batched import batched_logits
from onceclip.adapters.method import Method
from onceclip.adapters.ops import are_tied
from onceclip.adapters.selection.rule import LOGITS, best_temperature, some_rows
from onceclip.adapters.task import Task

VALIDATION, LEFT_OUT, HELD_OUT = "val", "loo", "held-out"
KINDS = ("lac", "aps")
_PIECE = 2**20  # logits that are looked at in one go: 8 MiB in float64
_MOST = 499  # scores that an adapter keeps; of more, each stands for those below it
_DIGITS = 1e8


def calibrated(classifier: Classifier, method: Method, task: Task) -> Classifier:
    """Give a fitted classifier its temperature and the scores of prediction sets, from rows that fitting may look at.

    These are the task's validation rows; without them the support, every image scored as if it were not in it, where
    the method can do that, none is a copy of another or of its group, and their logits have no more than 2**27
    elements; else it stays uncalibrated. Validation rows that chose hyperparameters too make it a little too sure.

    method: of the classifier's kind, with any values.
    """
    method = method.with_values(**{name: classifier.hyperparameters[name] for name in method.values})
    if task.val is not None and len(task.val):
        rows = some_rows(task.val, task.classes)
        logits, = batched_logits([classifier.head], method.rows_of(rows))
        return on_rows(classifier, logits, rows.label, VALIDATION)
    if not 0 < len(task.support) * task.classes <= LOGITS:
        return classifier
    try:
        method.check_left_out(task)
        if are_tied(task.support.embedding, task.support.group):
            return classifier
        logits = method.left_out_logits(method.prepare(task))
    except MethodError:  # no such form, or not for this support, or rows that are streamed
        return classifier
    return on_rows(classifier, logits, task.support.label, LEFT_OUT)


def on_rows(classifier: Classifier, logits: Tensor, label: Tensor, rows: str) -> Classifier:
    """Give a classifier the temperature that suits some rows, and the scores that prediction sets are made of.

    logits: (n, classes), the classifier's own. label: (n,). rows: which they are, for `calibrated_on`.
    """
    temperature = best_temperature(logits, label)
    return replace(classifier, temperature=temperature, calibrated_on=rows,
                   conformity=conformity(logits, label, temperature))


def conformity(logits: Tensor, label: Tensor, temperature: float, seed: int = 0) -> dict[str, list[float]]:
    """How little the true classes of rows conform, by kind and in ascending order; at most 499 of each.

    logits: (rows, classes), of rows that the classifier was not fitted on. label: (rows,). seed: of the random shares.
    lac: `1 - p_y` (Sadinle, Lei and Wasserman, JASA 2019). aps: `sum of p_c, p_c >= p_y, less u p_y` with u uniform on
    [0, 1), the randomized score of Romano, Sesia and Candès (NeurIPS 2020, equation 7). Without the random share, sets
    of a classifier that is mostly right are far too large: its threshold is near one, and so are sums of few classes.
    """
    share = random_shares(f"{seed} of those that calibrate {number}" for number in range(len(label))).to(logits.device)
    own, rows = label.to(logits.device)[:, None], max(1, _PIECE // logits.shape[1])
    found = share.new_empty(len(KINDS), len(label))  # filled in place, as in `best_temperature`
    for start in range(0, len(label), rows):
        piece = slice(start, start + rows)
        found[:, piece] = _of_own(logits[piece], own[piece], share[piece], temperature)
    return {kind: _thinned([math.ceil(score * _DIGITS) / _DIGITS for score in scores.sort().values.tolist()])
            for kind, scores in zip(KINDS, found, strict=True)}


def random_shares(keys: Iterable[str]) -> Tensor:
    """A number in [0, 1) for every key, the same on every machine: (keys,) float64."""
    return torch.tensor([int.from_bytes(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=6).digest())
                         / 2**48 for key in keys], dtype=torch.float64)


def _of_own(logits: Tensor, own: Tensor, share: Tensor, temperature: float) -> Tensor:
    """Scores of the true classes (rows, 1), of both kinds: (kinds, rows); without sorting, as for `_summed`."""
    probability = (logits.double() / temperature).softmax(dim=1)
    mine = probability.gather(1, own)
    first = torch.arange(logits.shape[1], device=logits.device) <= own  # of equal ones, those that stand in front count
    higher = (probability > mine) | ((probability == mine) & first)
    return torch.stack([1 - mine[:, 0], (probability * higher).sum(dim=1) - share * mine[:, 0]])


def _summed(probability: Tensor, share: Tensor) -> Tensor:
    """The sum of each class's probability and all higher ones, less a share of its own: (rows, classes)."""
    values, order = probability.sort(dim=1, descending=True, stable=True)
    behind = values.cumsum(dim=1) - share.to(values.device)[:, None] * values
    return torch.empty_like(values).scatter_(1, order, behind)


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

    def members(self, logits: Tensor, keys: Sequence[str] | None = None) -> Tensor:
        """Whether each class is in the set of each row: (rows, classes) bool.

        logits: (rows, classes). keys: of the rows, which decide their random shares in sets of "aps"; their places
        where there are none.
        """
        probability = (logits.double() / self.temperature).softmax(dim=1)
        if self.kind == "lac":
            score = 1 - probability
        else:
            score = _summed(probability, random_shares(map(str, range(len(logits)) if keys is None else keys)))
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
