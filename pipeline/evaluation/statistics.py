"""Tests for many comparisons: over draws, over images and draws together, and over stores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2, rankdata, studentized_range, ttest_1samp
from scipy.stats import wilcoxon as signed_ranks

from onceclip.pipeline.evaluation.intervals import RESAMPLES, SEED

LEVEL = 0.05
_ELEMENTS = 1 << 22  # of the largest intermediate array


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
    return float(ttest_1samp(values, 0.0).pvalue) if len(values) > 1 and np.ptp(values) > 0 else None


def wilcoxon(differences: Sequence[float]) -> float:
    """Two-sided p of the signed-rank test, zeros split between both sides; exact for few without ties.

    Source: Individual comparisons by ranking methods (Wilcoxon, 1945); over data sets: Demšar (JMLR 2006).
    """
    values = np.round(differences, 12)  # so that what is equal ties
    if not values.any():
        return 1.0
    return float(signed_ranks(values, zero_method="zsplit").pvalue)


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
    ranks = np.apply_along_axis(rankdata, 1, rounded)
    mean = ranks.mean(axis=0)
    between = stores**2 * ((mean - (methods + 1) / 2)**2).sum()
    within = ((ranks - (methods + 1) / 2)**2).sum() / (methods - 1)
    statistic = float(between / within) if within else 0.0
    error = math.sqrt(methods * (methods + 1) / (6 * stores))
    distance = float(studentized_range.ppf(1 - LEVEL, methods, np.inf)) / math.sqrt(2) * error
    apart = np.abs(mean[:, None] - mean[None, :]) / error * math.sqrt(2)
    pairs = np.clip(studentized_range.sf(apart, methods, np.inf), 0.0, 1.0)
    return Ranks(mean, statistic, float(chi2.sf(statistic, methods - 1)), distance, pairs)


def two_way_interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean over draws and images, both drawn with replacement.

    differences: (draws, images) int8, such as the rows that one got right minus those of the other.
    Images whose columns are equal are drawn together, as one multinomial number. 10,000 resamples of a fixed seed.

    Source: The pigeonhole bootstrap (Owen, Annals of Applied Statistics 2007).
    """
    draws, images = differences.shape
    columns, number = np.unique(differences, axis=1, return_counts=True)
    random = np.random.default_rng(SEED)
    found, step = [], max(1, _ELEMENTS // max(len(number), draws))
    for start in range(0, RESAMPLES, step):
        count = min(step, RESAMPLES - start)
        of_images = random.multinomial(images, number / images, count)
        of_draws = random.multinomial(draws, np.full(draws, 1 / draws), count)
        found.append(((of_images @ columns.T.astype(np.float64)) * of_draws).sum(axis=1) / (draws * images))
    low, high = np.quantile(np.concatenate(found), (LEVEL / 2, 1 - LEVEL / 2))
    return float(low), float(high)
