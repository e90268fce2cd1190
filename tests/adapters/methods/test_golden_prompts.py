"""Prompt learning on a text tower of a few numbers: values that the authors' formulas give in float64."""

from dataclasses import dataclass, replace

import pytest
import torch
from scipy.optimize import linprog
from torch.nn.functional import cross_entropy

from onceclip.adapters import (
    CPL,
    ECO,
    PRE,
    SHIP,
    UPL,
    Classifier,
    CoCoOp,
    CoOp,
    GOPro,
    KgCoOp,
    MoCoOp,
    Rows,
    StyLIP,
    TaIDPT,
    Task,
    Text,
    TextTower,
    ZeroShot,
)
from onceclip.adapters.heads.prompts import conditional, gates
from onceclip.adapters.inference import Queries
from onceclip.adapters.inference.tpt import TPT, DiffTPT
from onceclip.adapters.method import class_head
from onceclip.adapters.methods.cpl import counterfactual, nearest, smallest_mask
from onceclip.adapters.methods.gopro import nt_xent
from onceclip.adapters.methods.prograd import aligned
from onceclip.adapters.methods.tai_dpt import ranking_loss
from onceclip.adapters.ops import best_of_classes, unit
from onceclip.adapters.training.history import recording
from onceclip.pipeline.encoders.backend import statistics_of

from ..golden import CAPTIONS, COMMON, LABEL, PATCHES, QUERIES, SUPPORT, VIEWS, WEIGHTS, grid

NAMES = ("ant", "bee", "cow")


CONTEXT = 0.02 * grid((4, 6), 5.0)
NETWORK = {"context": CONTEXT, "down": 0.3 * grid((2, 8), 0.5), "down_bias": 0.1 * grid((2,), 0.6),
           "up": 0.3 * grid((6, 2), 0.7), "up_bias": 0.1 * grid((6,), 0.8)}


@dataclass(frozen=True, eq=False)
class ToyTower(TextTower):
    """One attention without weights over `[start] context name [end]`, two tokens a name."""

    width, dim, work = 6, 8, 0

    def of(self, classes):
        return replace(self, classes=tuple(classes))

    def to(self, where):
        return self

    def raw(self, contexts, position):
        chosen = [NAMES.index(name) for name in self.classes]
        contexts = contexts.expand(-1, len(chosen), -1, -1)
        ends = [0.5 * grid((6,), phase).expand(*contexts.shape[:2], 1, 6) for phase in (1.0, 3.0)]
        names = 0.5 * grid((3, 2, 6), 2.0)[chosen].expand(len(contexts), -1, -1, -1)
        tokens = torch.cat([ends[0], contexts, names, ends[1]], dim=2)
        length = tokens.shape[2]
        tokens = tokens + 0.1 * grid((length, 6), 4.0)
        scores = tokens @ tokens.transpose(-1, -2) / 6**0.5
        ahead = torch.ones(length, length, dtype=torch.bool).triu(1)
        last = (tokens + scores.masked_fill(ahead, -torch.inf).softmax(dim=-1) @ tokens)[:, :, -1]
        return 2 * COMMON + torch.tanh(last) @ (0.5 * grid((6, 8), 0.7))


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
    logits = class_head(task, CoOp().vectors(task, {"context": context}))(SUPPORT)
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


def test_cocoop_moves_every_token_by_what_its_network_makes_of_the_image(task):
    parameters = NETWORK
    vectors = task.tower.encode_several(conditional(**parameters, features=SUPPORT))
    logits = 100 * (vectors @ SUPPORT.unsqueeze(-1)).squeeze(-1)
    near(logits[0], [92.368395, 92.560507, 92.936200])
    near(logits[2], [85.441169, 86.357700, 88.169527])
    loss = CoCoOp().loss(task, parameters, SUPPORT, LABEL, torch.Generator())
    near(loss, float(cross_entropy(logits, LABEL)))


def test_eco_averages_class_vectors_and_upl_logits(task):
    both = {"context": torch.stack([CONTEXT, 0.02 * grid((4, 6), 6.0)])}
    near(ECO().head(task, both)(SUPPORT)[0], [92.180712, 92.245557, 92.621866])
    near(UPL().head(task, both)(SUPPORT)[0], [92.180694, 92.245539, 92.621845])


