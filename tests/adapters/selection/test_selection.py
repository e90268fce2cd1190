"""Choosing hyperparameters: by which rows, over which values, and what is refused."""

import inspect
from dataclasses import fields, replace

import pytest
import torch

from onceclip.adapters import (
    CLAP,
    GDA,
    ClipAdapter,
    Hyperparameter,
    LinearProbe,
    LPPlusPlus,
    Method,
    MethodError,
    ProKeR,
    Rows,
    Task,
    TaskRes,
    Text,
    TipAdapter,
    TipAdapterF,
    ZeroShot,
    fit_all,
    fit_selected,
)
from onceclip.adapters.heads import Linear
from onceclip.adapters.selection import rule
from onceclip.adapters.selection.rule import calibrated_loss, departure
from onceclip.adapters.selection.selection import choices, default_policy, remarks_on


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


@pytest.mark.parametrize("by", [0, 1])
def test_how_sure_a_setting_is_of_its_answers_says_nothing_for_or_against_it(make_task, by):
    """A factor on all logits is undone by the temperature, so that it stays at its default."""
    found = fit_selected(Shifted(), moved(make_task(val=4), by), "val", frozen={"shift"})
    assert found.classifier.hyperparameters["scale"] == 1.0


def test_full_ties_go_to_the_default(make_task):
    """Without a weight on the cache its sharpness makes no difference."""
    found = fit_selected(TipAdapter(alpha=0), make_task(val=4), "val", frozen={"alpha"})
    assert found.classifier.hyperparameters["beta"] == TipAdapter.hyperparameters["beta"].default


def test_the_order_of_the_rows_changes_no_choice(make_task):
    task = make_task((4, 4, 4), val=12, noise=0.6)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    other = replace(task, val=task.val.to(lambda value: value[order] if isinstance(value, torch.Tensor) else value))
    first, second = (fit_selected(TipAdapter(), each, "val") for each in (task, other))
    assert first.classifier.hyperparameters == second.classifier.hyperparameters
    assert first.cost == pytest.approx(second.cost)


def test_what_a_preset_gives_is_not_searched(make_task):
    task = make_task(val=6, noise=0.6)
    assert choices(ClipAdapter(preset="vdt")) == {}
    assert set(choices(ClipAdapter())) == {"share", "learning_rate"}
    vdt = ClipAdapter(preset="vdt").with_values(epochs=3)
    assert fit_selected(vdt, task, "val").classifier.hyperparameters == vdt.values


def test_every_method_has_one_default_policy(make_task):
    with_val, four, three = make_task((3, 3, 3), val=1), make_task((4, 4, 5)), make_task((4, 3, 4))
    assert [default_policy(method(), with_val) for method in (GDA, ClipAdapter, ZeroShot)] == ["val"] * 3
    assert [default_policy(method(), four) for method in (GDA, TipAdapter, ProKeR)] == ["loo"] * 3
    assert default_policy(GDA(covariance="class-mean"), four) == default_policy(ClipAdapter(), four) == "fixed"
    assert default_policy(GDA(), three) == default_policy(GDA(), make_task((0, 0, 0))) == "fixed"


def test_a_remark_says_when_nothing_chose_although_there_was_something(make_task, monkeypatch):
    task = make_task(val=4)
    assert remarks_on(GDA(), task, "fixed")[0].startswith("hyperparameters are defaults")
    assert remarks_on(GDA(), task, "fixed", {"alpha"}) == remarks_on(ZeroShot(), task, "fixed") == []
    assert remarks_on(GDA(), task, "val") == []
    monkeypatch.setattr(rule, "LOGITS", 20)  # of 12 rows and 3 classes
    assert "6 of the 12 validation rows" in remarks_on(GDA(), task, "val")[0]
    assert fit_selected(GDA(), task, "val").accuracy in {number / 6 for number in range(7)}


