"""The interface of methods: names, hyperparameters, and a method of one's own."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn.functional import multi_margin_loss

from onceclip.adapters import (
    METHODS,
    ClipAdapter,
    Hyperparameter,
    Method,
    MethodError,
    TipAdapter,
    UnknownName,
    fit_all,
    fit_selected,
    load_classifier,
    method_class,
)
from onceclip.adapters.heads import Head, Linear
from onceclip.adapters.method import zero_shot_head
from onceclip.adapters.training.trainable import recipe


class NearestMean(Method):
    """Zero-shot plus cosine with the class means of the support: all that a new method needs."""

    name = "nearest-mean"
    summary = "cosine with class means"
    family = "closed form"
    source = "this test"
    equation = "logits = s x.W' + alpha x.M'"
    hyperparameters = {"alpha": Hyperparameter(20.0, "weight of the means")}
    mixing = "alpha"

    def terms(self, prepared, parameters):
        support = prepared.support
        total = support.unit.new_zeros(prepared.classes, prepared.dim).index_add(0, support.label, support.unit)
        return zero_shot_head(prepared), Linear(torch.nn.functional.normalize(total, dim=1))


class OneHeadTwice(Method):
    """Reuses one tensor in both terms."""

    name = "one-head-twice"
    mixing = "alpha"
    hyperparameters = {"alpha": Hyperparameter(1.0, "weight", high=5.0)}

    def terms(self, prepared, parameters):
        head = zero_shot_head(prepared)
        return head, head


@pytest.mark.parametrize("policy", ["fixed", "val"])
def test_a_method_in_one_class_can_be_fitted_chosen_saved_and_loaded(make_task, make_rows, tmp_path, policy):
    task, queries = make_task((3, 4, 2), val=6, noise=0.3), make_rows((6, 6, 6), 10, noise=0.3, seed=80)
    classifier = fit_selected(NearestMean(), task, policy).classifier
    classifier.save(tmp_path)
    loaded = load_classifier(tmp_path)
    logits = loaded.logits(queries.embedding)
    assert torch.equal(logits, classifier.logits(queries.embedding))
    assert loaded.method == f"{__name__}:NearestMean"
    assert 0 < loaded.hyperparameters["alpha"] < float("inf")
    assert (logits.argmax(dim=1) == queries.label).float().mean() > 0.8
    assert loaded.predict(queries.embedding)[0] == task.text.class_names[int(logits[0].argmax())]


def test_a_method_may_use_one_tensor_twice(make_task, make_rows, tmp_path):
    queries = make_rows((2, 2, 2), 10, seed=80).embedding
    classifier = OneHeadTwice().fit(make_task())
    classifier.save(tmp_path)
    assert torch.equal(load_classifier(tmp_path).logits(queries), classifier.logits(queries))


def test_a_method_without_mathematics_says_what_is_missing(make_task):
    class Empty(Method):
        name = "empty"

    with pytest.raises(MethodError, match="Empty defines neither head nor terms"):
        Empty().fit(make_task())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_every_method_describes_itself(method):
    for text in (method.name, method.summary, method.family, method.source, method.equation, method.__doc__):
        assert text.strip()
    assert method.summary.count("\n") == method.equation.count("\n") == 0
    assert method_class(method.name) is method
    assert "Source:" in method.__doc__


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_defaults_and_searched_values_of_every_hyperparameter_are_valid(method):
    for name, setting in method.hyperparameters.items():
        for value in (setting.default, *setting.search):
            parsed = setting.parse(name, str(value))
            assert parsed == value
            assert type(parsed) is type(setting.default)
        assert setting.meaning
    assert method().values == {name: setting.default for name, setting in method.hyperparameters.items()}
    assert method.mixing is None or method.hyperparameters[method.mixing].high < float("inf")


@pytest.mark.parametrize(("typed", "near"), [("tip_adaptor", "tip-adapter"), ("GDA", "gda"), ("zeroshot", "zero-shot"),
                                             ("linear", "linear-probe"), ("clip_adapter", "clip-adapter")])
def test_an_unknown_method_suggests_the_nearest(typed, near):
    with pytest.raises(UnknownName, match=f"no method '{typed}': did you mean '{near}'"):
        method_class(typed)


def test_an_unknown_hyperparameter_suggests_the_nearest_and_lists_all():
    with pytest.raises(UnknownName, match="no hyperparameter 'betta' of tip-adapter: did you mean 'beta'") as caught:
        TipAdapter(betta=2.0)
    assert str(caught.value).endswith("there are: alpha, beta")
    with pytest.raises(UnknownName, match="there are: alpha"):
        OneHeadTwice(beta=2.0)


@pytest.mark.parametrize(("name", "value"), [
    ("ratio", 1.5), ("ratio", -0.1), ("ratio", "much"), ("ratio", float("nan")), ("ratio", None), ("ratio", [0.2]),
    ("reduction", 0), ("reduction", 2.5), ("reduction", "inf"), ("reduction", None), ("epochs", -1), ("epochs", "1e9"),
    ("learn_ratio", "maybe"), ("learn_ratio", 2), ("branch", "audio"), ("branch", 3), ("branch", "")])
def test_an_invalid_value_is_refused_with_the_name_of_the_hyperparameter(name, value):
    with pytest.raises(MethodError, match=f"^{name}=") as caught:
        ClipAdapter(**{name: value})
    assert "\n" not in str(caught.value)
    assert ClipAdapter.hyperparameters[name].meaning in str(caught.value)


@pytest.mark.parametrize(("name", "text", "value"), [
    ("learn_ratio", "true", True), ("learn_ratio", "No", False), ("learn_ratio", "1", True), ("reduction", "4", 4),
    ("epochs", "1e2", 100), ("learning_rate", "1e-3", 1e-3), ("ratio", "1", 1.0), ("branch", "both", "both")])
def test_values_from_the_command_line_are_parsed_to_their_type(name, text, value):
    parsed = ClipAdapter(**{name: text}).values[name]
    assert parsed == value
    assert type(parsed) is type(value)


def test_hyperparameters_read_as_attributes_and_copies_leave_the_original_alone():
    first = TipAdapter(beta=2)
    second = first.with_values(beta=9.0)
    assert (first.beta, second.beta, first.alpha, second.alpha) == (2.0, 9.0, 1.0, 1.0)
    with pytest.raises(AttributeError, match="gamma"):
        first.gamma  # noqa: B018


class Margin(Method):
    """Class vectors trained with a loss of one's own, whose margin is searched; nothing is said of retraining."""

    name = "margin"
    hyperparameters = {"margin": Hyperparameter(0.0, "by how much the own class leads", search=(0.0, 4.0), high=9.0),
                       **recipe(learning_rate=0.1, epochs=3)}

    def initial(self, prepared, generator):
        return {"weight": prepared.zero_shot_weights.clone()}

    def head(self, prepared, parameters):
        return Linear(parameters["weight"])

    def loss(self, prepared, parameters, rows, label, generator):
        return multi_margin_loss(self.training_head(prepared, parameters)(rows), label, margin=1 + self.margin)


