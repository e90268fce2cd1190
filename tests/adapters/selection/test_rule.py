"""The rule that chooses hyperparameters: calibrated cross-entropy, and evidence before a default is left."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from onceclip.adapters import Rows
from onceclip.adapters.selection import rule
from onceclip.adapters.selection.rule import (
    Race,
    best_temperature,
    best_weight,
    calibrated_loss,
    departure,
    weights_to_try,
)


def noise(rows, classes, seed=0):
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_loss_is_the_cross_entropy_at_the_best_temperature(scale):
    label = torch.arange(30) % 5
    logits = scale * (noise(30, 5) + one_hot(label, 5))
    expected = cross_entropy(logits.double() / best_temperature(logits, label), label, reduction="none")
    torch.testing.assert_close(calibrated_loss(logits, label), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_loss_is_finite_where_all_rows_are_right_or_all_are_wrong(sign):
    label = torch.arange(4)
    assert torch.isfinite(calibrated_loss(sign * 50 * torch.eye(4), label)).all()


def test_leaving_a_default_by_a_factor_costs_the_same_in_both_directions():
    defaults = {"alpha": 2.0, "epochs": 100}
    assert departure(defaults, defaults) == 0.0
    assert departure({"alpha": 2 * math.e, "epochs": 100}, defaults) == pytest.approx(0.5)
    assert departure({"alpha": 2 / math.e, "epochs": 100}, defaults) == pytest.approx(0.5)
    assert departure({"alpha": 4.0, "epochs": 25}, defaults) == pytest.approx((1 + 4) * math.log(2)**2 / 2)


def test_a_default_that_is_wrong_by_orders_of_magnitude_can_be_left():
    assert departure({"alpha": 1e6}, {"alpha": 1.0}) == departure({"alpha": 1e-6}, {"alpha": 1.0}) == 4.0


@pytest.mark.parametrize(("value", "default"), [(0.0, 0.1), (0.1, 0.0), ("text", "full"), (True, False)])
def test_a_value_without_a_ratio_to_its_default_costs_as_much_as_a_factor_of_e(value, default):
    assert departure({"name": value}, {"name": default}) == 0.5


def test_weights_are_powers_of_two_times_the_default_between_the_bounds():
    assert weights_to_try(0.5, 0.0, 1.0) == [2.0**power for power in range(-7, 1)]
    assert weights_to_try(1.0, 0.0, 5.0)[-3:] == [2.0, 4.0, 5.0]
    assert weights_to_try(1.0, 0.3, 3.0) == [0.5, 1.0, 2.0, 3.0]
    assert 0.0 in weights_to_try(0.0, 0.0, 8.0)


def test_without_rows_the_default_stays():
    nothing = torch.empty(0, 3)
    found = best_weight(nothing, nothing, torch.empty(0, dtype=torch.long), 0.02, high=10.0)
    assert (found.weight, found.cost, found.accuracy) == (0.02, 0.0, 0.0)


def test_a_weight_that_changes_nothing_stays_at_its_default():
    label = torch.arange(20) % 4
    assert best_weight(noise(20, 4), torch.zeros(20, 4), label, 0.3, high=10.0).weight == 0.3


def test_the_same_evidence_moves_the_weight_further_with_more_rows():
    label = torch.arange(12) % 4
    first, second = 2 * noise(12, 4), 0.2 * (noise(12, 4, 1) + 3 * one_hot(label, 4))
    few, many = (best_weight(first.repeat(times, 1), second.repeat(times, 1), label.repeat(times), 1.0).weight
                 for times in (1, 50))
    assert 1.0 < few < many


def test_the_search_finds_what_trying_every_weight_would():
    """It stops where the loss rises, which is safe because there is one valley."""
    for seed in range(8):
        label = torch.arange(40) % 4
        first, second = noise(40, 4, seed) + one_hot(label, 4), noise(40, 4, seed + 50) + seed * one_hot(label, 4) / 4
        found = best_weight(first, second, label, 0.5, high=100.0)
        costs = [float(calibrated_loss(first + weight * second, label).sum())
                 + departure({"weight": weight}, {"weight": 0.5}) for weight in weights_to_try(0.5, 0.0, 100.0)]
        assert found.cost <= min(costs) + 1e-3


def test_of_many_rows_some_that_are_evenly_spread_choose(monkeypatch):
    monkeypatch.setattr(rule, "LOGITS", 40)
    rows = Rows(torch.randn(50, 3), torch.arange(50) % 4)
    assert torch.equal(rule.some_rows(rows, 4).label, rows.label[::5])
    assert rule.some_rows(rows, 0) is rows


def test_a_text_that_knows_nothing_is_overruled():
    label = torch.arange(40) % 4
    first, second = 10 * noise(40, 4), noise(40, 4, 1) + 3 * one_hot(label, 4)
    found = best_weight(first, second, label, 0.02)
    assert found.accuracy > 0.8
    assert found.low <= found.weight <= found.high


def test_the_weight_does_not_leave_its_bounds():
    label = torch.arange(40) % 4
    assert best_weight(noise(40, 4), one_hot(label, 4).float(), label, 0.5, high=1.0).weight == 1.0
    assert best_weight(one_hot(label, 4).float(), noise(40, 4), label, 0.5, low=0.4).weight >= 0.4


@pytest.mark.parametrize("high", [2.0, math.inf])
@pytest.mark.parametrize("rows", [3, 40, 600])
@pytest.mark.parametrize("knows", [0.0, 0.3, 3.0])
def test_a_setting_is_passed_over_only_where_its_best_weight_would_lose(rows, knows, high):
    """With many rows some are; all have what all classes have alike, and some change nothing."""
    label, passed = torch.arange(rows) % 4, 0
    first = 3 * noise(rows, 4) + one_hot(label, 4)
    race, found = Race(label, 0.5, high=high), []
    for setting in range(30):
        second = noise(rows, 4, setting) * (setting % 5) + knows * (15 - abs(setting - 15)) * one_hot(label, 4) + 50.0
        charge = 0.1 * (setting % 3)
        alone = best_weight(first, second, label, 0.5, high=high).cost + charge
        found.append((race.weigh(first, second, charge), alone))
        passed += math.isnan(found[-1][0].accuracy)
        assert found[-1][0].cost <= alone + 1e-2
        assert found[-1][0].cost > alone - 1e-2 or math.isnan(found[-1][0].accuracy)
    best = min((each for each, _ in found), key=lambda each: each.cost)
    assert not math.isnan(best.accuracy)
    assert best.cost == pytest.approx(min(alone for _, alone in found), abs=1e-2)
    assert passed or rows < 600 or not knows


def test_a_setting_without_finite_logits_does_not_spoil_the_ones_behind_it():
    label = torch.arange(400) % 4
    first, good = noise(400, 4), noise(400, 4, 1) + 3 * one_hot(label, 4)
    race = Race(label, 0.5, high=10.0)
    costs = [race.weigh(first, second).cost for second in (noise(400, 4, 2), good * math.nan, good)]
    assert costs[2] == pytest.approx(best_weight(first, good, label, 0.5, high=10.0).cost, abs=1e-2)
    assert costs[2] < costs[0]
