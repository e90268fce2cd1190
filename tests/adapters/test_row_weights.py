"""Weights of support rows: one of two counts as two rows, one of zero as none, and who cannot weigh rows says so."""

import re
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from onceclip.adapters import GDA, METHODS, MethodError, Rows, fit_all

REPEATED = {"gda": {}, "tip-adapter": {},
            "clip-adapter": {"epochs": 12, "reduction": 1, "learning_rate": 0.01}, "zs-lp": {"epochs": 12},
            "taskres": {"epochs": 12, "optimizer": "sgd", "learning_rate": 0.5}}
WEIGHT = torch.tensor([2, 1, 0, 3, 1, 1, 2, 1, 1])


def weighed(task):
    return replace(task, support=replace(task.support, weight=WEIGHT.to(task.support.embedding)))


def repeated(task):
    rows = torch.arange(len(WEIGHT)).repeat_interleave(WEIGHT)
    return replace(task, support=Rows(task.support.embedding[rows], task.support.label[rows]))


def without_views(task):
    return replace(task, support=Rows(task.support.embedding, task.support.label))


@pytest.mark.parametrize("name", REPEATED)
def test_a_weight_counts_as_so_many_rows(make_task, make_rows, name):
    task = without_views(make_task((3, 3, 3), noise=1.5)).to(torch.float64)
    queries = make_rows((5, 5, 5), 10, seed=50)
    method = METHODS[name](**REPEATED[name])
    found, expected = (method.fit(each(task)).logits(queries.embedding) for each in (weighed, repeated))
    assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - method.fit(task).logits(queries.embedding)).abs().max() > 1e-3


def test_keys_of_a_fine_tuned_cache_are_weighed_too(make_task, make_rows):
    task, queries = without_views(make_task((3, 3, 3))), make_rows((5, 5, 5), 10, seed=50).embedding
    method = METHODS["tip-adapter-f"](epochs=3)
    nothing = replace(task, support=replace(task.support, weight=torch.zeros(9)))
    assert_close(method.fit(nothing).logits(queries), METHODS["zero-shot"]().fit(task).logits(queries), atol=1e-4,
                 rtol=1e-5)
    assert (method.fit(weighed(task)).logits(queries) - method.fit(task).logits(queries)).abs().max() > 1e-3


def test_rows_without_any_weight_leave_the_default_share(make_task):
    task = without_views(make_task((3, 3, 3)))
    nothing = replace(task, support=replace(task.support, weight=torch.zeros(9)))
    method = METHODS["zs-lp"]()
    assert method.suited(nothing).values["share"] == method.values["share"]
    assert method.suited(task).values["share"] > method.values["share"]


def test_runs_that_share_their_steps_weigh_rows_as_each_alone(make_task, make_rows):
    task, queries = weighed(without_views(make_task((3, 3, 3)))), make_rows((5, 5, 5), 10, seed=50).embedding
    methods = [METHODS["zs-lp"](epochs=8, learning_rate=rate, batch_size=4) for rate in (0.03, 0.1)]
    for method, selection in zip(methods, fit_all(methods, task), strict=True):
        assert_close(selection.classifier.logits(queries), method.fit(task, seed=0).logits(queries), rtol=1e-4,
                     atol=1e-4)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.weighs])
def test_a_method_that_cannot_weigh_rows_refuses_them_by_its_name(make_task, name):
    with pytest.raises(MethodError, match=f"^{re.escape(name)} cannot weigh its support rows") as caught:
        METHODS[name]().check(weighed(make_task((3, 3, 3))))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("more", [
    {"loss": lambda self, prepared, parameters, rows, label, generator: parameters["prototype"].square().sum()},
    {"solver": "lbfgs"}], ids=["loss", "solver"])
def test_a_training_that_would_pass_over_the_weights_refuses_them(make_task, more):
    own = type("Own", (METHODS["zs-lp"],), {"name": "own", **more})
    with pytest.raises(MethodError, match="own cannot weigh its support rows"):
        own(epochs=2).fit(weighed(without_views(make_task((3, 3, 3)))))
    own(epochs=2).fit(without_views(make_task((3, 3, 3))))


def test_what_has_no_meaning_with_weights_is_refused(make_task):
    task = weighed(make_task((3, 3, 3)))
    with pytest.raises(MethodError, match="covariance=pooled alone"):
        GDA(covariance="class-mean").fit(task)
    with pytest.raises(MethodError, match="takes all support rows alike"):
        GDA().check_left_out(task)


@pytest.mark.parametrize("weight", [torch.ones(8), -torch.ones(9), torch.full((9,), float("nan"))])
def test_weights_that_fit_nothing_are_one_line(make_task, weight):
    task = make_task((3, 3, 3))
    with pytest.raises(MethodError, match="weights of shape") as caught:
        replace(task, support=replace(task.support, weight=weight))
    assert "\n" not in str(caught.value)


def test_rows_are_joined_with_what_both_have(make_rows):
    first, second = make_rows((2, 2), 10, views=2), make_rows((1, 1), 10)
    both = first.joined(replace(second, others={"preproj": second.others["preproj"]}, weight=torch.tensor([0.5, 2.0])))
    assert both.weight.tolist() == [1, 1, 1, 1, 0.5, 2]
    assert both.views is None
    assert both.others.keys() == {"preproj"}
    assert both.label.tolist() == [0, 0, 1, 1, 0, 1]
