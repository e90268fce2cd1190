"""Averaging two classifiers: in weights where they have one form, in logits where not."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from onceclip.adapters import (
    CLAP,
    RLA,
    LinearProbe,
    MethodError,
    TaskRes,
    TipAdapter,
    ZeroShot,
    best_merge,
    load_classifier,
    merge,
    set_rule,
)
from onceclip.adapters.heads import Linear, Projected, Sum
from onceclip.adapters.selection.rule import best_temperature


@pytest.fixture
def task(make_task):
    return make_task((3, 3, 3), val=6, noise=0.6)


@pytest.fixture
def queries(make_rows):
    return make_rows((7, 7, 7), 10, noise=0.3, seed=50).embedding


@pytest.mark.parametrize("make", [lambda: CLAP(epochs=15), lambda: LinearProbe(l2=0.03), TipAdapter,
                                  lambda: TaskRes(epochs=15)])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_logits_of_a_merge_with_zero_shot_are_the_average(task, queries, make, weight):
    """For linear heads the average of weights is that of logits, bias or not."""
    fitted, start = make().fit(task), ZeroShot().fit(task)
    merged = merge(fitted, start, weight)
    expected = (1 - weight) * start.logits(queries) + weight * fitted.logits(queries)
    assert_close(merged.logits(queries), expected, rtol=1e-4, atol=1e-3)
    assert isinstance(merged.head, Linear if isinstance(fitted.head, Linear) else Sum)


def test_heads_of_one_form_are_averaged_in_their_weights(task, queries):
    """The map of RLA starts as the identity: a quarter of the way there."""
    fitted, start = RLA(epochs=15).fit(task), RLA(epochs=0).fit(task)
    merged = merge(fitted, start, 0.25)
    assert isinstance(merged.head, Projected)
    assert_close(merged.head.matrix, torch.eye(10) + 0.25 * (fitted.head.matrix - torch.eye(10)))
    assert not torch.allclose(merged.logits(queries), 0.75 * start.logits(queries) + 0.25 * fitted.logits(queries),
                              atol=1e-3)


def test_neither_of_two_merged_classifiers_is_changed(task):
    fitted, start = CLAP(epochs=5).fit(task), ZeroShot().fit(task)
    before = fitted.head.weight.clone(), start.head.weight.clone()
    merge(fitted, start, 0.5).head.weight.zero_()
    assert torch.equal(fitted.head.weight, before[0])
    assert torch.equal(start.head.weight, before[1])


def test_a_merge_is_saved_with_what_it_was_made_of(task, queries, tmp_path):
    merged = merge(TipAdapter().fit(task), ZeroShot().fit(task), 0.4)
    merged.save(tmp_path)
    loaded = load_classifier(tmp_path)
    assert torch.equal(loaded.logits(queries), merged.logits(queries))
    assert loaded.hyperparameters["merged_with"] == "zero-shot"
    assert loaded.hyperparameters["merge_weight"] == 0.4


@pytest.mark.parametrize("make", [lambda: CLAP(epochs=15), TipAdapter])
def test_the_best_merge_is_the_best_of_all_weights(task, make):
    fitted, start = make().fit(task), ZeroShot().fit(task)
    merged, found = best_merge(fitted, start, task.val)

    def accuracy(classifier):
        return float((classifier.logits(task.val.embedding).argmax(dim=1) == task.val.label).double().mean())

    tried = [accuracy(merge(fitted, start, step / 50)) for step in range(51)]
    assert accuracy(merged) == found.accuracy >= max(tried)
    assert found.low < merged.hyperparameters["merge_weight"] < found.high
    logits = merged.logits(task.val.embedding)
    assert merged.temperature == pytest.approx(best_temperature(logits, task.val.label), rel=1e-3)
    assert set_rule(merged, 0.5).members(logits).any(dim=1).double().mean() >= 0.5


def test_classifiers_that_do_not_belong_together_are_refused(task, make_task):
    fitted, start = CLAP(epochs=5).fit(task), ZeroShot().fit(task)
    with pytest.raises(MethodError, match="different class names"):
        merge(fitted, ZeroShot().fit(make_task((3, 3))))
    with pytest.raises(MethodError, match="different widths"):
        merge(fitted, ZeroShot().fit(make_task((3, 3, 3), dim=12)))
    one, other = (replace(each, provenance={"encoder": {"fingerprint": mark}}) for each, mark in
                  ((fitted, "one"), (start, "other")))
    with pytest.raises(MethodError, match="different encoders"):
        merge(one, other)
    with pytest.raises(MethodError, match="not between 0 and 1"):
        merge(fitted, start, 1.5)
    with pytest.raises(MethodError, match="labelled rows"):
        best_merge(fitted, start, replace(task.val, embedding=task.val.embedding[:0], label=task.val.label[:0]))
