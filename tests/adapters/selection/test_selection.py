"""Choosing hyperparameters: by which rows, over which values, and what is refused."""

import inspect
from dataclasses import fields, replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from onceclip.adapters import (
    GDA,
    ClipAdapter,
    Hyperparameter,
    LinearProbe,
    Method,
    MethodError,
    ProKeR,
    Rows,
    Task,
    Text,
    TipAdapter,
    TipAdapterF,
    ZeroShot,
    fit_selected,
)
from onceclip.adapters.heads import Linear


class Shifted(Method):
    """Zero-shot whose classes are off by `shift`: which value is right follows from the labels."""

    name = "shifted"
    hyperparameters = {"shift": Hyperparameter(0, "classes to move by", search=(0, 1, 2), high=2),
                       "scale": Hyperparameter(1.0, "factor of the logits", search=(1.0, 9.0, 3.0))}

    def head(self, prepared, parameters):
        return Linear(self.scale * prepared.text.class_weights.roll(self.shift, dims=0))


def moved(task, by):
    return replace(task, val=replace(task.val, label=(task.val.label + by) % task.classes))


def accuracy(classifier, rows):
    return float((classifier.logits(rows.embedding).argmax(dim=1) == rows.label).double().mean())


def test_fixed_leaves_values_alone(make_task):
    found = fit_selected(TipAdapter(alpha=2.5, beta=7.0), make_task(val=4), "fixed")
    assert found.classifier.hyperparameters == {"alpha": 2.5, "beta": 7.0}
    assert (found.accuracy, found.tried, found.interval) == (None, 0, None)


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_val_picks_the_value_that_the_labels_of_validation_rows_call_for(make_task, shift):
    found = fit_selected(Shifted(), moved(make_task(val=4), shift), "val")
    assert found.classifier.hyperparameters["shift"] == shift
    assert (found.accuracy, found.tried) == (1.0, 9)


@pytest.mark.parametrize(("labels_are", "scale"), [("right", 9.0), ("wrong", 1.0)])
def test_ties_in_accuracy_go_to_the_lower_cross_entropy(make_task, labels_are, scale):
    task = make_task(val=4)
    found = fit_selected(Shifted(), task if labels_are == "right" else moved(task, 1), "val", frozen={"shift"})
    assert found.classifier.hyperparameters["scale"] == scale


def test_full_ties_go_to_the_value_that_was_tried_first(make_task):
    """Without a weight on the cache its sharpness makes no difference."""
    found = fit_selected(TipAdapter(alpha=0), make_task(val=4), "val", frozen={"alpha"})
    assert found.classifier.hyperparameters["beta"] == TipAdapter.hyperparameters["beta"].search[0]


def test_held_names_are_not_searched(make_task):
    task = moved(make_task(val=4), 1)
    found = fit_selected(Shifted(shift=2), task, "val", frozen={"shift"})
    assert found.classifier.hyperparameters["shift"] == 2
    tip = fit_selected(TipAdapter(beta=7.5), task, "val", frozen={"beta"})
    assert tip.classifier.hyperparameters["beta"] == 7.5
    assert (tip.tried, tip.interval is None) == (1, False)
    tip = fit_selected(TipAdapter(alpha=0.7), task, "val", frozen={"alpha"})
    assert tip.classifier.hyperparameters["alpha"] == 0.7
    assert tip.interval is None


def test_val_picks_the_best_of_separate_fits(make_task):
    task, method = make_task(val=12, noise=0.6), LinearProbe()
    found = fit_selected(method, task, "val")
    fits = [LinearProbe(l2=value).fit(task) for value in method.hyperparameters["l2"].search]
    loss = [float(cross_entropy(each.logits(task.val.embedding), task.val.label)) for each in fits]
    best = max(range(len(fits)), key=lambda number: (accuracy(fits[number], task.val), -loss[number]))
    assert found.classifier.hyperparameters == fits[best].hyperparameters
    assert torch.equal(found.classifier.head.weight, fits[best].head.weight)
    assert found.accuracy == accuracy(fits[best], task.val) > min(accuracy(each, task.val) for each in fits)


