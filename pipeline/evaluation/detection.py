"""How well a score tells abnormal images from normal ones, whatever threshold would be chosen."""

from __future__ import annotations

import numpy as np

DETECTION = ("auroc", "average_precision")


def auroc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve: how often a positive row scores higher than a negative one, ties counted half.

    score: (n,). positive: (n,) bool. None without rows of both kinds.
    """
    return weighted_auroc(score, positive, ~positive)


def weighted_auroc(score: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float | None:
    """The same where each score is that of so many positive and so many negative things, such as pixels: (n,) each."""
    levels, place = np.unique(score, return_inverse=True)
    many, few = (np.bincount(place, each, len(levels)) for each in (positive, negative))
    if not many.sum() or not few.sum():
        return None
    return float((many * (np.cumsum(few) - few / 2)).sum() / (many.sum() * few.sum()))


def average_precision(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Mean over the positive rows of the precision at their score; rows of equal score come together.

    score: (n,). positive: (n,) bool. None without rows of both kinds.
    """
    if not positive.any() or positive.all():
        return None
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.diff(score[order], append=np.nan) != 0)
    right = np.cumsum(positive[order])[ends]
    return float((np.diff(right, prepend=0) * right / (ends + 1)).sum() / positive.sum())
