"""Intervals and paired comparisons: what scipy says of the same rows, and what must hold of any."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, bootstrap

from onceclip.pipeline.evaluation.statistics import compare, interval, mean_and_spread, row_interval, units_of
from onceclip.stores import Store


def test_the_interval_of_rows_is_that_of_scipy() -> None:
    right = np.random.default_rng(0).random(400) < 0.8
    reference = bootstrap((right.astype(float),), np.mean, n_resamples=9999, method="percentile", batch=500,
                          random_state=np.random.default_rng(1)).confidence_interval
    assert row_interval(right, None) == pytest.approx((reference.low, reference.high), abs=2 / 400)


def test_the_interval_of_groups_is_that_of_whole_groups_drawn_by_hand() -> None:
    random = np.random.default_rng(2)
    size = random.integers(1, 30, 60)
    total = random.binomial(size, random.choice([0.4, 0.95], 60))
    drawn = random.integers(0, 60, (10_000, 60))
    expected = np.quantile(total[drawn].sum(axis=1) / size[drawn].sum(axis=1), (0.025, 0.975))
    found = interval(total, size)
    assert found == pytest.approx(expected, abs=0.01)
    row_by_row = np.diff(binom.interval(0.95, size.sum(), total.sum() / size.sum())) / size.sum()
    assert found[1] - found[0] > 1.5 * row_by_row


def test_rows_in_any_order_have_the_same_interval() -> None:
    right = np.random.default_rng(3).random(200) < 0.5
    group = np.array([f"video-{number % 17}" for number in range(200)], dtype=object)
    order = np.random.default_rng(4).permutation(200)
    assert row_interval(right[order], None) == row_interval(right, None)
    assert row_interval(right[order], units_of(group[order])) == row_interval(right, units_of(group))


def test_rows_without_a_group_are_drawn_one_by_one() -> None:
    assert units_of(np.full(3, "", object)) is None
    unit = units_of(np.array(["b", "", "a", "b", ""], dtype=object))
    assert unit is not None
    assert len(set(unit.tolist())) == 4
    assert unit[0] == unit[3]


def test_a_million_rows_need_no_million_numbers_per_resample() -> None:
    """10,000 resamples of a million rows would be 10^10 numbers: counts of equal rows are drawn in their place."""
    low, high = row_interval(np.arange(1_000_000) % 10 > 0, None)
    assert low == pytest.approx(0.9 - 1.96 * np.sqrt(0.09 / 1e6), abs=5e-5)
    assert high == pytest.approx(0.9 + 1.96 * np.sqrt(0.09 / 1e6), abs=5e-5)


def test_the_interval_of_batches_ends_where_no_accuracy_can_be() -> None:
    found = mean_and_spread(np.array([1.0, 1.0, 0.9]))
    assert found["interval"] == [pytest.approx(0.9667 - 4.3027 * 0.05774 / 3**0.5, abs=1e-3), 1.0]
    assert mean_and_spread(np.array([0.0, 0.1]))["interval"][0] == 0
    assert mean_and_spread(np.array([0.0, -0.2]), -1.0)["interval"] == [-1.0, 1.0]


def test_an_adapter_is_neither_better_nor_worse_than_itself() -> None:
    right = np.random.default_rng(5).random(50) < 0.7
    found = compare(right, right)
    assert (found["difference"], found["difference_interval"], found["p"]) == (0, [0, 0], 1)
    assert (found["only_this"], found["only_other"]) == (0, 0)
    assert found["both"] + found["neither"] == 50


def test_the_p_of_a_comparison_is_that_of_a_fair_coin() -> None:
    """8 rows that only one got right, 1 that only the other did: 20 of 512 outcomes are as uneven."""
    right = np.array([True] * 8 + [False] + [True] * 5 + [False] * 6)
    other = np.array([False] * 8 + [True] + [True] * 5 + [False] * 6)
    found = compare(right, other)
    assert found["p"] == pytest.approx(20 / 512)
    assert {name: found[name] for name in ("both", "only_this", "only_other", "neither")} == {
        "both": 5, "only_this": 8, "only_other": 1, "neither": 6}
    assert found["difference"] == pytest.approx(7 / 20)
    assert compare(other, right)["p"] == found["p"]
    assert compare(other, right)["difference"] == -found["difference"]


def test_a_paired_interval_is_that_of_differences_drawn_by_hand() -> None:
    random = np.random.default_rng(6)
    right, other = random.random(300) < 0.85, random.random(300) < 0.75
    values = (right.astype(int) - other)[random.integers(0, 300, (10_000, 300))].mean(axis=1)
    assert compare(right, other)["difference_interval"] == pytest.approx(np.quantile(values, (0.025, 0.975)), abs=0.008)


def test_a_paired_interval_draws_whole_groups() -> None:
    """20 videos of 15 frames, won or lost as a whole, are 20 results and not 300."""
    won = np.random.default_rng(7).random(20) < 0.6
    video = np.repeat(np.arange(20), 15)
    right, other = won[video], ~won[video]
    (low, high), whole = compare(right, other)["difference_interval"], compare(right, other, video)
    assert whole["difference_interval"] == pytest.approx(compare(won, ~won)["difference_interval"], abs=0.02)
    assert np.diff(whole["difference_interval"]) > 3 * (high - low)


def test_fit_prints_the_interval_that_evaluate_gives_and_both_say_that_few_images_are_few(
        imported: Store, arrays: dict[str, Any], import_of: Callable[..., Store], run: Callable[..., Any],
        tmp_path: Path) -> None:
    few = import_of({name: values[::2] if len(np.atleast_1d(values)) == 200 else values
                     for name, values in arrays.items()}, "few")
    assert 0 < len(few.rows("test")) < 30 < len(imported.rows("test"))
    for store in (imported, few):
        out = tmp_path / store.fingerprint
        said = [run(*command).stdout for command in (
            ("fit", store.path, "--method", "gda", "--shots", 2, "--out", out), ("evaluate", out, store.path))]
        intervals = [re.findall(r"95 % interval (\S+ %) to (\S+ %)", each) for each in said]
        assert intervals[0] == intervals[1]
        assert len(intervals[0]) == 1
        assert ["too few images" in each for each in said] == [store is few] * 2
