"""Linear and residual heads: what they start from, what holds them there, and the traps of their published code."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.testing import assert_close

from onceclip.adapters import (
    CLAP,
    METHODS,
    RLA,
    CrossModalLinearProbe,
    LinearProbeAdamW,
    LinearProbePreproj,
    LpClip,
    LPPlusPlus,
    MethodError,
    ProLIP,
    Rows,
    TaskRes,
    WiseFT,
    ZeroShot,
    ZeroShotLinearProbe,
    fit_selected,
)
from onceclip.adapters.ops import unit
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.loop import Run

NOISY = 1.0  # so that zero-shot makes mistakes and training has something to do
STARTS = pytest.mark.parametrize("name", ["zs-lp", "clap", "taskres", "wise-ft", "rla"])


@pytest.fixture
def queries(make_rows):
    return make_rows((7, 7, 7), 10, noise=0.3, seed=50).embedding


def widened(task, width=13, views=0, bias=False):
    """The same task as features of a wider tower, whose projection gives the embeddings back."""
    generator = torch.Generator().manual_seed(5)
    kind = task.text.embedding.dtype
    projection = torch.linalg.qr(torch.randn(width, task.dim, generator=generator))[0].to(kind)
    shift = 0.1 * torch.randn(task.dim, generator=generator).to(kind) if bias else None

    def features(rows):
        others = {"preproj": (rows.embedding - (0 if shift is None else shift)) @ projection.T}
        if views:
            noise = torch.randn(len(rows), views, width, generator=generator).to(kind)
            others["preproj_view"] = others["preproj"].unsqueeze(1) + 0.2 * noise
        return replace(rows, others=others)

    return replace(task, support=features(task.support), val=task.val and features(task.val), projection=projection,
                   projection_bias=shift)


@STARTS
@pytest.mark.parametrize("bias", [0.0, -10.0])
def test_training_starts_at_zero_shot(make_task, queries, name, bias):
    """With the encoder's scale and bias, as SigLIP has them."""
    task = replace(make_task((2, 4, 3), noise=NOISY), logit_scale=30.0, logit_bias=bias)
    expected = ZeroShot().fit(task).logits(queries)
    assert_close(METHODS[name](epochs=0).fit(task).logits(queries), expected)
    assert not torch.allclose(METHODS[name](epochs=15).fit(task).logits(queries), expected, atol=1e-3)


@pytest.mark.parametrize("method", [ZeroShotLinearProbe, TaskRes])
def test_the_raw_base_is_zero_shot_of_raw_mean_prompts(make_task, queries, method):
    task = make_task((2, 4, 3))
    expected = ZeroShot().fit(replace(task, text=replace(task.text, rule="raw-mean"))).logits(queries)
    assert_close(method(base="raw", epochs=0, share=1).fit(task).logits(queries), expected)


@pytest.mark.parametrize("name", ["zs-lp", "clap", "taskres"])
def test_the_length_of_text_embeddings_is_a_step_size_only_with_the_raw_base(make_task, queries, name):
    """A store of unit text vectors and one of raw ones give the same classifier; the papers' code does not."""
    task = make_task((3, 3, 3), noise=NOISY)
    longer = replace(task, text=replace(task.text, embedding=7 * task.text.embedding))
    for base, equal in (("zero-shot", True), ("raw", False)):
        first, second = (METHODS[name](base=base, epochs=15).fit(each).logits(queries) for each in (task, longer))
        assert torch.allclose(first, second, atol=1e-3) == equal, base


def test_clap_without_strength_is_zs_lp_and_with_much_of_it_zero_shot(make_task, queries):
    task = make_task((3, 3, 3), views=2)
    free, held = (CLAP(share=1, **values).fit(task) for values in (
        {"strength": 0, "epochs": 15}, {"strength": 30, "learning_rate": 0.01, "epochs": 50}))
    assert_close(free.logits(queries), ZeroShotLinearProbe(learning_rate=0.1, epochs=15, share=1).fit(task).logits(
        queries))
    expected = ZeroShot().fit(task).logits(queries)
    assert (held.logits(queries) - expected).abs().max() < 0.2 * (free.logits(queries) - expected).abs().max()


def test_clap_holds_a_class_more_the_better_zero_shot_knows_it(make_task):
    task = make_task((4, 0, 4), noise=0.05)
    wrong = task.support.label.clone()
    wrong[:4] = 2
    mixed = CLAP().prepare(replace(task, support=replace(task.support, label=wrong)))
    plain = CLAP().prepare(task)
    assert plain.weight[0] > 0.99
    assert plain.weight[1] == mixed.weight[0] == 1.0  # no image speaks against their text
    assert mixed.weight[2] == pytest.approx(0.5, abs=0.01)