@pytest.mark.parametrize("method", [TipAdapter(), TipAdapterF(epochs=5), GDA()], ids=lambda method: method.name)
def test_val_is_at_least_as_good_as_any_weight_and_equals_a_fit_of_what_it_chose(make_task, make_rows, method):
    task, queries = make_task((2, 3, 2), val=15, noise=0.5), make_rows((5, 5, 5), 10, seed=70).embedding
    found = fit_selected(method, task, "val")
    chosen = found.classifier.hyperparameters
    assert found.interval[0] < chosen["alpha"] < found.interval[1]
    again = type(method)(**chosen).fit(task)
    torch.testing.assert_close(found.classifier.logits(queries), again.logits(queries))
    assert found.accuracy == accuracy(again, task.val)
    for beta in (0.5, 4.0, 12.0) if "beta" in chosen else (None,):
        for alpha in (0.0, 0.02, 0.3, 1.0, 5.0, 10.0):
            values = {**chosen, "alpha": alpha, **({"beta": beta} if beta else {})}
            assert accuracy(type(method)(**values).fit(task), task.val) <= found.accuracy


@pytest.mark.parametrize("method", [TipAdapter(), GDA(), ProKeR()], ids=lambda method: method.name)
def test_loo_reports_the_accuracy_of_refitting_without_each_image(make_task, method):
    task = make_task((4, 3, 5), noise=0.5)
    found = fit_selected(method, task, "loo")
    chosen, support, right = type(method)(**found.classifier.hyperparameters), task.support, 0
    for row in range(len(support)):
        keep = torch.arange(len(support)) != row
        fitted = chosen.fit(replace(task, support=Rows(support.embedding[keep], support.label[keep])))
        right += accuracy(fitted, Rows(support.embedding[~keep], support.label[~keep]))
    assert found.accuracy == pytest.approx(right / len(support))


@pytest.mark.parametrize("policy", ["val", "val-full"])
def test_val_without_validation_rows_is_refused(make_task, policy):
    task = make_task()
    for lacking in (task, replace(task, val=Rows(torch.empty(0, 10), torch.empty(0, dtype=torch.int64)))):
        with pytest.raises(MethodError, match="validation rows"):
            fit_selected(TipAdapter(), lacking, policy)


@pytest.mark.parametrize("method", [LinearProbe(), ClipAdapter(), TipAdapterF()], ids=lambda method: method.name)
def test_loo_of_a_trained_method_is_refused(make_task, method):
    with pytest.raises(MethodError, match=f"{method.name} has no leave-one-image-out"):
        fit_selected(method, make_task(), "loo")


@pytest.mark.parametrize("method", [TipAdapter(), GDA()], ids=lambda method: method.name)
def test_loo_of_a_class_with_one_image_is_refused(make_task, method):
    with pytest.raises(MethodError, match="2 shots or more"):
        fit_selected(method, make_task((3, 1, 3)), "loo")


def test_unknown_policy_is_refused_with_those_that_exist(make_task):
    with pytest.raises(MethodError, match="fixed, val, val-full, loo"):
        fit_selected(TipAdapter(), make_task(), "test")


def test_a_method_that_needs_images_refuses_an_empty_support(make_task):
    task = make_task((0, 0, 0))
    with pytest.raises(MethodError, match="needs labelled training rows"):
        fit_selected(TipAdapter(), task, "fixed")
    assert fit_selected(ZeroShot(), task, "fixed").classifier.method == "zero-shot"


def test_test_rows_cannot_be_handed_to_fitting():
    """Whoever adds a field or a parameter here decides what a run may look at."""
    assert {field.name for field in fields(Task)} == {"text", "support", "val", "unlabelled", "logit_scale",
                                                      "logit_bias", "projection", "projection_bias"}
    assert set(inspect.signature(fit_selected).parameters) == {"method", "task", "policy", "frozen", "seed", "progress",
                                                           "search"}
    assert set(inspect.signature(Method.fit).parameters) == {"self", "task", "seed", "progress"}


def test_the_linear_probe_ignores_the_text(make_task, make_rows):
    """A probe that starts at the text weights is another method: an upstream baseline was one, for two years."""
    task, queries = make_task(val=4), make_rows((5, 5, 5), 10, seed=70).embedding
    other = Text(-task.text.embedding.flip(0), task.text.class_index, task.text.class_names)
    first, second = (fit_selected(LinearProbe(), each, "val").classifier.logits(queries)
                     for each in (task, replace(task, text=other)))
    assert torch.equal(first, second)
