"""Printed values of the strategies on sets, made by the authors' functions or by their formulas, to 1e-6."""

import torch
from torch.testing import assert_close

from onceclip.adapters.inference import INFERENCES, queries_of
from onceclip.adapters.inference.inmap import balanced

from ..golden import SUPPORT, WEIGHTS
from .golden import CLASSIFIER, IMAGES, QUERIES, TASK


def run(name, **values):
    return INFERENCES[name](**values).run(CLASSIFIER, QUERIES, TASK)


def near(found, *expected):
    assert_close(found.double().flatten(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


def test_zero_shot_is_where_they_begin():
    near(CLASSIFIER.head(IMAGES)[0], 99.555454, 97.369353, 97.842056)


def test_transclip():
    found = run("transclip")
    z = found.logits.softmax(dim=1)
    near(z[0], 0.889461, 0.037927, 0.072612)
    near(z[2], 0.177214, 0.114909, 0.707878)
    near(INFERENCES["transclip"]().fitted(CLASSIFIER, QUERIES)[2][:3], 0.00490954, 0.00375801, 0.00489728)


def test_stata():
    found = run("stata")
    z = found.logits.softmax(dim=1)
    near(z[0], 0.888646, 0.037557, 0.073796)
    near(z[2], 0.179651, 0.120470, 0.699879)
    near(run("stata", count="soft").logits.softmax(dim=1)[0], 0.888615, 0.037598, 0.073787)


def test_stata_leaves_its_gaussians_behind():
    head = INFERENCES["stata"]().solve(CLASSIFIER, QUERIES, TASK)[1].heads[0]
    mean = head.weight / (-2 * head.square)
    near(mean[0, :3], 0.594977, -0.313034, 0.147091)


def test_zlap():
    scores = run("zlap").logits.exp()
    near(scores[0], 0.035155, 0.031989, 0.032535)
    near(scores[2], 0.033017, 0.032425, 0.034227)


def test_zlap_of_a_graph_of_other_images():
    rows = queries_of(CLASSIFIER, SUPPORT)
    left = INFERENCES["zlap"](fit_on="train", neighbors=3).run(CLASSIFIER, QUERIES, TASK, rows).classifier
    near(left.head(IMAGES[:1]).exp(), 1.197918, 1.081474, 1.108136)


def test_reclip():
    scores = run("reclip", neighbors=4, directions=3).logits.exp()
    near(scores[0], 11.538460, 0.000000, 8.782509)
    assert scores.argmax(dim=1).tolist() == [0, 1, 2] * 4


def test_dn():
    left = run("dn", fit_on="query").classifier.head
    bias = torch.tensor([-24.183750, -24.164911, -24.248902], dtype=torch.float64)
    near((left.bias - left.bias[0]), *(bias - bias[0]).tolist())


def test_prior_bias():
    near(run("prior-bias", fit_on="query").classifier.head.bias, 0.082807, 0.038001, -0.120808)
    found = run("prior-bias", fit_on="query", marginal="estimated").classifier.head.bias
    near(found.softmax(dim=0), 0.283402, 0.326494, 0.390104)


def test_inmap():
    target = balanced((100 * IMAGES @ WEIGHTS.T).softmax(dim=1), 20)
    near(target[0], 0.797145, 0.085638, 0.117217)
    left = run("inmap", fit_on="query", iterations=200).classifier.head
    near(left.weight[0] * 0.04, 0.494156, 0.304612, -0.378862, -0.125119, 0.194276, -0.666643, -0.022281, -0.145525)
    near(left(IMAGES[:1]) * 0.04, 0.170202, -0.078222, -0.082300)


def test_conf_ot():
    found = run("conf-ot", fit_on="query").logits.softmax(dim=1)
    near(found[0], 0.783058, 0.090353, 0.126589)