def test_upl_takes_the_surest_images_of_every_predicted_class(task):
    unknown = replace(task, support=Rows(SUPPORT[:0], LABEL[:0]), unlabelled=QUERIES)
    trained_on = UPL(top=2).prepare(unknown).support
    assert torch.equal(trained_on.embedding, QUERIES[[0, 6, 7, 1, 5, 11]])
    assert trained_on.label.tolist() == [0, 0, 1, 1, 2, 2]
    equal = torch.tensor([1.0, 1.0, 3.0])
    assert best_of_classes(torch.zeros(3, dtype=torch.int64), equal, 2, 2).tolist() == [2, 0]


def test_pre_encodes_the_context_and_what_its_network_adds(task):
    shapes = [("weight_ih", (12, 6)), ("weight_hh", (12, 3)), ("bias_ih", (12,)), ("bias_hh", (12,))]
    names = [(f"{name}{direction}", shape) for direction in ("", "_reverse") for name, shape in shapes]
    network = {name: 0.3 * grid(shape, 0.1 * (place + 1)) for place, (name, shape) in enumerate(names)}
    context = PRE().context({"context": CONTEXT, **network})
    near(context[0], [-0.200946, -0.090612, -0.017784, -0.274881, -0.128609, 0.083146])
    near(PRE().head(task, {"context": CONTEXT, **network})(SUPPORT)[0], [90.830006, 90.721729, 90.973071])
    kept = PRE().kept(task, {"context": CONTEXT, **network})
    near(PRE().head(task, kept)(SUPPORT)[0], [90.830006, 90.721729, 90.973071])
    torch_lstm = torch.nn.LSTM(6, 3, bidirectional=True).double()
    with torch.no_grad():
        for own, value in zip(torch_lstm.parameters(), network.values(), strict=True):
            own.copy_(value)
        torch.testing.assert_close(context, CONTEXT + torch_lstm(CONTEXT)[0], rtol=0, atol=1e-12)


def test_ship_rebuilds_images_by_moved_prompts(task):
    shapes = {"encode": ((10, 8), 0.2), "mean": ((8, 10), 0.4), "logvar": ((8, 10), 0.6), "decode": ((10, 8), 0.8),
              "offset": ((6, 10), 1.2)}
    parameters = {"context": CONTEXT, **{name: 0.3 * grid(*each) for name, each in shapes.items()}}
    noise = 0.5 * grid((6, 8), 3.1)
    rebuilt, divergence = SHIP().parts(task, parameters, SUPPORT, LABEL, noise)
    near(rebuilt, [0.214879])
    near(divergence, [0.006200])
    hidden = (SUPPORT @ parameters["encode"].T).relu()
    code = hidden @ parameters["mean"].T + noise * (hidden @ parameters["logvar"].T / 2).exp()
    near(SHIP().make(task, parameters, LABEL, code)[0], [0.488736, -0.228118, 0.317723, -0.478351])


def test_mocoop_mixes_the_logits_of_the_contexts_that_its_router_chooses(task):
    router = 0.5 * grid((2, 8), 2.2)
    both = {"context": torch.stack([CONTEXT, 0.02 * grid((4, 6), 6.0)]), "router": router}
    near(gates(SUPPORT @ router.T, 2)[0], [0.626837, 0.373163])
    near(MoCoOp().head(task, both)(SUPPORT)[0], [92.181444, 92.247375, 92.623499])
    assert gates(torch.tensor([[3.0, 1.0, 2.0]]), 1).tolist() == [[1.0, 0.0, 0.0]]