def test_a_hyperparameter_that_only_a_loss_reads_asks_for_another_training(make_task):
    """Else all its values would have the first one's parameters, and the search would compare a value with itself."""
    task = make_task((4, 4, 4), val=4, noise=1.0)
    alone = [Margin(margin=margin).fit(task).head.weight for margin in (0.0, 4.0)]
    assert not torch.equal(*alone)
    together = [each.classifier.head.weight for each in fit_all([Margin(margin=0.0), Margin(margin=4.0)], task)]
    assert all(map(torch.equal, alone, together))
    assert fit_selected(Margin(), task, "val").tried == 2


class Peeking(Margin):
    """One that makes something of a searched value before the search."""

    def prepare(self, task):
        return replace(task, logit_scale=task.logit_scale + self.margin)


def test_what_is_prepared_once_for_all_values_cannot_look_at_one(make_task):
    task = make_task((4, 4, 4), val=4)
    for tried in (lambda: fit_selected(Peeking(), task, "val"),
                  lambda: fit_all([Peeking(margin=1.0), Peeking(margin=2.0)], task)):
        with pytest.raises(MethodError, match="reads margin in prepare, which is called once for all values"):
            tried()
    assert fit_all([Peeking(margin=1.0)], task)[0].classifier.hyperparameters["margin"] == 1.0


class Unlearning(Method):
    """Trains a weight that its loss does not look at."""

    hyperparameters = recipe(0.1, 2)

    def initial(self, prepared, generator):
        return {"weight": prepared.text.class_weights.clone()}

    def training_head(self, prepared, parameters):
        return Linear(parameters["weight"].detach())

    head = training_head


class HalfLearning(Unlearning):
    """Trains one weight of two."""

    def initial(self, prepared, generator):
        return {**super().initial(prepared, generator), "other": torch.zeros(1)}

    def training_head(self, prepared, parameters):
        return Linear(parameters["weight"])


class Unsolved(Unlearning):
    """The same by another solver."""

    solver = "lbfgs"


