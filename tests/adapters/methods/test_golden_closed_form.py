"""ProKeR, TIP-X and the further forms of GDA: a printed value (methods/trained.md, section 9), and each formula written
out in numpy, with every pair and every inverse, to 1e-9."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from onceclip.adapters import GDA, GDAEM, MethodError, ProKeR, TipX
from onceclip.adapters.heads import FourierFeatures, KernelMachine
from onceclip.adapters.methods import gda, proker
from onceclip.adapters.methods.gda import new_classes
from onceclip.adapters.training import convex as ridge_module

from ..golden import golden_queries, golden_task, grid, keys_of, numpy_unit, stacked, text_of, without

SHAPES = pytest.mark.parametrize(("shots", "views"), [((4, 4, 4), 0), ((2, 5, 3), 3), ((3, 0, 4), 2), ((1, 1, 1), 2)],
                                 ids=["equal", "ragged", "without images", "one shot"])


def exact(classifier, rows):
    """Logits in the precision of the head."""
    return classifier.head(torch.from_numpy(numpy_unit(rows)).to(classifier.head.dtype)).double().numpy()


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


@pytest.fixture(autouse=True)
def few_frequencies(monkeypatch):
    """A system of 512 random features instead of 4096 is solved in no time."""
    monkeypatch.setattr(proker, "_FREQUENCIES", 256)


@pytest.fixture
def drawn(make_task, make_rows):
    """Function that gives a task and queries in float64."""
    return lambda shots, views=0, dim=12, noise=0.4: (make_task(shots, dim, views, noise=noise, dtype=torch.float64),
                                                      make_rows(shots, dim, seed=9).embedding.double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_proker_logits(dtype):
    """Printed for logits without a scale and the plain images as support."""
    task = replace(golden_task(dtype), logit_scale=1.0)
    logits = ProKeR(beta=2.0, ridge=10.0).fit(task).logits(golden_queries(dtype))
    expected = torch.tensor([0.008084, 0.470154, 0.554107])
    assert_close(logits[0], expected, rtol=0, atol=6e-7 if dtype == torch.float64 else 1e-4)


@SHAPES
@pytest.mark.parametrize("gain", ["ridge", "one"])
def test_proker_equals_the_dense_formula(drawn, shots, views, gain):
    """Every view is a row; the authors' (K / ridge + I)^-1 is the textbook's times the ridge."""
    task, queries = drawn(shots, views)
    rows, label = stacked(task)
    text, ridge = text_of(task), 0.3
    kernel = np.exp(-2 * (1 - rows @ rows.T))
    shifted = kernel / ridge + np.eye(len(rows)) if gain == "ridge" else kernel + ridge * np.eye(len(rows))
    solved = np.linalg.solve(shifted, np.eye(task.classes)[label] - rows @ text.T)
    expected = numpy_unit(queries) @ text.T + np.exp(-2 * (1 - numpy_unit(queries) @ rows.T)) @ solved
    actual = exact(ProKeR(beta=2.0, ridge=ridge, gain=gain).fit(task), queries)
    np.testing.assert_allclose(actual / task.logit_scale, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eigen", [0, 10**6])
def test_one_matrix_is_solved_for_every_ridge_by_either_way(eigen, monkeypatch):
    monkeypatch.setattr(ridge_module, "_EIGEN", eigen)
    points, right = grid((9, 4), 0.2), grid((9, 3), 0.7)
    systems = ridge_module.Ridges(points @ points.T, right)  # of rank 4
    for ridge in (0.01, 1.0, 30.0):
        shifted = points @ points.T + ridge * torch.eye(9, dtype=torch.float64)
        assert_close(shifted @ systems.solution(ridge), right)
        assert_close(shifted @ systems.inverse(ridge), torch.eye(9, dtype=torch.float64))


def test_proker_decomposes_a_kernel_once_for_all_ridges(drawn, monkeypatch):
    calls = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: calls.append(1) or eigh(matrix))
    task, _ = drawn((4, 4, 4))
    prepared = ProKeR().prepare(task)
    for beta in (1.0, 2.0):
        for ridge in (0.1, 1.0, 10.0):
            ProKeR(beta=beta, ridge=ridge).head(prepared, {})
    assert len(calls) == 2


@pytest.mark.parametrize("eigen", [0, 10**6])
@pytest.mark.parametrize("views", [0, 3])
@pytest.mark.parametrize("rows", ["views", "means"])
def test_leave_one_out_of_proker_equals_refitting_without_each_image_and_all_its_views(drawn, views, rows, eigen,
                                                                                      monkeypatch):
    """Leaving out one view while the others stay would be badly optimistic."""
    monkeypatch.setattr(ridge_module, "_EIGEN", eigen)
    task, _ = drawn((3, 2, 4), views)
    method = ProKeR(beta=3.0, ridge=0.2, rows=rows)
    first, second = method.leave_one_out(method.prepare(task))
    refitted = [exact(method.fit(without(task, row)), task.support.embedding[row:row + 1])
                for row in range(len(task.support))]
    np.testing.assert_allclose(first + second, np.concatenate(refitted), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("most", "form", "keys"), [(12, "views", 12), (11, "means", 4), (3, "features", None)])
def test_proker_takes_the_first_form_whose_kernel_fits_and_records_it(drawn, monkeypatch, most, form, keys):
    monkeypatch.setattr(proker, "_MOST", most)
    task, _ = drawn((1, 1, 2), views=3)
    fitted = ProKeR().fit(task)
    assert fitted.hyperparameters["rows"] == form
    regression = fitted.head.heads[1]
    assert isinstance(regression, KernelMachine if keys else FourierFeatures)
    assert not keys or len(regression.keys) == keys


def test_proker_of_random_features_is_near_the_kernel(drawn):
    task, queries = drawn((20, 20, 20))
    kernel, features = (exact(ProKeR(beta=1.0, ridge=1.0, rows=rows).fit(task), queries) for rows in
                        ("views", "features"))
    assert np.abs(kernel - features).max() < 0.1 * np.ptp(kernel)
    again = exact(ProKeR(beta=1.0, ridge=1.0, rows="features").fit(task, seed=9), queries)
    np.testing.assert_array_equal(again, features)


def test_random_features_are_summed_in_pieces(drawn, monkeypatch):
    task, queries = drawn((5, 4, 2))
    whole = exact(ProKeR(rows="features").fit(task), queries)
    monkeypatch.setattr(proker, "_PIECE", 4)
    np.testing.assert_allclose(exact(ProKeR(rows="features").fit(task), queries), whole, rtol=1e-6, atol=1e-6)


def divergences(rows, keys, text, tau):
    """Divergence of every row's probabilities from every key's: (rows, keys)."""
    left, right = softmax(rows @ text.T / tau), softmax(keys @ text.T / tau)
    return np.array([[(p * np.log(p / q)).sum() for q in right] for p in left])


def centred(logits):
    """Without what all classes of a row have in common."""
    return logits - logits.mean(axis=1, keepdims=True)


@SHAPES
@pytest.mark.parametrize("sums", [False, True])
def test_tip_x_equals_the_formula_with_every_pair_of_row_and_key(drawn, shots, views, sums):
    """The package never builds the (rows, keys) matrix of divergences; the two differ by a constant per row."""
    task, queries = drawn(shots, views)
    text, keys, label, rows = text_of(task), keys_of(task), task.support.label.numpy(), numpy_unit(queries)
    one_hot = np.eye(task.classes)[label]
    far = divergences(rows, keys, text, 0.5)
    if sums:
        among, cosine = divergences(keys, keys, text, 0.5), keys @ keys.T
        slope = np.ptp(cosine) / np.ptp(among)
        far = slope * (far - among.min()) + cosine.min()
    else:
        one_hot = one_hot / one_hot.sum(axis=0).clip(1)
    term = far @ one_hot
    if not sums:
        for number in set(range(task.classes)) - set(label.tolist()):
            term[:, number] = divergences(rows, text[number:number + 1], text, 0.5)[:, 0]
    cache = np.exp(-2 * (1 - rows @ keys.T)) @ np.eye(task.classes)[label]
    expected = task.logit_scale * rows @ text.T + 1.7 * cache - 3 * term
    actual = exact(TipX(alpha=1.7, beta=2.0, gamma=3.0, sums=sums).fit(task), queries)
    np.testing.assert_allclose(centred(actual), centred(expected), rtol=1e-9, atol=1e-9)


def test_equal_shots_make_sums_and_means_of_tip_x_the_same_but_for_their_scale(drawn):
    """Which of the two is taken matters to ragged supports alone."""
    task, queries = drawn((4, 4, 4))
    prepared = TipX().prepare(task)
    mean, total = (TipX(gamma=1.0, sums=sums).terms(prepared, {})[0].heads[1] for sums in (False, True))
    rows = torch.from_numpy(numpy_unit(queries))
    means, sums = centred(mean(rows).numpy()), centred(total(rows).numpy())
    factor = (sums * means).sum() / (means * means).sum()
    np.testing.assert_allclose(sums, factor * means, rtol=1e-6, atol=1e-9)
    assert factor > 4


@pytest.mark.parametrize("views", [0, 2])
def test_leave_one_out_of_tip_x_equals_refitting_without_each_image(drawn, views):
    task, _ = drawn((3, 2, 4), views)
    method = TipX(alpha=2.0, beta=3.0, gamma=7.0)
    first, second = method.leave_one_out(method.prepare(task))
    refitted = [exact(method.fit(without(task, row)), task.support.embedding[row:row + 1])
                for row in range(len(task.support))]
    np.testing.assert_allclose(first + 2.0 * second, np.concatenate(refitted), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", [TipX(sums=True), ProKeR(rows="features")], ids=["tip-x", "proker"])
def test_leave_one_out_without_a_short_form_is_refused_with_what_to_do(drawn, method):
    task, _ = drawn((3, 3, 3))
    with pytest.raises(MethodError, match="--select val"):
        method.check_left_out(task)


def dense_em(task, rows, weight, steps):
    """Means and shared precision of the mixture after some steps, every row and class on its own."""
    text = text_of(task)
    zero_shot = task.logit_scale * rows @ text.T
    logits = zero_shot
    for _ in range(steps):
        share = softmax(logits)
        mean = np.stack([np.average(rows, axis=0, weights=share[:, number]) for number in range(task.classes)])
        scatter = sum(share[n, c] * np.outer(rows[n] - mean[c], rows[n] - mean[c])
                      for n in range(len(rows)) for c in range(task.classes))
        precision = len(rows) * np.linalg.inv(scatter + np.trace(scatter) / (len(rows) - 1) * np.eye(rows.shape[1]))
        gaussian = [precision @ mean.T, np.array([-each @ precision @ each / 2 for each in mean])]
        logits = zero_shot + weight * (rows @ gaussian[0] + gaussian[1])
    return gaussian


@pytest.mark.parametrize("given", [True, False], ids=["unlabelled", "support"])
def test_gda_em_equals_the_mixture_written_out_row_by_row(drawn, make_rows, given):
    task, queries = drawn((3, 4, 2), views=2)
    if given:
        task = replace(task, unlabelled=make_rows((9, 6, 3), 12, seed=31).embedding.double())
    rows = numpy_unit(task.unlabelled) if given else stacked(task)[0]
    weight, bias = dense_em(task, rows, 0.3, 4)
    expected = task.logit_scale * numpy_unit(queries) @ text_of(task).T + 0.2 * (numpy_unit(queries) @ weight + bias)
    actual = exact(GDAEM(alpha=0.2, weight=0.3, steps=4).fit(task), queries)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


def test_gda_em_reads_no_label(drawn):
    task, queries = drawn((3, 4, 2))
    other = replace(task, support=replace(task.support, label=task.support.label.flip(0)))
    np.testing.assert_array_equal(exact(GDAEM().fit(task), queries), exact(GDAEM().fit(other), queries))


def test_gda_em_needs_images_of_some_kind(make_task, make_rows):
    task = make_task((0, 0, 0))
    with pytest.raises(MethodError, match="images without labels"):
        GDAEM().fit(task)
    assert GDAEM().fit(replace(task, unlabelled=make_rows((3, 3, 3), 10).embedding)).method == "gda-em"


def test_gda_treats_all_classes_alike_however_many_images_they_have(drawn):
    """A long tail of classes is not held against them: more copies of a class move its mean, not its prior."""
    task, queries = drawn((4, 4, 4))
    prepared = GDA().prepare(task)
    fewer = replace(prepared, count=torch.tensor([400.0, 4.0, 1.0], dtype=torch.float64))
    rows = torch.from_numpy(numpy_unit(queries))
    assert torch.equal(GDA().terms(prepared, {})[1](rows), GDA().terms(fewer, {})[1](rows))


@pytest.mark.parametrize("shots", [(7, 9, 8), (7, 1, 8)])
def test_gda_by_the_mean_of_the_classes_covariances_equals_the_dense_formula(make_task, make_rows, shots):
    """What the authors' code takes for base classes: no shrinkage, a pseudo-inverse, classes counted alike."""
    task = make_task(shots, 4, dtype=torch.float64)
    rows, label = stacked(task)
    queries = numpy_unit(make_rows((3, 3, 3), 4, seed=9).embedding)
    means = np.stack([rows[label == number].mean(axis=0) for number in range(3)])
    own = [np.cov(rows[label == number].T) for number in range(3) if shots[number] > 1]
    precision = np.linalg.pinv(np.mean(own, axis=0))
    expected = 100 * queries @ text_of(task).T + 0.3 * (
        queries @ precision @ means.T - [mean @ precision @ mean / 2 for mean in means])
    method = GDA(alpha=0.3, covariance="class-mean")
    np.testing.assert_allclose(exact(method.fit(task), queries), expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(MethodError, match="leave-one-image-out of gda needs covariance=pooled"):
        method.check_left_out(task)


@pytest.mark.parametrize("piece", [1, 16])
@pytest.mark.parametrize("dim", [12, 3])
def test_gda_of_new_classes_equals_the_dense_formula(make_task, make_rows, monkeypatch, dim, piece):
    """Neighbours of each text, scatter around it, the mean of the classes' inverses; base rows with all their views."""
    monkeypatch.setattr(gda, "_CLASSES", piece)
    task = make_task((4, 5, 3), dim, views=2, dtype=torch.float64)
    text = torch.from_numpy(numpy_unit(grid((5, dim), 0.4)))
    rows, queries = stacked(task)[0], numpy_unit(make_rows((3, 3, 3), dim, seed=9).embedding)
    means, precisions = [], []
    for each in text.numpy():
        near = rows[np.argsort(-rows @ each)[:6]]
        means.append((near.sum(axis=0) + 2.5 * each) / 8.5)
        scatter = (near - each).T @ (near - each)
        precisions.append(6 * np.linalg.inv(scatter + np.trace(scatter) / 5 * np.eye(dim)))
    precision = np.mean(precisions, axis=0)
    expected = queries @ precision @ np.stack(means).T - [mean @ precision @ mean / 2 for mean in means]
    head = new_classes(task.support.stacked[0], text, neighbours=6, text_weight=2.5)
    np.testing.assert_allclose(head(torch.from_numpy(queries)).numpy(), expected, rtol=1e-9, atol=1e-9)
