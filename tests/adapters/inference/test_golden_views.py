"""Strategies on views give what the published code gave for the same tensors in float64."""

import pytest
import torch
from torch.testing import assert_close

from onceclip.adapters import MethodError
from onceclip.adapters.inference import INFERENCES, Queries
from onceclip.adapters.inference.mta import mean_shift
from onceclip.adapters.inference.tps import gradient
from onceclip.adapters.inference.views import chosen, entropy, most_confident, scores_of
from onceclip.adapters.inference.zero import ballot

from ..golden import VIEWS, WEIGHTS, near
from .golden import IMAGES, SCALE, linear, of_views


def inferred(name, queries, **values):
    classifier, task = linear()
    return INFERENCES[name](**values).run(classifier, queries, task).logits


def test_mta_is_the_published_one():
    near(inferred("mta", of_views(0, 2)), [[99.547341, 97.362744, 97.819478], [97.205170, 96.881146, 98.153883]])
    share = (SCALE * VIEWS[:1] @ WEIGHTS.T).softmax(dim=-1)
    _, weight = mean_shift(VIEWS[:1], share, 0.2, 4.0, 0.3)
    near(weight[0, :4], [0.786120, 0.026635, 0.088614, 0.009141])
    near(weight.sum(dim=1), [1.0])


def test_zero_is_the_published_one():
    scores = SCALE * VIEWS[[0, 2]] @ WEIGHTS.T
    votes, logits = ballot(chosen(scores, most_confident(scores, 0.5)))
    near(votes, [[4, 0, 0], [0, 0, 4]], 0)
    near(logits.exp(), [[0.787748, 0.099209, 0.113044], [0.211342, 0.130878, 0.657780]])
    assert_close(inferred("zero", of_views(0, 2), share=0.5), logits)


def test_tps_is_the_published_one():
    near(inferred("tps", of_views(0), share=0.5), [[99.608667, 97.082589, 97.576410]])
    scores = SCALE * VIEWS[:1] @ WEIGHTS.T
    kept = most_confident(scores, 0.5)
    found = gradient(chosen(VIEWS[:1], kept), chosen(scores, kept), WEIGHTS, SCALE)
    near(found[0, 0, :3], [-0.397015, 0.077691, 1.175840])


def test_the_gradient_of_tps_is_that_of_autograd():
    weights = WEIGHTS.clone().requires_grad_()
    kept = most_confident(SCALE * VIEWS @ WEIGHTS.T, 0.5)
    views = chosen(VIEWS, kept)
    mean = (SCALE * views @ (weights / weights.norm(dim=1, keepdim=True)).T).softmax(dim=-1).mean(dim=1)
    loss = -(mean * mean.log()).sum()
    expected, = torch.autograd.grad(loss, weights)
    assert_close(gradient(views, SCALE * views @ WEIGHTS.T, WEIGHTS, SCALE).sum(dim=0), expected)


@pytest.mark.parametrize(("pool", "expected"), [
    ("mean", [98.878463, 96.830398, 97.024996]), ("max", [99.555454, 97.519010, 97.842056]),
    ("feature", [99.239371, 97.183831, 97.379139])])
def test_crops_are_pooled_as_the_card_says(pool, expected):
    near(inferred("crops", Queries(IMAGES[:1], views=VIEWS[:1, :3]), pool=pool), [expected])


@pytest.mark.parametrize("pool", ["mean", "max", "feature"])
def test_an_image_filled_up_with_itself_scores_as_with_its_crops_alone(pool):
    few, many = VIEWS[:2, :3], torch.cat([VIEWS[:2, :3], VIEWS[:2, :1], VIEWS[:2, :1]], dim=1)
    assert_close(inferred("crops", Queries(IMAGES[:2], views=many), pool=pool),
                 inferred("crops", Queries(IMAGES[:2], views=few), pool=pool))


def test_entropy_of_a_certain_view_is_zero_and_it_comes_first():
    scores = torch.tensor([[[0.0, 0.0], [2000.0, 0.0], [1.0, 0.0]]])
    assert torch.equal(entropy(scores)[0, 1], torch.tensor(0.0))
    assert most_confident(scores, 0.7).tolist() == [[1, 2]]


def test_the_winner_of_the_vote_has_the_highest_logit_though_another_class_is_more_probable():
    classifier, task = linear(torch.eye(2, dtype=torch.float64), ("a", "b"))
    views = torch.tensor([[[0.503, 0.5], [0.503, 0.5], [0.0, 1.0]]], dtype=torch.float64)
    views = views / views.norm(dim=-1, keepdim=True)
    logits = INFERENCES["zero"](share=1.0).run(classifier, Queries(views[:, 0], views=views), task).logits
    assert logits.argmax() == 0
    assert scores_of(classifier, views).softmax(dim=-1).mean(dim=1).argmax() == 1
    near(logits.exp().sum(dim=1), [1.0])


def test_views_that_are_all_the_same_leave_the_classifier_as_it_is():
    same = VIEWS[:, :1].expand(-1, 6, -1).contiguous()
    plain = SCALE * IMAGES[:4] @ WEIGHTS.T
    assert_close(inferred("mta", Queries(IMAGES[:4], views=same)), plain)
    assert_close(inferred("zero", Queries(IMAGES[:4], views=same)), plain.log_softmax(dim=1))
    assert_close(inferred("crops", Queries(IMAGES[:4], views=same)), plain)


@pytest.mark.parametrize("name", ["zero", "mta", "tps", "crops"])
def test_without_views_the_message_says_how_to_make_them(name):
    with pytest.raises(MethodError, match="--views 64 --views-for test"):
        inferred(name, Queries(IMAGES))


def test_mta_needs_two_views_and_says_so():
    with pytest.raises(MethodError, match="needs 2 views of every image and there are 1"):
        inferred("mta", Queries(IMAGES[:4], views=VIEWS[:, :1]))
