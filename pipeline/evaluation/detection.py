"""How well a score tells abnormal images from normal ones, whatever threshold would be chosen."""

from __future__ import annotations

import numpy as np

DETECTION = ("auroc", "average_precision")


def auroc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve: how often a positive row scores higher than a negative one, ties counted half.

    score: (n,). positive: (n,) bool. None without rows of both kinds.
    """
    if not positive.any() or positive.all():
        return None
    negative = np.sort(score[~positive])
    lower = sum(np.searchsorted(negative, score[positive], side).sum() for side in ("left", "right"))
    return float(lower / 2 / (positive.sum() * len(negative)))


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