def test_nothing_to_choose_means_that_no_validation_row_is_looked_at(make_task, monkeypatch):
    monkeypatch.setattr("onceclip.adapters.selection.selection.batched_logits", None)
    found = fit_selected(ZeroShot(), make_task(val=4), "val")
    assert (found.accuracy, found.tried) == (None, 0)


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
    loss = [float(calibrated_loss(each.logits(task.val.embedding), task.val.label).sum())
            + departure(each.hyperparameters, method.values) for each in fits]
    best = min(range(len(fits)), key=loss.__getitem__)
    assert found.classifier.hyperparameters == fits[best].hyperparameters
    assert torch.equal(found.classifier.head.weight, fits[best].head.weight)
    assert found.accuracy == accuracy(fits[best], task.val) > min(accuracy(each, task.val) for each in fits)


@pytest.mark.parametrize("method", [TipAdapter(), TipAdapterF(epochs=5), GDA(), LPPlusPlus(epochs=20)],
                         ids=lambda method: method.name)
def test_no_weight_costs_less_than_the_chosen_one_and_a_fit_of_it_is_the_same(make_task, make_rows, method):
    task, queries = make_task((2, 3, 2), val=15, noise=0.5), make_rows((5, 5, 5), 10, seed=70).embedding
    found = fit_selected(method, task, "val")
    chosen = found.classifier.hyperparameters
    assert found.interval[0] <= chosen[method.mixing] <= found.interval[1]
    again = type(method)(**chosen).fit(task)
    torch.testing.assert_close(found.classifier.logits(queries), again.logits(queries))
    assert found.accuracy == accuracy(again, task.val)
    for weight in (0.01, 0.1, 0.3, 0.5, 1.0):
        values = {**chosen, method.mixing: weight}
        loss = calibrated_loss(type(method)(**values).fit(task).logits(task.val.embedding), task.val.label)
        free = {name: method.values[name] for name in choices(method)}
        assert float(loss.sum()) + departure(values, free) >= found.cost - 0.05


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
                                                      "logit_bias", "projection", "projection_bias", "tower", "bank"}
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


@pytest.mark.parametrize(("method", "odds"), [(TaskRes, 0.33 / 0.67), (CLAP, 0.33 / 0.67), (LPPlusPlus, 1 / 3)])
def test_the_more_images_a_class_has_the_more_a_training_counts_unless_a_share_is_given(method, odds, make_task):
    """What is given, by a preset too, or was chosen stays."""
    def share(made, *shots):
        return made.fit(make_task(shots)).hyperparameters["share"]

    def expected(images):
        return images**2 * odds / (images**2 * odds + 1)

    plain = method(epochs=1)
    assert [share(plain, *[shots] * 3) for shots in (1, 4)] == pytest.approx([expected(1), expected(4)])
    assert share(plain, 1, 16, 16) == pytest.approx(expected(3 / (1 + 2 / 16)))  # nearer to the class with one image
    assert share(method(epochs=1, share=plain.share), 4, 4, 4) == plain.share
    assert (share(plain.with_values(share=0.3), 4, 4, 4), share(method(epochs=1, preset="reference"), 1, 1, 1)) == (
        0.3, 1.0)
    task = make_task((4, 4, 4), val=4, noise=0.6)
    both = [each.classifier.hyperparameters["share"] for each in
            (fit_selected(plain, task, "fixed"), *fit_all([plain, method(epochs=1, share=0.1)], task))]
    assert both == pytest.approx([expected(4), expected(4), 0.1])


def test_fits_are_scored_on_validation_rows_unless_nobody_asks(make_task):
    task, methods = make_task(val=3, noise=1.0), [TipAdapter(beta=beta) for beta in (1.0, 5.0)]
    asked, unasked = (fit_all(methods, task, scored=scored) for scored in (True, False))
    assert [each.accuracy for each in unasked] == [None, None]
    for one, other in zip(asked, unasked, strict=True):
        rows = task.val.embedding
        assert one.accuracy == float((one.classifier.logits(rows).argmax(dim=1) == task.val.label).double().mean())
        assert torch.equal(one.classifier.logits(rows), other.classifier.logits(rows))
