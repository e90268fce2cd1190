"""Strategies on streams give what the published code gave, and predict with what came before alone."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from onceclip.adapters import MethodError, Rows
from onceclip.adapters.inference import INFERENCES, Queries
from onceclip.adapters.inference.stream import Memory
from onceclip.adapters.ops import unit

from ..golden import LABEL, SUPPORT, near
from .golden import IMAGES, linear

STREAMS = [name for name, each in INFERENCES.items() if each.sees == "stream"]


def inferred(name, rows=IMAGES, **values):
    classifier, task = linear()
    return INFERENCES[name](**values).run(classifier, Queries(rows), task)


def test_tda_is_the_published_one():
    found = inferred("tda")
    near(found.logits[[0, 11]], [[101.438454, 97.252353, 97.725056], [99.270899, 98.162334, 102.927572]])
    assert found.diagnostics == {"cached": 9, "cached_negative": 6}
    near(inferred("tda", IMAGES.flip(0)).logits[11], [104.677166, 100.768660, 101.777533])


def test_dmn_reads_its_memory_as_the_published_code_does():
    plain = (100 * IMAGES @ linear()[1].text.class_weights.T).softmax(dim=1)
    dynamic = 2 * inferred("dmn").logits.softmax(dim=1) - plain
    near(dynamic[[0, 11]], [[0.827067, 0.066402, 0.106531], [0.014982, 0.008483, 0.976535]])


def test_dmn_adds_what_the_support_says_as_a_memory_that_never_changes():
    classifier, task = linear()
    support = Rows(SUPPORT, LABEL)
    found = INFERENCES["dmn"](weight=0, static=1, sharpness=5.5).run(classifier, Queries(IMAGES),
                                                                    replace(task, support=support))
    weights = task.text.class_weights
    keys, label = torch.cat([weights, SUPPORT]), torch.cat([torch.arange(3), LABEL])
    near_to = (5.5 * (IMAGES @ keys.T - 1)).exp()
    read = unit(torch.stack([near_to[:, label == each] @ keys[label == each] for each in range(3)], dim=1))
    static = (100 * (read @ IMAGES[:, :, None]).squeeze(2)).softmax(dim=1)
    assert_close(2 * found.logits.softmax(dim=1) - (100 * IMAGES @ weights.T).softmax(dim=1), static)
    assert found.diagnostics["static"] == 6
    with pytest.raises(MethodError, match="has none here"):
        INFERENCES["dmn"](static=1).run(classifier, Queries(IMAGES), task)


def test_onzeta_is_the_published_one():
    near(inferred("onzeta").logits[[0, 11]].exp(), [[0.698504, 0.126790, 0.174706], [0.002852, 0.800160, 0.196988]])


@pytest.mark.parametrize("name", STREAMS)
def test_what_comes_later_changes_no_earlier_answer(name):
    whole, half = inferred(name).logits, inferred(name, IMAGES[:6]).logits
    if name == "onzeta":  # the length of the stream sets the weight of what is learned
        whole = inferred(name, torch.cat([IMAGES[:6], IMAGES[6:].flip(0)])).logits
        half = inferred(name).logits
    assert_close(half[:6], whole[:6])


@pytest.mark.parametrize("name", ["tda", "dmn"])
def test_an_image_may_enter_after_its_answer_so_that_the_first_has_the_classifiers_own(name):
    classifier, _ = linear()
    first = inferred(name, enters="after").logits[0].log_softmax(dim=0)
    plain = classifier.head(IMAGES[:1])[0].log_softmax(dim=0)
    if name == "dmn":
        assert first.argmax() == plain.argmax()  # the class vectors alone are in its memory
        assert not torch.allclose(first, inferred(name).logits[0].log_softmax(dim=0))
    else:
        assert_close(first, plain)


def test_caches_of_no_capacity_leave_the_classifier_as_it_is():
    classifier, _ = linear()
    found = inferred("tda", capacity=0, negative_capacity=0)
    assert_close(found.logits, classifier.head(IMAGES))
    assert found.diagnostics == {"cached": 0, "cached_negative": 0}


@pytest.mark.parametrize("name", STREAMS)
def test_an_empty_stream_has_no_answers(name):
    assert inferred(name, IMAGES[:0]).logits.shape == (0, 3)


def test_a_memory_keeps_the_surest_rows_of_each_class_and_grows():
    rows = torch.randn(500, 4, generator=torch.Generator().manual_seed(3))
    surprise = torch.rand(500, generator=torch.Generator().manual_seed(4))
    label = torch.arange(500) % 5
    memory = Memory(5, 30, rows[0])
    for row, each, entropy in zip(rows, label.tolist(), surprise.tolist(), strict=True):
        memory.add(each, entropy, row)
    assert len(memory.keys) == 150
    for number in range(5):
        mine = torch.where(label == number)[0]
        best = mine[surprise[mine].argsort()[:30]]
        kept = memory.keys[memory.label == number]
        assert {tuple(row) for row in kept.tolist()} == {tuple(row) for row in rows[best].tolist()}
