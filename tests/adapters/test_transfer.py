"""A fitted classifier on other classes: for every method that says that it serves them, and for no other."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from onceclip.adapters import (
    GDA,
    METHODS,
    RLA,
    MethodError,
    Rows,
    TaskRes,
    Text,
    ZeroShot,
    load_classifier,
    merge,
    transfer,
)
from onceclip.adapters.heads import Linear
from onceclip.adapters.method import Method, zero_shot_head
from onceclip.adapters.methods.gda import new_classes
from onceclip.adapters.training.trainable import Hyperparameter

SERVES_OTHERS = [name for name, method in METHODS.items() if method.transfers]
SERVES_ITS_OWN = [name for name in METHODS if name not in SERVES_OTHERS]
EXPECTED = ["zero-shot", "clip-adapter", "rla", "prolip", "clip-a-self", "meta-adapter", "multi-modal-adapter",
            "vt-clip", "gda", "coop", "kgcoop", "prograd", "cpl", "cocoop", "gopro", "stylip", "eco", "mocoop", "pre",
            "upl", "ship", "tai-dpt"]


def part_of(task, classes, support=True):
    """The task of some of the classes, with or without their support."""
    place = {number: index for index, number in enumerate(classes)}

    def rows(given):
        kept = torch.tensor([support and label in place for label in given.label.tolist()])
        label = torch.tensor([place[label] for label in given.label[kept].tolist()], dtype=torch.int64)
        return Rows(given.embedding[kept], label, None, {name: each[kept] for name, each in given.others.items()})

    prompts = torch.tensor([number in place for number in task.text.class_index.tolist()])
    index = torch.tensor([place[number] for number in task.text.class_index[prompts].tolist()])
    text = Text(task.text.embedding[prompts], index, tuple(task.text.class_names[number] for number in classes))
    return replace(task, text=text, support=rows(task.support))


@pytest.fixture
def halves(make_task):
    """Tasks of three classes with images, and of two other classes of which only the text is known."""
    task = make_task((4,) * 5, noise=1.0)
    return part_of(task, (0, 1, 2)), part_of(task, (3, 4), support=False)


def test_the_methods_that_serve_other_classes_are_those_that_hold_nothing_of_their_own():
    assert SERVES_OTHERS == EXPECTED


@pytest.mark.parametrize("name", SERVES_OTHERS)
def test_what_was_fitted_serves_other_classes_after_saving(halves, make_rows, make_method, tmp_path, name):
    """Five classes, of which three have images: what they teach is applied to the other two by their texts."""
    known, new = halves
    method = make_method((name, {}))
    fitted = method.fit(known)
    fitted.save(tmp_path)
    other = transfer(load_classifier(tmp_path), new)
    rows = make_rows((0, 0, 0, 30, 30), 10, noise=0.2, seed=60)
    logits = other.logits(rows.input(method.inputs))
    assert other.class_names == ("class 3", "class 4")
    assert (logits.argmax(dim=1) + 3 == rows.label).double().mean() > 0.95
    assert torch.equal(logits, transfer(fitted, new).logits(rows.input(method.inputs)))
    unmoved = name in ("zero-shot", "meta-adapter")  # which has no image of the other classes to look at
    assert torch.allclose(logits, ZeroShot().fit(new).logits(rows.embedding), rtol=1e-4, atol=1e-3) == unmoved


@pytest.mark.parametrize("name", [name for name in SERVES_OTHERS if name not in ("gda", "meta-adapter", "ship")])
def test_on_its_own_classes_a_transferred_classifier_is_the_fitted_one(halves, queries_of, make_method, name):
    """By their text alone: nothing of the support stands between the parameters and the head."""
    known, _ = halves
    fitted = make_method((name, {})).fit(known)
    again = transfer(fitted, replace(known, support=part_of(known, (0, 1, 2), support=False).support))
    assert_close(again.logits(queries_of(name)), fitted.logits(queries_of(name)), rtol=0, atol=0)


@pytest.fixture
def queries_of(make_rows):
    return lambda name: make_rows((5, 5, 5), 10, seed=50).input(METHODS[name].inputs)


def test_meta_adapter_looks_at_the_images_of_the_other_classes_where_there_are_any(make_task, make_rows, make_method):
    task = make_task((4,) * 5, noise=0.2)
    fitted = make_method(("meta-adapter", {})).fit(part_of(task, (0, 1, 2)))
    rows = make_rows((0, 0, 0, 30, 30), 10, noise=0.2, seed=60).embedding
    with_images, by_text = (transfer(fitted, part_of(task, (3, 4), support)).logits(rows) for support in (True, False))
    assert not torch.allclose(with_images, by_text, atol=0.1)


@pytest.mark.parametrize("name", SERVES_ITS_OWN)
def test_a_method_whose_numbers_belong_to_classes_refuses_other_ones(halves, make_method, name):
    known, new = halves
    fitted = make_method((name, {})).fit(known)
    assert fitted.parameters == {}
    with pytest.raises(MethodError, match=f"what {re.escape(name)} learns belongs to") as caught:
        transfer(fitted, new)
    assert "\n" not in str(caught.value)


class Shift(Method):
    """A method of a stranger: one vector that is added to every image."""

    name = "shift"
    hyperparameters = {"epochs": Hyperparameter(3, "epochs")}
    trained = True
    transfers = True
    solver = "own"

    def initial(self, prepared, generator):
        return {"shift": torch.zeros(prepared.dim)}

    def solve(self, prepared, start, progress):
        return {"shift": prepared.support.unit.mean(dim=0)}

    def head(self, prepared, parameters):
        zero_shot = zero_shot_head(prepared)
        return Linear(zero_shot.weight, zero_shot.weight @ parameters["shift"])


def test_a_strangers_method_serves_other_classes_by_saying_so(halves, make_rows, monkeypatch):
    monkeypatch.setitem(METHODS, "shift", Shift)
    known, new = halves
    rows = make_rows((2, 2, 2), 10, seed=5).embedding
    logits = transfer(Shift().fit(known), new).logits(rows)
    assert_close(logits, ZeroShot().fit(new).logits(rows) + new.zero_shot_weights @ known.support.unit.mean(dim=0))


def test_what_cannot_be_carried_over_says_why(halves, make_task):
    known, new = halves
    fitted = RLA(epochs=2).fit(known)
    for broken, pattern in ((replace(fitted, parameters={}), "rla was saved without what it needs"),
                            (replace(GDA().fit(known), parameters={}), "gda was saved without what it needs"),
                            (merge(fitted, ZeroShot().fit(known)), "a merge of rla and zero-shot serves its own"),
                            (merge(TaskRes(epochs=2).fit(known), fitted), "a merge of taskres and rla")):
        with pytest.raises(MethodError, match=pattern) as caught:
            transfer(broken, new)
        assert "\n" not in str(caught.value)
    with pytest.raises(MethodError, match="the text has 12 dimensions and the adapter takes rows of 10"):
        transfer(fitted, make_task(dim=12))


def test_a_temperature_is_not_claimed_for_other_classes(halves):
    known, new = halves
    fitted = replace(RLA(epochs=2).fit(known), temperature=2.5, calibrated_on="val")
    other = transfer(fitted, new)
    assert (other.temperature, other.calibrated_on) == (1.0, "")
    assert other.hyperparameters == fitted.hyperparameters


def test_gda_of_other_classes_is_zero_shot_and_their_borrowed_gaussians(halves, make_rows):
    """With the weight that was fitted; the Gaussians themselves are written out in test_golden_closed_form.py."""
    known, new = halves
    new = replace(new, logit_scale=40.0, logit_bias=-3.0)
    rows = make_rows((4, 4, 4), 10, seed=9).unit
    gaussian = new_classes(known.support.unit, new.text.class_weights)
    expected = 40 * rows @ new.text.class_weights.T - 3 + 0.25 * gaussian(rows)
    assert_close(transfer(GDA(alpha=0.25).fit(known), new).logits(rows), expected)


@pytest.mark.parametrize("views", [0, 3])
def test_gda_keeps_64_rows_of_a_class_at_most_spread_over_all(make_task, views):
    task = make_task((70, 3, 200), dim=6, views=views)
    rows, label = (each.numpy() for each in task.support.stacked)
    kept = GDA().fit(task).parameters["rows"].numpy()
    place = np.array([np.flatnonzero((rows == each).all(axis=1)).item() for each in kept])
    assert np.bincount(label[place]).tolist() == [64, min(64, 3 * max(views, 1)), 64]
    last = place[label[place] == 2] - np.flatnonzero(label == 2)[0]
    gaps = np.diff(np.sort(last))
    assert gaps.max() - gaps.min() <= 1