def test_lp_plus_plus_takes_the_mean_over_classes_not_over_rows(make_task):
    """Reference code reshapes by position and needs equal shots; here a class counts once whatever its shots."""
    task = make_task((1, 9, 0))
    prepared = LPPlusPlus().prepare(task)
    rows, text = unit(task.support.embedding).double(), task.text.class_weights.double()
    own = (rows * text[task.support.label]).sum(dim=1)
    expected = 250 * (own[:1].mean() + own[1:].mean()) / 2
    assert_close(LPPlusPlus().initial(prepared, torch.Generator())["alpha"].double(), expected.repeat(3), rtol=1e-5,
                 atol=0)


def test_lp_plus_plus_keeps_the_last_of_the_best_epochs(make_task):
    """Validation rows that every epoch has right, or every one wrong: the last epoch is kept."""
    task = make_task((4, 4, 4), noise=0.4)
    first, last = (LPPlusPlus(keep="last", epochs=epochs).fit(task) for epochs in (1, 40))
    assert not torch.equal(first.head.weight, last.head.weight)
    for moved in (0, 1):
        easy = Rows(task.text.class_weights, (torch.arange(3) + moved) % 3)
        kept = LPPlusPlus(epochs=40).fit(replace(task, val=easy))
        assert torch.equal(kept.head.weight, last.head.weight)


def test_lp_plus_plus_keeps_an_earlier_epoch_where_validation_rows_ask_for_it(make_task):
    """Labels that are what the first epoch predicts of hard rows: only that epoch is right in all of them."""
    task = make_task((2, 2, 2), val=20, noise=1.5)
    first, last = (LPPlusPlus(keep="last", epochs=epochs).fit(task) for epochs in (1, 60))
    label = first.logits(task.val.embedding).argmax(dim=1)
    assert (last.logits(task.val.embedding).argmax(dim=1) != label).any()
    kept = LPPlusPlus(epochs=60).fit(replace(task, val=replace(task.val, label=label)))
    assert (kept.logits(task.val.embedding).argmax(dim=1) == label).all()
    assert not torch.equal(kept.head.weight, last.head.weight)


def test_prompts_are_samples_of_the_cross_modal_probe(make_task, queries):
    """Twice a prompt is twice a sample; a start apart from the prompts learns the classes from them alone."""
    task = make_task((4, 0, 4))
    again = torch.cat([torch.arange(len(task.text.embedding)), torch.tensor([0])])
    doubled = replace(task.text, embedding=task.text.embedding[again], class_index=task.text.class_index[again])
    first, second = (CrossModalLinearProbe(start="random", epochs=30, learning_rate=0.01).fit(each)
                     for each in (task, replace(task, text=doubled)))
    assert not torch.allclose(first.logits(queries), second.logits(queries), atol=1e-3)
    assert (first.logits(task.text.embedding).argmax(dim=1) == task.text.class_index).all()


@pytest.mark.parametrize("make", [RLA, ProLIP])
def test_linear_maps_are_held_by_strength_over_shots(make_task, make):
    task = widened(make_task((2, 4)))
    start = make().initial(task, torch.Generator())
    moved = {name: value + 0.1 for name, value in start.items()}
    size = sum(value.numel() for value in moved.values()) * 0.01
    for power in (0, 1, 2):
        assert float(make(strength=2, power=power).penalty(task, moved)) == pytest.approx(2 * size / 3**power, rel=1e-4)


@pytest.mark.parametrize("make", [RLA, ProLIP])
def test_a_trained_map_serves_other_classes(make_task, make, tmp_path):
    """Train on two classes, classify five: the map is all that is taken along."""
    base, new = widened(make_task((4, 4), noise=NOISY)), widened(make_task((1, 1, 1, 1, 1)))
    method = make(epochs=15)
    fitted = method.fit(base)
    moved = method.classifier(new, method.prepare(new), fitted.parameters)
    rows = new.support.input(method.inputs)
    assert moved.logits(rows).shape == (5, 5)
    start = method.initial(new, torch.Generator())
    untrained = method.classifier(new, method.prepare(new), start).logits(rows)
    assert_close(untrained, ZeroShot().fit(new).logits(new.support.embedding), rtol=1e-4, atol=1e-3)
    assert not torch.allclose(moved.logits(rows), untrained, atol=1e-3)


