"""Temperatures: the most likely one, on rows that a run may look at, and never another answer."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from onceclip.adapters import AdapterFileError, TipAdapter, ZeroShot, load_classifier, merge
from onceclip.adapters.heads import batched
from onceclip.adapters.selection import calibration
from onceclip.adapters.selection.calibration import best_temperature, calibrated
from onceclip.pipeline.evaluation.metrics import metrics


def drawn(rows=400, classes=5, scale=1.0, seed=1):
    """Logits whose softmax at temperature `scale` is the truth, and labels that were drawn from it."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=generator)
    label = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return scale * logits, label


def objective(logits, label, temperature):
    return float(cross_entropy(logits.double() / temperature, label, reduction="sum")) + math.log(temperature) ** 2 / 2


@pytest.mark.parametrize(("rows", "scale"), [(400, 1.0), (400, 6.0), (400, 0.05), (3, 1.0), (1, 2.0)])
def test_the_temperature_is_the_best_of_a_dense_grid(rows, scale):
    logits, label = drawn(rows, scale=scale)
    found = best_temperature(logits, label)
    grid = torch.logspace(-3, 3, 6001, dtype=torch.float64).tolist()
    best = min(grid, key=lambda temperature: objective(logits, label, temperature))
    assert found == pytest.approx(best, rel=0.003)
    assert objective(logits, label, found) <= objective(logits, label, best)


@pytest.mark.parametrize("scale", [0.02, 1.0, 30.0])
def test_many_rows_tell_the_true_temperature_whatever_the_scale_of_the_logits(scale):
    assert best_temperature(*drawn(20000, scale=scale)) == pytest.approx(scale, rel=0.03)


def test_rows_that_are_all_right_all_wrong_or_missing_give_a_temperature_of_use():
    logits, label = 4 * torch.eye(6).repeat(5, 1), torch.arange(6).repeat(5)
    right, wrong = best_temperature(logits, label), best_temperature(logits, (label + 1) % 6)
    assert 0.2 < right <= 1 < wrong < 100
    assert best_temperature(logits[:0], label[:0]) == 1
    assert best_temperature(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)) == pytest.approx(1)


def test_neither_the_order_of_rows_nor_that_of_classes_changes_it():
    logits, label = drawn(100)
    order, classes = torch.randperm(100), torch.randperm(5)
    shuffled = best_temperature(logits[order][:, classes], classes.argsort()[label[order]])
    assert shuffled == pytest.approx(best_temperature(logits, label), rel=1e-6)


def test_an_overconfident_head_becomes_as_sure_as_it_is_right():
    temperature = best_temperature(*drawn(500, scale=4.0, seed=1))
    logits, label = drawn(5000, scale=4.0, seed=2)
    before, after = metrics(logits, label), metrics(logits / temperature, label)
    assert after["ece"] < 0.03 < 0.15 < before["ece"]
    assert after["nll"] < 0.7 * before["nll"]
    assert after["accuracy"] == before["accuracy"]


@pytest.mark.parametrize("temperature", [1e-6, 0.3, 1e6])
def test_a_temperature_changes_probabilities_and_no_answer(make_task, make_rows, temperature):
    classifier = TipAdapter().fit(make_task())
    other = replace(classifier, temperature=temperature)
    rows = make_rows((20, 20, 20), 10, noise=1.0).embedding
    assert other.predict(rows) == classifier.predict(rows)
    assert torch.equal(other.logits(rows), classifier.logits(rows))
    torch.testing.assert_close(other.probabilities(rows), (classifier.logits(rows) / temperature).softmax(dim=1))
    torch.testing.assert_close(other.probabilities(rows).sum(dim=1), torch.ones(60))


def test_validation_rows_come_first_then_each_support_image_left_out_then_nothing(make_task):
    task, method = make_task(val=6, noise=1.0), TipAdapter(alpha=2.0, beta=3.0)
    classifier = method.fit(task)
    on_val = calibrated(classifier, TipAdapter(), task)
    assert on_val.calibrated_on == "val"
    assert on_val.temperature == best_temperature(classifier.logits(task.val.embedding), task.val.label)
    left_out = calibrated(classifier, TipAdapter(), replace(task, val=None))
    first, second = method.leave_one_out(method.prepare(task))
    assert left_out.calibrated_on == "loo"
    assert left_out.temperature == best_temperature(first + 2.0 * second, task.support.label)
    assert left_out.temperature != best_temperature(classifier.logits(task.support.embedding), task.support.label)
    bare_text = replace(task, val=None, support=make_task((0, 0, 0)).support)
    for kind, alone in ((ZeroShot, bare_text), (TipAdapter, make_task((1, 1, 1)))):
        bare = calibrated(kind().fit(alone), kind(), alone)
        assert (bare.temperature, bare.calibrated_on) == (1.0, "")


def test_a_saved_adapter_keeps_its_temperature_and_an_older_one_has_none(make_task, tmp_path, untie):
    classifier = replace(TipAdapter().fit(make_task()), temperature=1 / 3, calibrated_on="val")
    classifier.save(tmp_path)
    again = load_classifier(tmp_path)
    assert (again.temperature, again.calibrated_on) == (1 / 3, "val")
    assert "temperature 0.3333, fitted on validation images" in (tmp_path / "README.md").read_text()
    untie(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    older = {name: value for name, value in config.items() if name not in ("temperature", "calibrated_on")}
    (tmp_path / "adapter_config.json").write_text(json.dumps(older))
    assert (load_classifier(tmp_path).temperature, load_classifier(tmp_path).calibrated_on) == (1.0, "")
    for wrong in (0, -1, float("nan"), float("inf"), "warm"):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "temperature": wrong}))
        with pytest.raises(AdapterFileError, match=r"temperature|float"):
            load_classifier(tmp_path)


def test_a_merged_classifier_is_not_calibrated(make_task):
    """The temperature of one of the two says nothing of their mean."""
    task = make_task()
    fitted = replace(TipAdapter().fit(task), temperature=3.0, calibrated_on="val")
    merged = merge(fitted, ZeroShot().fit(task))
    assert (merged.temperature, merged.calibrated_on) == (1.0, "")


@pytest.mark.parametrize("val", [0, 40])
def test_a_temperature_of_very_many_logits_is_fitted_on_rows_evenly_spread(make_task, monkeypatch, val):
    task, method = make_task((20, 20, 20), val=val), TipAdapter()
    fitted = method.fit(task)
    whole = calibrated(fitted, method, task)
    monkeypatch.setattr(calibration, "_PIECE", 21)
    assert calibrated(fitted, method, task).temperature == pytest.approx(whole.temperature, rel=1e-6)
    monkeypatch.setattr(calibration, "_MOST", 40)
    part = calibrated(fitted, method, task)
    assert part.calibrated_on == whole.calibrated_on
    assert part.temperature != whole.temperature
    assert 0.2 < part.temperature / whole.temperature < 5


def test_predictions_do_not_depend_on_the_pieces_that_rows_are_scored_in(make_task, monkeypatch):
    task = make_task()
    fitted = TipAdapter().fit(task)
    whole = fitted.predict(task.support.embedding)
    monkeypatch.setattr(batched, "_LOGITS", 7)
    assert fitted.predict(task.support.embedding) == fitted.predict(task.support.embedding.numpy()) == whole
    assert fitted.predict(task.support.embedding[:0]) == []
