"""How sure a share of rows is, and whether one classifier is better than another on the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np

RESAMPLES = 10_000
SEED = 1
_ELEMENTS = 1 << 22  # of the largest intermediate array


def interval(total: np.ndarray, size: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of sum(total) / sum(size), units drawn with replacement (Efron, 1979).

    total: (units,) int64, what each unit adds, such as its right rows. size: (units,) int64, rows of each unit.
    A unit is a row, or a group of rows that belong together, which is drawn as a whole.
    Units of equal values are drawn together, as one multinomial number: the distribution is the same, and a million
    rows cost what two kinds cost. 10,000 resamples of a fixed seed, whatever the order of the units.
    """
    code = (total - total.min()) * (size.max() + 1) + size
    _, first, number = np.unique(code, return_index=True, return_counts=True)
    random, units = np.random.default_rng(SEED), len(size)
    step = max(1, _ELEMENTS // len(number))
    found = []
    for start in range(0, RESAMPLES, step):
        drawn = random.multinomial(units, number / units, min(step, RESAMPLES - start))
        found.append((drawn @ total[first]) / (drawn @ size[first]))
    low, high = np.quantile(np.concatenate(found), (0.025, 0.975))
    return float(low), float(high)


def units_of(group: np.ndarray) -> np.ndarray | None:
    """The unit of each row: (rows,) int64, or None where no row has a group.

    group: (rows,) names of groups; a row with an empty one is a unit of its own.
    """
    named = group != ""
    if not named.any():
        return None
    names, place = np.unique(group[named].astype(object), return_inverse=True)
    unit = np.empty(len(group), np.int64)
    unit[named] = place
    unit[~named] = len(names) + np.arange((~named).sum())
    return unit


def row_interval(value: np.ndarray, unit: np.ndarray | None) -> tuple[float, float]:
    """`interval` of the mean of values of rows (rows,), drawn by units (rows,) or, with None, one by one."""
    if unit is None:
        return interval(value.astype(np.int64), np.ones(len(value), np.int64))
    return interval(np.bincount(unit, value).astype(np.int64), np.bincount(unit))


def count_interval(right: int, rows: int) -> tuple[float, float]:
    """`row_interval` of a number of right rows, where no row belongs to another."""
    return row_interval(np.arange(rows) < right, None)


def mean_and_spread(values: np.ndarray, least: float = 0.0) -> dict[str, Any]:
    """Mean of values (n,), such as accuracies of batches, its 95 % interval (Student's t) and their standard deviation.

    The interval of a single value is the value itself, and none goes beyond what a mean can be: from `least` to 1.
    """
    from scipy.stats import t  # takes a second

    mean, spread = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
    half = float(t.ppf(0.975, len(values) - 1)) * spread / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {"mean": mean, "interval": [max(mean - half, least), min(mean + half, 1.0)], "spread": spread}


def compare(right: np.ndarray, other: np.ndarray, unit: np.ndarray | None = None) -> dict[str, Any]:
    """Compare what two classifiers got right of the same rows.

    right, other: (rows,) bool. unit: (rows,) as of `units_of`; rows of one unit are drawn together.
    Gives the difference of accuracies with its 95 % paired bootstrap interval, the numbers of rows that both, only one
    or neither got right, and the two-sided p of McNemar's exact test, which takes rows as independent (McNemar, 1947).
    """
    from scipy.stats import binomtest  # takes a second

    only, only_other = int((right & ~other).sum()), int((~right & other).sum())
    decided = only + only_other
    return {
        "difference": (only - only_other) / len(right),
        "difference_interval": list(row_interval(right.astype(np.int64) - other, unit)),
        "both": int((right & other).sum()), "only_this": only, "only_other": only_other,
        "neither": int((~right & ~other).sum()),
        "p": float(binomtest(only, decided).pvalue) if decided else 1.0,
    }
