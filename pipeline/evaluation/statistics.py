"""How sure a share of rows or a mean of runs is, and which differences are more than luck."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
import scipy  # whose statistics are loaded when they are first used, which takes a second

RESAMPLES = 10_000
SEED = 1
LEVEL = 0.05
_ELEMENTS = 1 << 22  # of the largest intermediate array


@dataclass(frozen=True)
class Mean:
    """Mean over runs. half_width: of its 95 % interval (Student's t), None for a single run. runs: their number."""

    value: float
    half_width: float | None
    runs: int


def mean_interval(values: Sequence[float], interval: bool = True) -> Mean:
    """Mean of values with its 95 % interval. interval: whether the values are of draws, so that they have one."""
    if len(values) < 2 or not interval:
        return Mean(fmean(values), None, len(values))
    return Mean(fmean(values), _half_width(stdev(values), len(values)), len(values))


def mean_and_spread(values: np.ndarray, least: float = 0.0) -> dict[str, Any]:
    """Mean of values (n,), such as accuracies of batches, its 95 % interval (Student's t) and their standard deviation.

    The interval of a single value is the value itself, and none goes beyond what a mean can be: from `least` to 1.
    """
    mean, spread = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
    half = _half_width(spread, len(values)) if len(values) > 1 else 0.0
    return {"mean": mean, "interval": [max(mean - half, least), min(mean + half, 1.0)], "spread": spread}


def _half_width(deviation: float, values: int) -> float:
    """Half of the 95 % interval of a mean of values with a standard deviation, by Student's t."""
    return float(scipy.stats.t.ppf(0.975, values - 1)) * deviation / math.sqrt(values)


def interval(total: np.ndarray, size: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of sum(total) / sum(size), units drawn with replacement (Efron, 1979).

    total: (units,) int64, what each unit adds, such as its right rows. size: (units,) int64, rows of each unit.
    A unit is a row, or a group of rows that belong together, which is drawn as a whole.
    Units of equal values are drawn together, as one multinomial number: the distribution is the same, and a million
    rows cost what two kinds cost. 10,000 resamples of a fixed seed, whatever the order of the units.
    """
    code = (total - total.min()) * (size.max() + 1) + size
    _, first, number = np.unique(code, return_index=True, return_counts=True)

    def resample(random: np.random.Generator, times: int) -> np.ndarray:
        drawn = random.multinomial(len(size), number / len(size), times)
        return (drawn @ total[first]) / (drawn @ size[first])

    return _bootstrap(resample, len(number))


def _bootstrap(resample: Callable[[np.random.Generator, int], np.ndarray], width: int) -> tuple[float, float]:
    """Percentiles of resampled values. resample: gives so many of them (times,) from arrays (times, width)."""
    random, step = np.random.default_rng(SEED), max(1, _ELEMENTS // width)
    found = [resample(random, min(step, RESAMPLES - start)) for start in range(0, RESAMPLES, step)]
    low, high = np.quantile(np.concatenate(found), (LEVEL / 2, 1 - LEVEL / 2))
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


def compare(right: np.ndarray, other: np.ndarray, unit: np.ndarray | None = None) -> dict[str, Any]:
    """Compare what two classifiers got right of the same rows.

    right, other: (rows,) bool. unit: (rows,) as of `units_of`; rows of one unit are drawn together.
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
        "p": float(scipy.stats.binomtest(only, decided).pvalue) if decided else 1.0,
    }


def holm(p: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that the chance of any false one is kept.

    Source: A simple sequentially rejective multiple test procedure (Holm, 1979).
    """
    order, adjusted, least = np.argsort(p, kind="stable"), [0.0] * len(p), 0.0
    for place, index in enumerate(order):
        least = max(least, min(1.0, (len(p) - place) * float(p[index])))
        adjusted[index] = least
    return adjusted


def paired_t(differences: Sequence[float]) -> float | None:
    """Two-sided p of Student's paired t-test (Student, 1908); None where differences have no spread to go by."""
    values = np.round(differences, 12)  # what differs in last digits alone has none
    return float(scipy.stats.ttest_1samp(values, 0.0).pvalue) if len(values) > 1 and np.ptp(values) > 0 else None


def wilcoxon(differences: Sequence[float]) -> float:
    """Two-sided p of the signed-rank test, zeros split between both sides; exact for few without ties.

    Source: Individual comparisons by ranking methods (Wilcoxon, 1945); over data sets: Demšar (JMLR 2006).
    """
    values = np.round(differences, 12)  # so that what is equal ties
    if not values.any():
        return 1.0
    return float(scipy.stats.wilcoxon(values, zero_method="zsplit").pvalue)


@dataclass(frozen=True)
class Ranks:
    """Friedman's test of methods over stores. mean: (methods,) mean ranks, 1 the best. statistic: chi-squared.

    distance: of mean ranks that tells two methods apart (Nemenyi). pairs: (methods, methods) p of each pair.
    """

    mean: np.ndarray
    statistic: float
    p: float
    distance: float
    pairs: np.ndarray


def friedman(values: np.ndarray, lower: bool = False) -> Ranks:
    """Rank methods over stores, and compare each pair of them.

    values: (stores, methods); ties share their ranks. lower: the least is the best.
    Source: Friedman (1937), with its correction for ties, and Nemenyi (1963), as Demšar (JMLR 2006) describes them.
    """
    stores, methods = values.shape
    rounded = np.round(values if lower else -values, 12)
    ranks = np.apply_along_axis(scipy.stats.rankdata, 1, rounded)
    mean = ranks.mean(axis=0)
    between = stores**2 * ((mean - (methods + 1) / 2)**2).sum()
    within = ((ranks - (methods + 1) / 2)**2).sum() / (methods - 1)
    statistic = float(between / within) if within else 0.0
    error = math.sqrt(methods * (methods + 1) / (6 * stores))
    distance = float(scipy.stats.studentized_range.ppf(1 - LEVEL, methods, np.inf)) / math.sqrt(2) * error
    apart = np.abs(mean[:, None] - mean[None, :]) / error * math.sqrt(2)
    pairs = np.clip(scipy.stats.studentized_range.sf(apart, methods, np.inf), 0.0, 1.0)
    return Ranks(mean, statistic, float(scipy.stats.chi2.sf(statistic, methods - 1)), distance, pairs)


def two_way_interval(differences: np.ndarray, unit: np.ndarray | None = None) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean over draws and images, both drawn with replacement.

    differences: (draws, images) int8, such as the rows that one got right minus those of the other. unit: (images,) as
    of `units_of`; images of one unit are drawn together.
    Units whose columns are equal are drawn together, as one multinomial number. 10,000 resamples of a fixed seed.

    Source: The pigeonhole bootstrap (Owen, Annals of Applied Statistics 2007).
    """
    draws, images = differences.shape
    place = np.arange(images) if unit is None else unit
    totals = np.stack([np.bincount(place, each) for each in (*differences, np.ones(images))])  # the last: images
    columns, number = np.unique(totals, axis=1, return_counts=True)

    def resample(random: np.random.Generator, times: int) -> np.ndarray:
        of_units = random.multinomial(number.sum(), number / number.sum(), times)
        of_draws = random.multinomial(draws, np.full(draws, 1 / draws), times)
        sums = of_units @ columns.T
        return (sums[:, :-1] * of_draws).sum(axis=1) / (draws * sums[:, -1])

    return _bootstrap(resample, max(len(number), draws))
