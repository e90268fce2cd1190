"""Prediction sets hold the true class as often as was asked for, on rows like those that calibrated them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from onceclip.adapters import AdapterFileError, Classifier, MethodError, load_classifier, set_rule
from onceclip.adapters.heads import Linear
from onceclip.adapters.selection.calibration import KINDS, conformity, random_shares


def classifier_of(scores: dict[str, list[float]], temperature: float = 1.0, classes: int = 3) -> Classifier:
    return Classifier(Linear(torch.eye(classes)), tuple("abcdefghij"[:classes]), classes, "gda",
                      temperature=temperature, calibrated_on="val", conformity=scores)


def test_scores_and_sets_are_those_that_one_works_out_by_hand() -> None:
    logits = torch.tensor([[.5, .3, .2], [.1, .3, .6]]).log()
    found = conformity(logits, torch.tensor([1, 2]), 1.0)
    assert found["lac"] == pytest.approx([0.4, 0.7], abs=1e-6)
    u = random_shares(["0 of those that calibrate 0", "0 of those that calibrate 1"]).tolist()
    assert found["aps"] == pytest.approx(sorted([0.8 - 0.3 * u[0], 0.6 - 0.6 * u[1]]), abs=1e-6)
    scores = [0.1, 0.2, 0.3, 0.72]
    rules = {kind: set_rule(classifier_of({kind: scores}), 0.8, kind) for kind in KINDS}
    assert {rule.threshold for rule in rules.values()} == {0.72}  # the fourth: ceil(5 * 0.8)
    assert rules["lac"].members(logits).tolist() == [[True, True, False], [False, True, True]]
    keys = [next(key for key in map(str, range(99)) if low <= random_shares([key]) < high)
            for low, high in ((0.3, 0.9), (0.0, 0.5))]
    # 0.8 less 0.3 u is below 0.72 with u = 0.3 to 0.9; 0.9 less 0.3 u is above it with u up to 0.5.
    assert rules["aps"].members(logits, keys).tolist() == [[True, True, False], [False, False, True]]
    assert rules["aps"].members(logits[1:], keys[1:]).tolist() == [[False, False, True]]  # a row's set is its own
    assert set_rule(classifier_of({"lac": scores}), 0.5).threshold == 0.3


def test_too_few_rows_promise_nothing_but_all_classes() -> None:
    rule = set_rule(classifier_of({"lac": [0.1, 0.2]}), 0.9)
    assert math.isinf(rule.threshold)
    assert rule.members(torch.randn(4, 3)).all()
    assert rule.as_values()["threshold"] is None


def test_a_set_is_never_empty_and_begins_with_the_answer() -> None:
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    for kind in KINDS:
        inside = set_rule(classifier_of({kind: [0.0] * 99}, classes=10), 0.9, kind).members(logits)
        assert inside.sum(dim=1).tolist() == [1] * 50
        assert inside.long().argmax(dim=1).tolist() == logits.argmax(dim=1).tolist()


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_the_promise_is_kept_over_many_draws_and_not_by_sets_that_are_too_large(kind: str, coverage: float) -> None:
    random = torch.Generator().manual_seed(3)
    label = torch.randint(0, 10, (200, 300), generator=random)
    logits = torch.randn(200, 300, 10, generator=random)
    logits.scatter_add_(2, label[..., None], torch.full((200, 300, 1), 1.2))
    held = []
    for seed, (draw_logits, draw_label) in enumerate(zip(logits, label, strict=True)):
        scores = conformity(draw_logits[:100], draw_label[:100], 0.7, seed)
        rule = set_rule(classifier_of(scores, 0.7, classes=10), coverage, kind)
        inside = rule.members(draw_logits[100:], [f"{seed}/{number}.jpg" for number in range(200)])
        held.append(float(inside.gather(1, draw_label[100:, None]).double().mean()))
    # Between coverage and coverage + 1 / (n + 1); three standard errors of the mean around it.
    error = 3 * float(np.std(held)) / math.sqrt(len(held))
    assert coverage - error <= np.mean(held) <= coverage + 1 / 101 + error


def test_sets_of_a_classifier_that_is_mostly_right_are_small() -> None:
    """19 of 20 rows are right with 0.94 for their class: of 50 classes few are in a set, and not a third of them."""
    random = torch.Generator().manual_seed(0)
    label = torch.randint(0, 50, (2000,), generator=random)
    shown = torch.where(torch.rand(2000, generator=random) < 0.95, label, (label + 1) % 50)
    logits = 0.5 * torch.randn(2000, 50, generator=random) + 7 * torch.nn.functional.one_hot(shown, 50)
    rule = set_rule(classifier_of(conformity(logits[:500], label[:500], 1.0), classes=50), 0.9, "aps")
    inside = rule.members(logits[500:])
    assert float(inside.gather(1, label[500:, None]).double().mean()) >= 0.9
    assert float(inside.double().sum(dim=1).mean()) < 1.5


def test_of_many_scores_those_that_are_kept_promise_no_less() -> None:
    random = torch.Generator().manual_seed(1)
    logits, label = torch.randn(5000, 4, generator=random), torch.randint(0, 4, (5000,), generator=random)
    kept = conformity(logits, label, 1.0)
    assert {len(each) for each in kept.values()} == {499}
    whole = (1 - logits.double().softmax(dim=1).gather(1, label[:, None])[:, 0]).sort().values
    for coverage in (0.5, 0.9, 0.95, 0.99):
        exact = float(whole[math.ceil(5001 * coverage) - 1])
        threshold = set_rule(classifier_of(kept), coverage).threshold
        assert exact <= threshold <= exact + 0.01


def test_scores_are_saved_and_read_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    classifier = classifier_of({"lac": [0.125, 0.5], "aps": [0.25, 0.75]})
    classifier.save(tmp_path / "a")
    assert load_classifier(tmp_path / "a").conformity == classifier.conformity
    replace(classifier, conformity={}).save(tmp_path / "b")
    assert "conformity" not in json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert load_classifier(tmp_path / "b").conformity == {}
    for number, bad in enumerate(([0.5, 0.1], [float("nan")], ["x"], 3, [2.0])):
        replace(classifier, conformity={"lac": bad}).save(tmp_path / f"{number}")  # type: ignore[dict-item]
        with pytest.raises(AdapterFileError, match="conformity"):
            load_classifier(tmp_path / f"{number}")


@pytest.mark.parametrize(("scores", "coverage", "kind", "message"), [
    ({}, 0.9, "lac", "has no scores to make sets with"), ({"lac": [0.1]}, 1.0, "lac", "coverage 1.0"),
    ({"lac": [0.1]}, float("nan"), "lac", "coverage nan"), ({"lac": [0.1]}, 0.9, "lax", "'lax'")])
def test_what_makes_no_sets_is_said(scores: dict[str, list[float]], coverage: float, kind: str, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        set_rule(classifier_of(scores), coverage, kind)