@pytest.mark.parametrize("kind", [Unlearning, HalfLearning, Unsolved])
def test_a_loss_that_depends_on_no_parameter_is_one_line(kind, make_task):
    with pytest.raises(MethodError, match=f"loss of {kind.name} does not depend on all parameters that its initial"):
        kind().fit(make_task((4, 4, 4)))


@dataclass(frozen=True)
class Odd(Head):
    """Rows times a matrix, with something that may be wrong."""

    weight: torch.Tensor
    more: object = None

    def __call__(self, rows):
        return rows @ self.weight.T

    @property
    def width(self):
        return len(self.weight)


class Widthless(Odd):
    width = Head.width


@pytest.mark.parametrize(("make", "message"), [
    (lambda weight: Odd(weight[:2]), r"gives 4 rows logits of shape \(4, 2\): give \(4, 3\)"),
    (lambda weight: Odd(weight.double()), "has tensors of torch.float64, and rows are torch.float32"),
    (lambda weight: Odd(weight * float("nan")), "gives NaN"),
    (lambda weight: Odd(weight, [weight]), "more of the head .*Odd is a list: heads are saved by their fields"),
    (Widthless, "Widthless defines no width"),
    (lambda weight: weight, "torch:Tensor is no head"),
    (lambda weight: None, "NoneType is no head"),
], ids=range(7))
def test_a_head_that_would_fail_later_is_refused_as_it_is_made(make, message, make_task):
    class Mistaken(Method):
        def head(self, prepared, parameters):
            return make(prepared.text.class_weights)

    assert Mistaken.__module__ == __name__  # from outside, as a user's own
    with pytest.raises(MethodError, match=message):
        Mistaken().fit(make_task((4, 4, 4)))


@pytest.mark.parametrize("setting", [Hyperparameter(1.0, "a"), Hyperparameter(1.0, "a", retrain=False)])
def test_a_mixing_weight_that_training_reads_is_refused(setting):
    """It is chosen after the training, so that no fit with the chosen value would give this classifier."""
    parts = {"terms": lambda self, prepared, parameters: (zero_shot_head(prepared), Linear(parameters["weight"])),
             "head": Method.head, "mixing": "a", "hyperparameters": {"a": setting, **recipe(0.1, 2)}}
    with pytest.raises(MethodError, match="Mixed is trained, and its mixing weight a is chosen afterwards"):
        type("Mixed", (Margin,), {**parts, "loss": Method.loss})
    own = {"training_head": lambda self, prepared, parameters: Linear(parameters["weight"])}
    if not setting.retrain:
        assert type("Mixed", (Margin,), {**parts, "loss": Method.loss, **own}).mixing == "a"


@pytest.mark.parametrize(("values", "message"), [
    ({"hyperparameters": {"a": 1.0}}, "hyperparameter a of Odd is 1.0: write Hyperparameter"),
    ({"hyperparameters": {"a": Hyperparameter(5.0, "a", high=1.0)}}, "a=5.0 is not between 0 and 1"),
    ({"hyperparameters": {"a": Hyperparameter(0.5, "a", search=(0.1, 3.0), high=1.0)}}, "a=3.0 is not between 0 and 1"),
    ({"hyperparameters": {"values": Hyperparameter(0.5, "a")}}, "values of Odd has the name of something else"),
    ({"hyperparameters": {"head": Hyperparameter(0.5, "a")}}, "head of Odd has the name of something else")])
def test_hyperparameters_that_could_never_be_read_are_refused_with_the_class(values, message):
    with pytest.raises(MethodError, match=message):
        type("Odd", (Method,), values)


@pytest.mark.parametrize(("values", "message"), [
    ({}, "NotSaying is trained and does not say how: add"),
    ({"initial": lambda self, prepared, generator: torch.zeros(3)}, "gives no floating tensors by name"),
    ({"initial": lambda self, prepared, generator: {"weight": torch.tensor([1, 2])}}, "gives no floating tensors"),
    ({"hyperparameters": recipe(0.1, 2), "loss": lambda self, prepared, parameters, rows, label, generator: (
        rows @ parameters["weight"].T)[:, 0]}, r"loss of NotSaying has the shape \(12,\): give one number")])
def test_a_training_that_could_not_be_meant_is_refused(values, message, make_task):
    kind = type("NotSaying", (Margin,), {"name": "NotSaying", "hyperparameters": {}, "loss": Method.loss, **values})
    with pytest.raises(MethodError, match=message):
        kind().fit(make_task((4, 4, 4)))