def test_cpl_changes_an_image_as_little_as_makes_it_another_class(task):
    mask = torch.sigmoid(grid((8,), 1.9)).expand(1, -1)
    near(counterfactual(SUPPORT[:1], SUPPORT[2:3], mask),
         [0.567386, -0.374363, 0.095772, -0.326042, 0.575786, 0.162664, 0.031779, 0.251892])
    own, other = WEIGHTS[0], WEIGHTS[1]
    gain, needed = (other - own) * (SUPPORT[2] - SUPPORT[0]), ((own - other) * SUPPORT[0]).sum()
    found = smallest_mask(gain[None], needed[None])
    near((found * gain).sum(), float(needed))
    assert ((found >= 0) & (found <= 1)).all()
    least = linprog([1] * 8, A_ub=[(-gain).tolist()], b_ub=[-float(needed)], bounds=(0, 1))
    near(found.sum(), least.fun)
    assert smallest_mask(gain[None], -needed[None]).eq(0).all()
    assert torch.equal(smallest_mask(gain[None], needed[None] + 9), (gain > 0).double()[None])
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    assert nearest(vectors, torch.tensor([True, True, True])).tolist() == [1, 0, 1]
    assert nearest(vectors, torch.tensor([True, False, True])).tolist() == [2, 0, 0]
    assert nearest(vectors, torch.tensor([False, False, True])).tolist() == [2, 2, 2]


def test_cpl_takes_its_penalty_from_counterfactuals_alone(task):
    """Of a single class with images nothing is near, so that the penalty moves nothing."""
    alone, context = replace(task, support=Rows(SUPPORT[:2], LABEL[:2])), CONTEXT.clone().requires_grad_()
    steps = []
    for rows in (alone, task):
        method = CPL(weight=5.0)
        losses = [each.loss(each.prepare(rows), {"context": context}, rows.support.unit, rows.support.label,
                            torch.Generator()) for each in (CoOp(), method)]
        steps.append([gradient(loss, context) for loss in losses])
    torch.testing.assert_close(steps[0][1], steps[0][0], rtol=0, atol=1e-12)
    assert (steps[1][1] - steps[1][0]).abs().max() > 1e-3


def test_gopro_contrasts_images_by_two_views_and_holds_their_class_vectors_together(task):
    near(nt_xent(VIEWS[:, 1], VIEWS[:, 2], 0.1), [1.478234])
    seen = replace(task, support=Rows(QUERIES[:4], torch.tensor([0, 1, 2, 0]), VIEWS[:, :3]))
    method = GOPro(contrast=0.0, batch_size=2)
    rows, label = method.training_rows(seen, seen, 0)
    near(rows.view(4, 3, 8), unit(VIEWS[:, :3]).flatten().tolist())
    steps = method.batches(len(label), torch.Generator().manual_seed(0))
    assert sorted(torch.cat(steps).tolist()) == list(range(12))
    assert all((step.view(-1, 3) - step.view(-1, 3)[:, :1]).tolist() == [[0, 1, 2]] * 2 for step in steps)
    plain, held = (GOPro(contrast=0.0, consistency=weight).loss(task, NETWORK, rows, label, torch.Generator())
                   for weight in (0.0, 1.0))
    near(plain, [float(cross_entropy(CoCoOp().logits(task, QUERIES[:4], CoCoOp().vectors_of(
        task, NETWORK, QUERIES[:4])), seen.support.label))])
    vectors = CoCoOp().vectors_of(task, NETWORK, rows).view(4, 3, 3, 8)
    near(held - plain, [float((vectors[:, 1:] - vectors[:, :1]).square().mean() * 2)])


def test_stylip_moves_each_token_by_mean_and_deviation_of_every_block(task):
    statistics = statistics_of(torch.cat([torch.full((2, 1, 8), 7.0), PATCHES], dim=1))
    near(statistics[0, 0], [0.521441, -0.365240, 0.172114])
    near(statistics[0, 1], [0.088133, 0.096716, 0.050493])
    both = torch.stack([statistics, 3 * statistics.flip(2)], dim=1)
    styled = replace(task, support=Rows(SUPPORT[:2], LABEL[:2], others={"statistics": both}))
    method = StyLIP()
    parameters = {"context": CONTEXT, "down": 0.3 * grid((2, 32), 0.5), "down_bias": 0.1 * grid((2,), 0.6),
                  "up": 0.3 * grid((24, 2), 0.7), "up_bias": 0.1 * grid((24,), 0.8)}
    rows, label = method.training_rows(styled, styled, 0)
    features = torch.cat([unit(each.flatten(1)) for each in both.unbind(1)], dim=1)
    hidden = (features @ parameters["down"].T + parameters["down_bias"]).relu()
    context = CONTEXT + (hidden @ parameters["up"].T + parameters["up_bias"]).view(2, 4, 6)
    logits = torch.stack([100 * task.tower.encode(each) @ row for each, row in zip(context, SUPPORT, strict=False)])
    near(method.loss(styled, parameters, rows, label, torch.Generator()), [float(cross_entropy(logits, LABEL[:2]))])


