"""What goes wrong in published adapters, and what users may rely on here: choices, sizes, presets."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from onceclip.adapters import (
    APE,
    APET,
    METHODS,
    ClipAdapter,
    ClipASelf,
    MethodError,
    MultiModalAdapter,
    Rows,
    SgVA,
    Task,
    Text,
    VtClip,
    ZeroShot,
    fit_selected,
)
from onceclip.adapters.heads.layers import rectify
from onceclip.adapters.methods.ape import Channels
from onceclip.adapters.selection.selection import choices
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.loop import Run

MINE = ["clip-adapter", "tip-adapter-f", "ape", "ape-t", "clip-a-self", "meta-adapter", "multi-modal-adapter", "sgva",
        "vt-clip"]


@pytest.mark.parametrize(("criterion", "other"), [("text", "full"), ("full", "text")])
def test_ape_t_trains_the_channels_of_its_own_criterion_whatever_ape_used_before(make_task, criterion, other):
    """The published script finds the criterion of APE in a file that both share, and takes it."""
    task = make_task()
    APE(similarity=0.6, channels=512).fit(task)
    method = APET(criterion=criterion, similarity=0.6, channels=512, epochs=3)
    residual = train([Run(method, task, method.prepare(task), 0)])[0]["residual"]
    own, wrong = (sorted(Channels(task).best(name, 0.6, 512).tolist()) for name in (criterion, other))
    assert own != wrong
    assert residual.any(dim=0).nonzero().flatten().tolist() == own


def test_ape_chooses_channels_anew_for_every_draw(make_task, make_rows):
    """The published criterion is kept in a file named after the encoder and the shots: another seed gets an old one."""
    first, second = make_task(seed=1), make_task(seed=2)
    mixed = replace(first, support=second.support)
    chosen = [APE(similarity=0.9, channels=400).fit(each).head.heads[1].index.tolist() for each in (first, mixed)]
    assert chosen[0] != chosen[1]


def test_the_divergence_of_ape_tells_images_apart_only_with_the_logit_scale(make_task):
    """Without it the published weights are nearly one constant, the logarithm of the number of classes."""
    task = make_task((5, 5, 5), noise=0.6)
    spread = {softmax: float(APE(gamma=1.0, softmax=softmax).fit(task).head.heads[1].head.weight.log2().std())
              for softmax in ("plain", "scaled")}
    assert spread["scaled"] > 5 * spread["plain"]


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return result


@pytest.mark.parametrize(("method", "stored"), [
    (MultiModalAdapter(epochs=0, mask="none"), 512), (MultiModalAdapter(epochs=0), 512), (VtClip(epochs=0), 512 * 5)])
def test_class_vectors_of_every_image_are_never_built(method, stored):
    """An attention over 40 classes of width 512 for 300 images stays within the width that its head names."""
    draw = torch.Generator().manual_seed(0)
    text = Text(torch.randn(40, 512, generator=draw), torch.arange(40), tuple(map(str, range(40))))
    tokens = torch.randn(300, 4, 512, generator=draw)
    rows = Rows(torch.randn(300, 512, generator=draw), torch.arange(300) % 40, None, {"token": tokens})
    head = method.fit(Task(text, rows)).head
    with torch.no_grad(), Largest() as largest:
        head(rows.input(method.inputs))
    assert 300 * 40 <= largest.elements <= 300 * max(head.width, stored) < 300 * 40 * 512


def test_vt_clip_starts_as_zero_shot_and_moves_with_training(make_task, make_rows):
    task, rows = make_task(), make_rows((5, 5, 5), 10, seed=50)
    zero_shot = ZeroShot().fit(task).logits(rows.embedding)
    start, trained = (VtClip(epochs=epochs).fit(task).logits(rows.input(VtClip.inputs)) for epochs in (0, 10))
    assert_close(start, zero_shot)
    assert not torch.allclose(trained, zero_shot, atol=0.1)


@pytest.mark.parametrize("name", ["vt-clip", "multi-modal-adapter"])
def test_zero_shot_is_among_what_validation_may_choose(make_task, make_method, name):
    """Labels that contradict the images: nothing that was learnt of them is as good as not using it."""
    task = make_task((6, 6, 6), val=20, noise=0.1)
    task = replace(task, support=replace(task.support, label=(task.support.label + 1) % 3))
    method = make_method((name, {"learning_rate": 0.01, "keep": "last"}))
    found = fit_selected(method, task, "val")
    assert 0 in choices(method)["ratio"]
    assert found.accuracy == 1


def test_the_adapter_of_sgva_is_the_identity_where_nothing_is_negative(make_task):
    method, rows = SgVA(), torch.rand(5, 12, generator=torch.Generator().manual_seed(0))
    start = method.initial(method.prepare(make_task()), torch.Generator().manual_seed(0))
    assert_close(rectify(rows, start["down"], start["up"], 0.0), normalize(rows, dim=1))
    assert not torch.allclose(rectify(rows - 0.5, start["down"], start["up"], 0.0), normalize(rows - 0.5, dim=1))


def test_clip_a_self_drops_in_training_only(make_task):
    task, method = make_task(), ClipASelf(dropout=0.9, attention_dropout=0.9)
    prepared = method.prepare(task)
    given = method.initial(prepared, torch.Generator().manual_seed(0))
    rows, label = task.support.unit, task.support.label
    loss = [float(method.loss(prepared, given, rows, label, torch.Generator().manual_seed(seed))) for seed in (0, 0, 1)]
    assert loss[0] == loss[1] != loss[2]
    assert torch.equal(method.head(prepared, given).weight, method.head(prepared, given).weight)


@pytest.mark.parametrize(("method", "change", "message"), [
    (SgVA(), {"projection": None}, "sgva needs the encoder's projection .* --preproj"),
    (SgVA(), {"others": {}}, "'preproj' .* extract again with --preproj"),
    (VtClip(), {"others": {}}, "'token' .* extract again with --tokens")])
def test_a_store_without_the_outputs_that_a_method_needs_is_refused(make_task, method, change, message):
    task = make_task()
    if "others" in change:
        change = {"support": replace(task.support, **change)}
    with pytest.raises(MethodError, match=message) as caught:
        method.fit(replace(task, **change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "preset"), [(name, preset) for name in MINE for preset in METHODS[name].presets])
def test_every_preset_can_be_fitted_and_yields_to_values_given_by_hand(make_task, name, preset):
    quick = {"epochs": 2} if "epochs" in METHODS[name].hyperparameters else {}
    named, default = METHODS[name].presets[preset], METHODS[name]().values
    task, method = make_task(val=2), METHODS[name](preset=preset, **quick)
    assert {key: method.values[key] for key in named} == {key: quick.get(key, value) for key, value in named.items()}
    assert torch.isfinite(method.fit(task).head(method.rows_of(task.support))).all()
    for key in (key for key, value in named.items() if value != default[key]):
        assert METHODS[name](preset=preset, **{key: default[key]}).values == {
            **METHODS[name](preset=preset).values, key: default[key]}


def noisy(make_task, **more):
    """A task on which training first helps and then harms: a third of the support has wrong labels."""
    task = make_task((6, 6, 6), val=15, noise=0.8, **more)
    label = task.support.label.clone()
    label[::3] = (label[::3] + 1) % 3
    return replace(task, support=replace(task.support, label=label))


@pytest.mark.parametrize("name", ["clip-adapter", "tip-adapter-f", "meta-adapter", "clip-a-self", "sgva"])
def test_the_best_epoch_on_validation_rows_is_kept(make_task, make_method, name):
    """A constant step size makes a training of k epochs the first k of a longer one; the last wins no tie."""
    task, constant = noisy(make_task), {"schedule": "constant", "learning_rate": 0.02, "batch_size": 0}

    def parameters(**more):
        method = make_method((name, {**constant, **more}))
        return method, train([Run(method, task, method.prepare(task), 0)])[0]

    scores = []
    for epochs in range(1, 9):
        method, given = parameters(epochs=epochs, keep="last")
        logits = method.training_head(method.prepare(task), given)(method.rows_of(task.val))
        right = (logits.argmax(dim=1) == task.val.label).double().mean()
        scores.append((float(right), -float(torch.nn.functional.cross_entropy(logits, task.val.label)), given))
    best = max(range(8), key=lambda number: scores[number][:2])
    _, kept = parameters(epochs=8, keep="best")
    for key, value in kept.items():
        assert_close(value, scores[best][2][key])


def test_patience_ends_a_training_that_has_not_become_better(make_task, monkeypatch):
    """Against labels that are all wrong on the validation rows the best epoch comes early, and so does the end."""
    task, seen = make_task((6, 6, 6), val=10, noise=0.2), []
    task = replace(task, val=replace(task.val, label=(task.val.label + 1) % 3))
    rows = ClipAdapter.training_rows
    monkeypatch.setattr(ClipAdapter, "training_rows", lambda *given: seen.append(given[-1]) or rows(*given))

    def kept(**more):
        seen.clear()
        return train([Run(ClipAdapter(keep="best", schedule="constant", **more), task, task, 0)])[0]

    early = kept(epochs=30, patience=3)
    epochs = len(set(seen))
    assert 4 <= epochs <= 15
    same = kept(epochs=epochs)
    assert all(torch.equal(early[name], same[name]) for name in early)
