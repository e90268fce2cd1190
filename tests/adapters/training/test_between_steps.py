"""What training does between steps: gradients cut to a length, and weights of penalties that follow the epochs."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from onceclip.adapters import CLAP, WiseFT
from onceclip.adapters.training import engine
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.loop import Run


def together(methods, task):
    """Parameters of runs that are trained in one stack."""
    prepared = methods[0].prepare(task)
    return train([Run(method, task, prepared, 0) for method in methods])


def alone(method, task):
    """Parameters of a run without an axis of runs, as large ones are trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "stacks", lambda *_: False)
        return train([Run(method, task, method.prepare(task), 0)])[0]


def test_gradients_are_cut_to_the_length_that_torch_cuts_them_to(make_task):
    """WiSE-FT's script: one length over weights and biases together."""
    task = make_task((5, 4, 6), noise=0.6, dtype=torch.float64)
    method = WiseFT(optimizer="sgd", momentum=0.0, learning_rate=0.5, epochs=8, schedule="constant", clip=0.05)
    weight = task.zero_shot_weights.clone().requires_grad_()
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer, lengths = torch.optim.SGD([weight, bias], lr=0.5), []
    for _ in range(8):
        optimizer.zero_grad()
        cross_entropy(task.support.unit @ weight.T + bias, task.support.label).backward()
        lengths.append(float(torch.nn.utils.clip_grad_norm_([weight, bias], 0.05)))
        optimizer.step()
    assert min(lengths) > 0.05
    trained = alone(method, task)
    torch.testing.assert_close(trained["weight"], weight.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(trained["bias"], bias.detach(), rtol=0, atol=1e-12)


def test_runs_in_one_stack_have_their_own_lengths(make_task):
    task = make_task((5, 4, 6), noise=0.6, dtype=torch.float64)
    methods = [WiseFT(optimizer="sgd", epochs=8, clip=clip) for clip in (0.0, 1e-3, 0.05)]
    for method, one in zip(methods, together(methods, task), strict=True):
        for name, value in alone(method, task).items():
            torch.testing.assert_close(one[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("epochs", [1, 6])
def test_the_adaptive_constraint_of_clap_is_that_of_a_plain_loop(make_task, epochs):
    """After every epoch lambda <- max(lambda + rho h, 0) and rho <- h, h the squared distances, rho from 0."""
    task = make_task((5, 4, 6), noise=0.6, dtype=torch.float64)
    start = 10 * normalize(task.text.class_weights)
    zero_shot = (100 * task.support.unit @ normalize(start).T).softmax(dim=1)
    label = task.support.label
    held = torch.stack([zero_shot[label == number, number].mean() for number in range(3)])
    before, moved, prototype = held.clone(), torch.zeros(3, dtype=torch.float64), start.clone().requires_grad_()
    optimizer = torch.optim.SGD([prototype], lr=0.1, momentum=0.9)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2 if epoch else 1e-5
        optimizer.zero_grad()
        logits = 100 * task.support.unit @ normalize(prototype).T
        penalty = (held * (prototype - start).square().sum(dim=1)).mean()
        (cross_entropy(logits, label) + penalty).backward()
        optimizer.step()
        distance = (prototype.detach() - start).square().sum(dim=1)
        held, moved = (held + moved * distance).clamp(min=0), distance
    trained = alone(CLAP(constraint="adaptive", epochs=epochs), task)
    torch.testing.assert_close(trained["prototype"], prototype.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(trained["held"], held, rtol=0, atol=1e-12)
    assert torch.equal(trained["held"] > before, torch.full((3,), epochs > 1))


def test_adaptive_constraints_in_one_stack_are_those_one_by_one(make_task):
    task = make_task((5, 4, 6), noise=0.6, dtype=torch.float64)
    methods = [CLAP(constraint="adaptive", epochs=6, strength=strength, learning_rate=rate)
               for strength in (0.1, 1.0) for rate in (0.05, 0.1)]
    for method, one in zip(methods, together(methods, task), strict=True):
        for name, value in alone(method, task).items():
            torch.testing.assert_close(one[name], value, rtol=1e-12, atol=1e-12)


def test_the_adaptive_constraint_stays_nearer_to_zero_shot(make_task):
    task = make_task((5, 4, 6), noise=0.6)
    far, near = ((alone(CLAP(constraint=constraint, epochs=40), task)["prototype"]
                  - 10 * normalize(task.text.class_weights)).norm() for constraint in ("constant", "adaptive"))
    assert near < far