def test_tai_dpt_ranks_named_classes_above_others(task):
    captions = CAPTIONS[:4]
    scores = 4 * captions @ CoOp().vectors(task, {"context": CONTEXT}).T
    near(scores[0], [3.722862, 3.733693, 3.767080])
    before = scores.clone()
    named = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 0]]).bool()
    near(ranking_loss(scores, named), [2.019539])
    assert torch.equal(scores, before)
    # As a text set has them: a sentence once for each class that it names, class by class.
    index, sentence = named.T.nonzero(as_tuple=True)
    several = replace(task, text=Text(captions[sentence], index, NAMES))
    method = TaIDPT()
    rows, label = method.training_rows(several, method.prepare(several), 0)
    assert len(rows) == 4
    near(method.loss(method.prepare(several), {"context": CONTEXT}, rows, label, torch.Generator()), [2.019539])
    with recording() as recorder:
        fitted = TaIDPT(words="", length=4, epochs=2).fit(several)
    assert len(recorder.history(TaIDPT(words="", length=4, epochs=2))["train_loss"]) == 2
    assert fitted.logits(SUPPORT).shape == (6, 3)


def test_tpt_moves_the_context_as_the_published_code_does(task, monkeypatch):
    monkeypatch.setattr("onceclip.adapters.inference.tpt.start_of", lambda *_: CONTEXT)
    classifier = Classifier(CoOp().head(task, {"context": CONTEXT}), NAMES, 8, "coop", parameters={"context": CONTEXT})
    queries = Queries(QUERIES[:1], views=VIEWS[:1])
    scores = classifier.head(VIEWS[:1])
    near(scores[0, 0], [92.683783, 92.694217, 93.713288])
    assert TPT(share=0.5).kept(scores).tolist() == [[2, 4, 1, 6]]
    near(TPT(share=0.5).run(classifier, queries, task).logits, [[92.713110, 92.716176, 93.749038]])
    both = TPT(share=0.5).run(classifier, Queries(QUERIES[:4], views=VIEWS), task).logits
    near(both[0], [92.713110, 92.716176, 93.749038])
    others = ZeroShot().fit(task)
    change = TPT(share=0.5).run(others, queries, task).logits - others.head(QUERIES[:1])
    assert change.abs().max() > 1e-3


@pytest.mark.parametrize("position", ["front", "middle"])
def test_tpt_moves_a_learned_context_where_it_was_learned(task, monkeypatch, position):
    asked = []
    monkeypatch.setattr(ToyTower, "raw", lambda self, contexts, place, usual=ToyTower.raw: (
        asked.append(place), usual(self, contexts, place))[1])
    classifier = Classifier(CoOp().head(task, {"context": CONTEXT}), NAMES, 8, "coop", {"position": position},
                            parameters={"context": CONTEXT})
    asked.clear()
    TPT(share=0.5).run(classifier, Queries(QUERIES[:1], views=VIEWS[:1]), task)
    assert {*asked} == {position}


def test_difftpt_takes_views_whose_logits_look_like_those_of_the_image():
    scores = 100 * VIEWS[:1] @ WEIGHTS.T
    assert DiffTPT(near=0.5, share=1.0).kept(scores).sort().values.tolist() == [[2, 3, 4]]
    assert DiffTPT(near=0.5, share=0.7).kept(scores).tolist() == [[2, 4]]
    assert DiffTPT().kept(scores[:, :1]).tolist() == [[0]]
