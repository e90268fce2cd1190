"""Two classifiers on the same rows: is one better?"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import binomtest

from onceclip.pipeline.bootstrap import row_interval


def compare(right: np.ndarray, other: np.ndarray, unit: np.ndarray | None = None) -> dict[str, Any]:
    """Compare what two classifiers got right of the same rows.

    right, other: (rows,) bool. unit: (rows,) as of `bootstrap.units_of`; rows of one unit are drawn together.
    Gives the difference of accuracies with its 95 % paired bootstrap interval, the numbers of rows that both, only one
    or neither got right, and the two-sided p of McNemar's exact test, which takes rows as independent (McNemar, 1947).
    """
    only, only_other = int((right & ~other).sum()), int((~right & other).sum())
    decided = only + only_other
    return {
        "difference": (only - only_other) / len(right),
        "difference_interval": list(row_interval(right.astype(np.int64) - other, unit)),
        "both": int((right & other).sum()), "only_this": only, "only_other": only_other,
        "neither": int((~right & ~other).sum()),
        "p": float(binomtest(only, decided).pvalue) if decided else 1.0,
    }
