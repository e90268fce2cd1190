"""Tests of many comparisons: worked examples of the literature, and what must hold of any numbers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import friedmanchisquare

from onceclip.pipeline.evaluation.statistics import friedman, holm, paired_t, two_way_interval, wilcoxon

VALUES = np.round(np.random.default_rng(5).normal([0.0, 0.6, 0.1, 0.8], 0.5, (14, 4)), 1)  # with ties


@pytest.mark.parametrize(("methods", "quantile"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_is_that_of_the_published_table(methods: int, quantile: float) -> None:
    """Demšar (JMLR 2006), table 5 (a), at the level 0.05."""
    values = np.tile(np.arange(methods, dtype=float), (14, 1))
    found = friedman(values)
    assert found.distance == pytest.approx(quantile * np.sqrt(methods * (methods + 1) / (6 * 14)), rel=1e-3)
    assert found.mean.tolist() == list(range(methods, 0, -1))  # the highest is the first


def test_two_methods_as_far_apart_as_the_critical_difference_have_a_p_of_the_level() -> None:
    found = friedman(VALUES)
    apart = np.abs(found.mean[:, None] - found.mean[None, :])
    assert ((found.pairs < 0.05) == (apart > found.distance)).all()
    assert (found.pairs < 0.05).any()
    assert np.array_equal(found.pairs, found.pairs.T)
    assert np.diag(found.pairs) == pytest.approx(1.0)


def test_friedman_is_scipys_with_its_correction_for_ties() -> None:
    expected = friedmanchisquare(*VALUES.T)
    found = friedman(VALUES)
    assert (found.statistic, found.p) == pytest.approx((expected.statistic, expected.pvalue))


def test_of_losses_the_least_has_the_first_rank_and_of_all_equal_nothing_is_found() -> None:
    assert friedman(-VALUES, lower=True).mean == pytest.approx(friedman(VALUES).mean)
    same = friedman(np.full((5, 3), 0.5))
    assert (same.statistic, same.p, same.mean.tolist()) == (0.0, 1.0, [2.0, 2.0, 2.0])


def test_holm_gives_the_textbooks_numbers_in_the_order_of_the_tests() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_signed_rank_test_is_exact_for_few_and_knows_what_is_equal() -> None:
    assert wilcoxon([0.01, 0.02, 0.03, 0.04, 0.05, 0.06]) == pytest.approx(2 / 2**6)
    assert wilcoxon([0.0] * 8) == 1.0
    assert wilcoxon([0.1 + 0.2 - 0.3, 0.01, -0.02, 0.03, 0.04, 0.05, 0.06]) < 1.0


def test_differences_without_spread_have_no_p() -> None:
    assert paired_t([0.1]) is None
    assert paired_t([0.1, 0.1, 0.3 - 0.2]) is None
    assert paired_t([1.0, 2.0, 3.0]) == pytest.approx(0.0741799, abs=1e-6)


def test_the_bootstrap_over_draws_and_images_is_the_one_written_down_plainly() -> None:
    random = np.random.default_rng(0)
    values = (random.random((3, 40)) < 0.3).astype(np.int8) - (random.random((3, 40)) < 0.2).astype(np.int8)
    plain = [values[np.ix_(random.integers(3, size=3), random.integers(40, size=40))].mean() for _ in range(4_000)]
    assert two_way_interval(values) == pytest.approx(np.quantile(plain, (0.025, 0.975)), abs=0.03)


def test_an_interval_over_draws_and_images_is_wider_than_that_over_one_of_them() -> None:
    random = np.random.default_rng(1)
    values = np.repeat((random.random((1, 300)) < 0.3).astype(np.int8), 4, axis=0)
    values[2:, :100] = -1  # the draws differ
    both, images = two_way_interval(values), two_way_interval(values[:1])
    draws = two_way_interval(np.repeat(values.mean(axis=1)[:, None], 300, axis=1))
    widths = [high - low for low, high in (both, images, draws)]
    assert widths[0] > max(widths[1:])
    assert two_way_interval(np.ones((3, 5), np.int8)) == (1.0, 1.0)
    frames = np.repeat(values, 5, axis=1)  # of videos that are won or lost as a whole
    assert two_way_interval(frames, np.repeat(np.arange(300), 5)) == pytest.approx(both)