@pytest.mark.parametrize("bias", [False, True])
def test_prolip_starts_at_zero_shot_and_leaves_the_projection_of_the_task_alone(make_task, bias):
    """The authors' final training shares memory with the model, and changes it."""
    task = widened(make_task((3, 3, 3), noise=NOISY), bias=bias)
    before = task.projection.clone()
    rows = task.support.input(("preproj",))
    expected = ZeroShot().fit(task).logits(task.support.embedding)
    assert_close(ProLIP(epochs=0).fit(task).logits(rows), expected, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(ProLIP(epochs=15).fit(task).logits(rows), expected, atol=0.1)
    assert torch.equal(task.projection, before)


def test_prolip_sees_the_second_view_first_and_the_first_one_last(make_task):
    task = widened(make_task((3, 3, 3)), views=3)
    views = task.support.others["preproj_view"]
    seen = [ProLIP().training_rows(task, task, epoch)[0] for epoch in range(3)]
    for rows, view in zip(seen, (1, 2, 0), strict=True):
        assert torch.equal(rows, views[:, view])


def test_prolip_says_which_option_of_extract_is_missing(make_task):
    task = widened(make_task((3, 3, 3)))
    with pytest.raises(MethodError, match=r"'preproj' .* --preproj"):
        ProLIP().fit(replace(task, support=replace(task.support, others={})))
    with pytest.raises(MethodError, match=r"projection .* --preproj.* rla"):
        ProLIP().fit(replace(task, projection=None))


@pytest.mark.parametrize(("weight", "like"), [(0, "zero-shot"), (1, "fine-tuned")])
def test_wise_ft_ends_at_zero_shot_and_at_the_fine_tuned_head(make_task, queries, weight, like):
    task, method = make_task((3, 3, 3), noise=NOISY), WiseFT(alpha=weight, epochs=15)
    parameters = train([Run(method, task, task, 0)])[0]
    expected = task.zero_shot_weights if like == "zero-shot" else parameters["weight"]
    assert torch.equal(method.head(task, parameters).weight, expected)
    assert not torch.allclose(parameters["weight"], task.zero_shot_weights)


def test_wise_ft_finds_its_share_exactly(make_task):
    found = fit_selected(WiseFT(epochs=15), make_task((2, 2, 2), val=8, noise=0.8), "val")
    low, high = found.interval
    share = found.classifier.hyperparameters["alpha"]
    assert 0 <= low < share < high <= 1


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_lpclip_is_scikit_learns_regression_on_rows_of_the_raw_length(make_task, queries, views, strength):
    task = make_task((4, 5, 6), views=views, dtype=torch.float64)
    raw = task.support.views.flatten(0, 1) if views else task.support.embedding
    length = float(raw.square().sum(dim=1).mean().sqrt())
    label = task.support.label.repeat_interleave(max(views, 1))
    known = LogisticRegression(C=strength, tol=1e-10, max_iter=5000).fit(length * unit(raw).numpy(), label)
    expected = known.decision_function(length * unit(queries.double()).numpy())
    actual = LpClip(C=strength).fit(task).logits(queries)
    assert_close((actual - actual.mean(dim=1, keepdim=True)).double(),
                 torch.from_numpy(expected - expected.mean(axis=1, keepdims=True)), rtol=1e-3, atol=1e-3)


def test_the_probe_of_the_clip_paper_is_scikit_learns_regression_before_the_projection(make_task):
    task = widened(make_task((4, 5, 6), dtype=torch.float64))
    raw = task.support.others["preproj"]
    rows = float(raw.square().sum(dim=1).mean().sqrt()) * unit(raw).numpy()
    known = LogisticRegression(C=0.3, tol=1e-10, max_iter=5000).fit(rows, task.support.label)
    actual = LinearProbePreproj(C=0.3).fit(task).logits(raw)
    assert_close(actual.softmax(dim=1).double(), torch.from_numpy(known.predict_proba(rows)), rtol=1e-3, atol=1e-4)


def test_the_probe_by_adamw_is_that_of_a_plain_loop_of_torch(make_task):
    """CLIP_benchmark's: a torch layer on unit rows without scale, AdamW, cosine without warm-up."""
    task = make_task((6, 6, 6), dtype=torch.float64)
    method = LinearProbeAdamW(preset="reference", weight_decay=0.01)
    layer = torch.nn.Linear(10, 3, dtype=torch.float64)
    start = method.initial(task, torch.Generator().manual_seed(0))
    assert start["weight"].abs().max() <= 10**-0.5
    with torch.no_grad():
        layer.weight.copy_(start["weight"])
        layer.bias.copy_(start["bias"])
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(task.support.unit), task.support.label).backward()
        optimizer.step()
        schedule.step()
    trained = train([Run(method, task, task, 0)])[0]
    assert_close(trained["weight"], layer.weight.detach(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(trained["bias"], layer.bias.detach(), rtol=0, atol=1e-9)


def test_a_class_without_images_keeps_its_text_where_nothing_else_is_trained(make_task, queries):
    """TaskRes and CLAP leave its direction nearly alone; a head without text has no idea of it."""
    task = make_task((6, 0, 6), noise=0.05)
    shown = Rows(queries[7:14], torch.full((7,), 1))
    for method in (TaskRes(epochs=15), CLAP(epochs=15), LPPlusPlus(epochs=15)):
        predicted = method.fit(task).logits(shown.embedding).argmax(dim=1)
        assert (predicted == shown.label).double().mean() > 0.5, method.name
