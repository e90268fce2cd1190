"""Prompt learning on a text tower of a few numbers: values that the authors' formulas give in float64."""

from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import cross_entropy

from onceclip.adapters import CoOp, KgCoOp, Rows, Task, Text, TextTower
from onceclip.adapters.methods.coop import prompt_head
from onceclip.adapters.methods.prograd import aligned
from onceclip.adapters.ops import unit

NAMES = ("ant", "bee", "cow")


def waves(shape, phase):
    """`sin(phase + 1.7 n + 0.37 n^2)` over the positions n of a tensor, in C order."""
    number = torch.arange(int(torch.tensor(shape).prod()), dtype=torch.float64)
    return torch.sin(phase + 1.7 * number + 0.37 * number**2).view(shape)


COMMON = unit(waves((8,), 8.0))
CLASSES = unit(unit(waves((3, 5, 8), 1.1)).mean(dim=1))
WEIGHTS = unit(COMMON + 0.12 * CLASSES)
LABEL = torch.tensor([0, 0, 1, 1, 2, 2])
SUPPORT = unit(COMMON + 0.15 * CLASSES[LABEL] + 0.20 * unit(waves((6, 8), 0.3)))
CONTEXT = 0.02 * waves((4, 6), 5.0)


@dataclass(frozen=True, eq=False)
class ToyTower(TextTower):
    """One attention without weights over `[start] context name [end]`, two tokens a name."""

    width, dim, work = 6, 8, 0

    def of(self, classes):
        return self

    def to(self, where):
        return self

    def raw(self, contexts, position):
        contexts = contexts.expand(-1, 3, -1, -1)
        ends = [0.5 * waves((6,), phase).expand(*contexts.shape[:2], 1, 6) for phase in (1.0, 3.0)]
        names = (0.5 * waves((3, 2, 6), 2.0)).expand(len(contexts), -1, -1, -1)
        tokens = torch.cat([ends[0], contexts, names, ends[1]], dim=2)
        length = tokens.shape[2]
        tokens = tokens + 0.1 * waves((length, 6), 4.0)
        scores = tokens @ tokens.transpose(-1, -2) / 6**0.5
        ahead = torch.ones(length, length, dtype=torch.bool).triu(1)
        last = (tokens + scores.masked_fill(ahead, -torch.inf).softmax(dim=-1) @ tokens)[:, :, -1]
        return 2 * COMMON + torch.tanh(last) @ (0.5 * waves((6, 8), 0.7))


@pytest.fixture
def task():
    tower = ToyTower({"tokens": torch.zeros(1, 6), "positions": torch.zeros(9, 6, dtype=torch.float64)}, {}, NAMES)
    return Task(Text(WEIGHTS, torch.arange(3), NAMES), Rows(SUPPORT, LABEL), tower=tower)


def near(found, expected, within=1e-6):
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.detach().flatten()[:expected.numel()], expected.flatten(), rtol=0, atol=within)


def gradient(loss, parameter):
    return torch.autograd.grad(loss, parameter)[0]


def test_coop_has_the_class_vectors_logits_gradient_and_step_of_the_authors(task):
    context = CONTEXT.clone().requires_grad_()
    method = CoOp(words="", length=4, optimizer="sgd", weight_decay=0.0, momentum=0.0, epochs=1, schedule="constant")
    vectors = method.vectors(task, {"context": context})
    near(vectors, [0.480884, -0.215826, 0.328747, -0.489821, 0.594335, 0.134944, -0.046164, -0.024413])
    head = method.head(task, {"context": context})
    near(head(SUPPORT)[0], [92.183649, 92.252779, 92.628369])
    loss = method.loss(task, {"context": context}, SUPPORT, LABEL, torch.Generator())
    near(loss, [1.245657])
    step = gradient(loss, context)
    near(step[0], [0.042505, 0.049712, -0.025880])
    near((context - 2e-3 * step)[0], [-0.019263, 0.014063, -0.008741])


def test_coop_takes_that_step_when_it_is_fitted(task, monkeypatch):
    monkeypatch.setattr(CoOp, "start", lambda self, prepared, generator: CONTEXT)
    method = CoOp(optimizer="sgd", weight_decay=0.0, epochs=1, schedule="constant")
    near(method.fit(task).parameters["context"][0], [-0.019263, 0.014063, -0.008741])
    own = method.with_values(per_class=True).initial(task, torch.Generator())["context"]
    assert own.shape == (3, 4, 6)


def test_gradients_of_contexts_of_their_own_add_up_to_that_of_the_shared_one(task):
    own = CONTEXT.repeat(3, 1, 1).requires_grad_()
    loss = CoOp(per_class=True).loss(task, {"context": own}, SUPPORT, LABEL, torch.Generator())
    near(gradient(loss, own).sum(dim=0)[0], [0.042505, 0.049712, -0.025880])


def test_kgcoop_adds_its_weight_times_the_distance_from_the_written_prompts(task):
    vectors = CoOp().vectors(task, {"context": CONTEXT})
    near((vectors - WEIGHTS).square().sum(dim=1).mean(), [0.153012])
    plain = CoOp().loss(task, {"context": CONTEXT}, SUPPORT, LABEL, torch.Generator())
    pulled = KgCoOp(weight=1.0).loss(task, {"context": CONTEXT}, SUPPORT, LABEL, torch.Generator())
    near(pulled - plain, [0.076506])


def test_prograd_keeps_a_gradient_that_agrees_and_projects_one_that_opposes(task):
    context = CONTEXT.clone().requires_grad_()
    logits = prompt_head(task, CoOp().vectors(task, {"context": context}))(SUPPORT)
    taught = (100 * SUPPORT @ WEIGHTS.T).softmax(dim=1)
    own = torch.autograd.grad(cross_entropy(logits, LABEL), context, retain_graph=True)[0]
    general, rolled = (torch.autograd.grad(cross_entropy(logits, each), context, retain_graph=True)[0]
                       for each in (taught, taught[:, [1, 2, 0]]))

    def cosine(other):
        return (own * other).sum() / own.norm() / other.norm()

    near(cosine(general), [0.982847])
    near(cosine(rolled), [0.856641])
    assert torch.equal(aligned(own, general), own)
    near(aligned(own, -rolled)[0], [0.035472, 0.016829, -0.005487])
    assert torch.equal(aligned(own, torch.zeros_like(own)), own)
