"""Every closed form against a plain numpy re-derivation that shares no code with the package."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from onceclip.adapters import GDA, LinearProbe, Rows, TipAdapter

from ..golden import keys_of, numpy_unit, stacked, text_of, without

SHAPES = pytest.mark.parametrize(("shots", "dim"), [((4, 4, 4), 20), ((9, 8, 7), 6), ((2, 5, 3), 12)],
                                 ids=["wide", "narrow", "ragged"])


def zero_shot(task, queries):
    return task.logit_scale * numpy_unit(queries) @ text_of(task).T


def dense_gda(mean, centred, queries, published=False):
    """Gaussian logits of class means and centred rows: the package's rescaled ones, or the published ones."""
    count, dim = centred.shape
    scatter = sum(np.outer(row, row) for row in centred)
    shrunk = scatter + np.trace(scatter) / (count - 1) * np.eye(dim)
    precision = dim * np.linalg.pinv(shrunk) if published else count * np.linalg.inv(shrunk)
    bias = [-each @ precision @ each / 2 for each in mean]
    return numpy_unit(queries) @ precision @ mean.T + bias


@SHAPES
@pytest.mark.parametrize("views", [0, 3])
@pytest.mark.parametrize("published", [False, True])
def test_gda_equals_the_dense_formula(make_task, make_rows, shots, dim, views, published):
    """Every view counts as a row; the published form has precision D / S and weight alpha N / D."""
    task, queries = make_task(shots, dim, views, dtype=torch.float64), make_rows(shots, dim, seed=9).embedding
    rows, label = stacked(task)
    alpha = 0.3 * (len(rows) / dim if published else 1)
    mean = np.stack([rows[label == number].mean(axis=0) for number in range(task.classes)])
    expected = zero_shot(task, queries) + alpha * dense_gda(mean, rows - mean[label], queries, published)
    actual = GDA(alpha=0.3).fit(task).logits(queries.double())
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


def test_gda_of_one_shot_takes_the_scatter_around_the_common_mean(make_task, make_rows):
    task, queries = make_task((1, 1, 1), 12, dtype=torch.float64), make_rows((2, 2, 2), 12, seed=9).embedding
    rows = numpy_unit(task.support.embedding)
    expected = zero_shot(task, queries) + 0.3 * dense_gda(rows, rows - rows.mean(axis=0), queries)
    actual = GDA(alpha=0.3).fit(task).logits(queries.double())
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


def test_gda_puts_a_class_without_images_where_its_text_is(make_task, make_rows):
    task, queries = make_task((3, 0, 4), 12, dtype=torch.float64), make_rows((2, 2, 2), 12, seed=9).embedding
    rows, label, mean = numpy_unit(task.support.embedding), task.support.label.numpy(), text_of(task)
    for number in (0, 2):
        mean[number] = rows[label == number].mean(axis=0)
    expected = zero_shot(task, queries) + 0.3 * dense_gda(mean, rows - mean[label], queries)
    actual = GDA(alpha=0.3).fit(task).logits(queries.double())
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


@SHAPES
def test_leave_one_out_of_gda_equals_refitting_without_each_image(make_task, shots, dim):
    task = make_task(shots, dim, noise=0.3, dtype=torch.float64)
    method = GDA(alpha=0.1)
    first, second = method.leave_one_out(method.prepare(task))
    refitted = [method.fit(without(task, row)).logits(task.support.embedding[row: row + 1])
                for row in range(len(task.support))]
    torch.testing.assert_close((first + 0.1 * second).float(), torch.cat(refitted), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("copies", [2, 3, 5])
def test_gda_keeps_its_logits_small_when_all_shots_of_a_class_are_copies(make_task, copies, leave_one_out):
    """The scatter is then rounding noise, which must not be inverted."""
    task = make_task((1, 1, 1), 8)
    brightness = 1 + torch.arange(3.0 * copies).unsqueeze(1) / 7
    support = Rows(task.support.embedding.repeat(copies, 1) * brightness, task.support.label.repeat(copies))
    task, method = replace(task, support=support), GDA(alpha=1.0)
    logits = (method.leave_one_out(method.prepare(task))[1] if leave_one_out
              else method.fit(task).logits(support.embedding))
    assert logits.abs().max() < 1e4


@pytest.mark.parametrize("label", [(0, 0), (0, 0, 1, 1, 2, 2)], ids=["alone", "beside copies"])
def test_leave_one_out_of_gda_stays_small_when_the_image_left_out_was_all_the_scatter(make_task, label):
    """Two images of one class differ, all others are copies: without one of the two nothing varies."""
    task = make_task((2, 1, 1), 8)
    support = Rows(task.support.embedding[[0, 1, 2, 2, 3, 3][:len(label)]], torch.tensor(label))
    method = GDA()
    _, second = method.leave_one_out(method.prepare(replace(task, support=support)))
    assert second.abs().max() < 1e4


@SHAPES
@pytest.mark.parametrize("views", [0, 3])
def test_leave_one_out_of_tip_adapter_equals_refitting_without_each_image(make_task, shots, dim, views):
    task, method = make_task(shots, dim, views, dtype=torch.float64), TipAdapter(alpha=2.0, beta=3.0)
    first, second = method.leave_one_out(method.prepare(task))
    refitted = [method.fit(without(task, row)).logits(task.support.embedding[row: row + 1])
                for row in range(len(task.support))]
    torch.testing.assert_close((first + 2.0 * second).float(), torch.cat(refitted))


@SHAPES
@pytest.mark.parametrize("views", [0, 3])
def test_tip_adapter_equals_the_one_hot_formula(make_task, make_rows, shots, dim, views):
    """A key is the unit mean of the raw views, and of nothing else where views exist."""
    task, queries = make_task(shots, dim, views, dtype=torch.float64), make_rows(shots, dim, seed=9).embedding
    affinity = np.exp(-5.5 * (1 - numpy_unit(queries) @ keys_of(task).T))
    expected = zero_shot(task, queries) + 1.7 * affinity @ np.eye(task.classes)[task.support.label]
    actual = TipAdapter(alpha=1.7, beta=5.5).fit(task).logits(queries.double())
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@SHAPES
@pytest.mark.parametrize("views", [0, 3])
@pytest.mark.parametrize("l2", [1e-1, 1e-3, 1e-5])
def test_linear_probe_equals_logistic_regression_of_scikit_learn(make_task, make_rows, shots, dim, views, l2):
    task, queries = make_task(shots, dim, views, noise=0.4), make_rows(shots, dim, noise=0.4, seed=9).embedding
    rows, label = stacked(task)
    theirs = LogisticRegression(C=1 / (l2 * len(rows)), tol=1e-12, max_iter=100_000).fit(rows, label)
    ours = LinearProbe(l2=l2).fit(task)

    def objective(weight, logits):
        shifted = logits - logits.max(axis=1, keepdims=True)
        likelihood = shifted[np.arange(len(label)), label] - np.log(np.exp(shifted).sum(axis=1))
        return -likelihood.mean() + l2 / 2 * (weight**2).sum()

    mine = ours.logits(torch.from_numpy(rows).float()).double().numpy()
    assert objective(ours.head.weight.double().numpy(), mine) == pytest.approx(
        objective(theirs.coef_, theirs.decision_function(rows)), abs=1e-5)
    np.testing.assert_array_equal(ours.logits(queries).argmax(dim=1), theirs.predict(numpy_unit(queries)))
