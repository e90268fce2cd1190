"""How well a score tells abnormal images from normal ones, whatever threshold would be chosen."""

from __future__ import annotations

import numpy as np

DETECTION = ("auroc", "average_precision")


def auroc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve: how often a positive row scores higher than a negative one, ties counted half.

    score: (n,). positive: (n,) bool. None without rows of both kinds.
    """
    many, few = int(positive.sum()), int((~positive).sum())
    if not many or not few:
        return None
    from scipy.stats import rankdata  # takes a second

    return float((rankdata(score)[positive].sum() - many * (many + 1) / 2) / (many * few))


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
