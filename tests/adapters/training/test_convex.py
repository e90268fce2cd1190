"""The solver of convex problems ends where the loss is lowest, from anywhere and whatever the loss."""

from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy, one_hot
from torch.testing import assert_close

from onceclip.adapters import LinearProbe, LpClip, MethodError, Rows
from onceclip.adapters.heads import Linear
from onceclip.adapters.ops import reduced_products
from onceclip.adapters.training.convex import solve
from onceclip.adapters.training.loop import Run


def solved(method, task, seed=0):
    return solve(Run(method, task, task, seed), method.initial(task, torch.Generator().manual_seed(seed)))


def objective(parameters, task, l2):
    """Loss of a linear probe in float64, and the largest part of its gradient."""
    weight, bias = (parameters[name].double().requires_grad_() for name in ("weight", "bias"))
    rows, label = task.support.stacked
    logits = (rows - task.support.centre).double() @ weight.T + bias
    loss = cross_entropy(logits, label) + l2 / 2 * weight.square().sum()
    return float(loss.detach()), max(float(each.abs().max()) for each in torch.autograd.grad(loss, [weight, bias]))


@pytest.mark.parametrize("shots", [(1, 1, 1), (3, 9, 1, 5), (40,) * 6], ids=["one", "ragged", "many"])
@pytest.mark.parametrize("l2", [1e3, 1.0, 1e-2, 1e-4])
def test_no_gradient_is_left(make_task, shots, l2):
    task = make_task(shots, dim=24, noise=0.8)
    start, _ = objective({"weight": torch.zeros(len(shots), 24), "bias": torch.zeros(len(shots))}, task, l2)
    found, gradient = objective(solved(LinearProbe(l2=l2), task), task, l2)
    assert found < start
    assert gradient < 1e-4 * max(1.0, l2)


@pytest.mark.parametrize("l2", [1e-6, 1e-8])
def test_a_decay_of_next_to_nothing_is_solved_as_well_as_by_scikit_learn(make_task, l2):
    """Classes are separable: the weights grow long, and every gradient is small long before the end."""
    task = make_task((6, 6, 6, 6), dim=24)
    rows, label = task.support.unit.double().numpy(), task.support.label.numpy()
    known = LogisticRegression(C=1 / (l2 * len(rows)), tol=1e-10, max_iter=100_000).fit(rows, label)
    weight = torch.from_numpy(known.coef_)
    theirs = {"weight": weight, "bias": torch.from_numpy(known.intercept_) + weight @ task.support.centre.double()}
    assert objective(solved(LinearProbe(l2=l2), task), task, l2)[0] <= objective(theirs, task, l2)[0] + 1e-6


class Elsewhere(LinearProbe):
    """Starts far away."""

    name = "elsewhere"

    def initial(self, prepared, generator):
        zero = super().initial(prepared, generator)
        return {name: torch.randn(value.shape, generator=generator).to(value) for name, value in zero.items()}


def test_the_start_does_not_matter(make_task):
    task = make_task((5, 5, 5), dim=12, noise=0.8)
    one, two = (solved(method, task)["weight"] for method in (LinearProbe(l2=1e-3), Elsewhere(l2=1e-3)))
    assert_close(one, two, rtol=0, atol=1e-2)


def test_equal_problems_have_equal_solutions_whatever_the_products_of_a_search(make_task):
    task, method = make_task((5, 5, 5), dim=12, noise=0.8), LinearProbe(l2=1e-3)
    expected = solved(method, task)
    with reduced_products(torch.bfloat16):
        assert_close(solved(method, task), expected, rtol=0, atol=0)


@pytest.mark.parametrize("l2", [0.0, 1e6])
def test_extreme_decays_give_usable_classifiers(make_task, make_rows, l2):
    task, queries = make_task((4, 4, 4), dim=12), make_rows((8, 8, 8), dim=12, seed=5)
    logits = LinearProbe(l2=l2).classifier(task, task, solved(LinearProbe(l2=l2), task)).logits(queries.embedding)
    assert torch.isfinite(logits).all()
    assert (logits.argmax(dim=1) == queries.label).double().mean() > 0.8


class Squares(LinearProbe):
    """Ridge regression: a loss of its own."""

    name = "squares"

    def loss(self, prepared, parameters, rows, label, generator):
        logits = self.head(prepared, parameters)(rows)
        return (logits - one_hot(label, prepared.classes)).square().sum(1).mean() + self.penalty(prepared, parameters)


class Quartic(LinearProbe):
    """A penalty that is not quadratic."""

    name = "quartic"

    def penalty(self, prepared, parameters):
        return self.l2 * parameters["weight"].pow(4).sum()


class Curved(LinearProbe):
    """Logits that are not linear in the parameters."""

    name = "curved"

    def head(self, prepared, parameters):
        return Linear(parameters["weight"].sinh(), parameters["bias"])


@pytest.mark.parametrize("kind", [Squares, Quartic, Curved], ids=lambda kind: kind.name)
def test_any_other_loss_of_a_method_is_solved_by_that_loss_alone(make_task, kind):
    task, method = make_task((6, 6, 6), dim=12, noise=0.6), kind(l2=1e-2)
    found = {name: value.requires_grad_() for name, value in solved(method, task).items()}
    rows, label = method.training_rows(task, task, 0)
    loss = method.loss(task, found, rows, label, torch.Generator())
    assert max(float(each.abs().max()) for each in torch.autograd.grad(loss, list(found.values()))) < 1e-4


@pytest.mark.parametrize("method", [LinearProbe, LpClip])
def test_values_near_the_least_that_float32_can_hold_are_fitted_or_refused_in_one_line(method, make_task):
    task = make_task()
    tiny = replace(task, support=Rows(task.support.embedding * 1e-25, task.support.label))
    try:
        assert torch.isfinite(method().fit(tiny).logits(task.support.embedding)).all()
    except MethodError as error:
        assert "diverged" in str(error)  # noqa: PT017
