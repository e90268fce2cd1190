"""What published code does otherwise than our defaults: the modes that repeat it, held against plain loops of torch."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize
from torch.testing import assert_close

from onceclip.adapters import (
    CLAP,
    CrossModalAdapter,
    CrossModalLinearProbe,
    MethodError,
    SgVA,
    TaskRes,
    Text,
    WiseFT,
    ZeroShotLinearProbe,
)
from onceclip.adapters.task import Stream
from onceclip.adapters.training import engine
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.loop import Run
from onceclip.adapters.training.trainable import kaiming_normal

ORDER = 2**32  # the stream of random numbers that shuffles batches


def noisy(make_task, **more):
    return make_task((4, 4, 4), noise=1.0, dtype=torch.float64, **more)


def text_head(task, vectors):
    return lambda rows: task.logit_scale * rows @ normalize(vectors, dim=1).T


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_nesterov_steps_are_those_of_torch_alone_and_in_a_stack(make_task, monkeypatch, momentum):
    task = noisy(make_task)
    methods = [WiseFT(optimizer="nesterov", momentum=momentum, schedule="constant", epochs=7, learning_rate=rate,
                      weight_decay=decay) for rate, decay in ((0.02, 0.0), (0.01, 0.0), (0.01, 0.1))]
    together = train([Run(each, task, task, 0) for each in methods])
    monkeypatch.setattr(engine, "stacks", lambda *_: False)
    for method, found in zip(methods, together, strict=True):
        alone = train([Run(method, task, task, 0)])[0]
        weight = task.zero_shot_weights.clone().requires_grad_()
        bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([weight, bias], lr=method.learning_rate, momentum=momentum,
                                    weight_decay=method.weight_decay, nesterov=momentum > 0)
        for _ in range(7):
            optimizer.zero_grad()
            cross_entropy(task.support.unit @ weight.T + bias, task.support.label).backward()
            optimizer.step()
        for name, expected in (("weight", weight), ("bias", bias)):
            assert_close(alone[name], expected.detach(), rtol=0, atol=1e-10)
            assert_close(found[name], expected.detach(), rtol=0, atol=1e-10)


def test_smoothed_labels_are_those_of_torch_in_a_stack(make_task):
    task = noisy(make_task)
    methods = [WiseFT(smoothing=share, schedule="constant", optimizer="sgd", momentum=0, epochs=7)
               for share in (0.0, 0.1, 0.4)]
    together = train([Run(each, task, task, 0) for each in methods])
    alike = train([Run(each.with_values(learning_rate=rate), task, task, 0) for each in methods[1:2]
                   for rate in (0.01, 0.02)])[0]
    for method, found in zip(methods, together, strict=True):
        weight = task.zero_shot_weights.clone().requires_grad_()
        optimizer = torch.optim.SGD([weight, bias := torch.zeros(3, dtype=torch.float64, requires_grad=True)], lr=0.01)
        for _ in range(7):
            optimizer.zero_grad()
            logits = task.support.unit @ weight.T + bias
            cross_entropy(logits, task.support.label, label_smoothing=method.smoothing).backward()
            optimizer.step()
        alone = train([Run(method, task, task, 0)])[0]
        for trained in (found, alone, *([alike] if method.smoothing == 0.1 else [])):
            assert_close(trained["weight"], weight.detach(), rtol=0, atol=1e-10)
            assert_close(trained["bias"], bias.detach(), rtol=0, atol=1e-10)


def test_the_momentum_of_sgva_is_nesterovs_only_where_it_is_asked_for():
    """Its presets hold no step size: the authors set one by hand for every data set and number of shots."""
    assert (SgVA().optimizer, SgVA(preset="reference").optimizer) == ("sgd", "nesterov")


def test_random_class_vectors_have_the_deviation_of_kaiming():
    values = kaiming_normal((300, 64), torch.Generator().manual_seed(0), torch.empty(0))
    assert float(values.std()) == pytest.approx((2 / 64) ** 0.5, rel=0.02)
    assert abs(float(values.mean())) < 0.01


@pytest.mark.parametrize("method", [ZeroShotLinearProbe(start="random", share=1, learning_rate=0.1, epochs=30),
                                    CLAP(start="random", share=1, strength=0, epochs=30)],
                         ids=lambda method: method.name)
def test_a_probe_with_a_random_start_ignores_the_text(make_task, make_rows, method):
    """A baseline without text that starts at the text weights is another one: published code had that for two years."""
    task, queries = make_task((6, 6, 6)), make_rows((9, 9, 9), 10, seed=50)
    other = replace(task, text=Text(-task.text.embedding.flip(0), task.text.class_index, task.text.class_names))
    first, second = (method.fit(each).logits(queries.embedding) for each in (task, other))
    assert torch.equal(first, second)
    assert (first.argmax(dim=1) == queries.label).double().mean() > 0.8
    assert not torch.equal(first, method.fit(task, seed=1).logits(queries.embedding))


@pytest.mark.parametrize("enhanced", [0, 6])
@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("base", ["zero-shot", "raw"])
def test_taskres_modes_are_a_plain_loop_of_torch(make_task, enhanced, learnt, base):
    task = noisy(make_task)
    method = TaskRes(epochs=8, alpha=0.7, learn_alpha=learnt, enhanced=enhanced, base=base, share=1,
                     schedule="constant")
    rows, label = task.support.unit, task.support.label
    start = task.text.raw_mean if base == "raw" else task.text.class_weights
    matrix = torch.eye(10, dtype=torch.float64, requires_grad=True)
    first = torch.optim.Adam([matrix], lr=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(first, max(enhanced, 1))
    for _ in range(enhanced):
        first.zero_grad()
        cross_entropy(text_head(task, start @ matrix.T)(rows), label).backward()
        first.step()
        schedule.step()
    mapped = start @ matrix.detach().T
    mapped = mapped if base == "raw" else method.length * normalize(mapped, dim=1)
    residual = torch.zeros_like(start, requires_grad=True)
    alpha = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    second = torch.optim.Adam([residual, alpha] if learnt else [residual], lr=2e-3, weight_decay=5e-4)
    for _ in range(8):
        second.zero_grad()
        cross_entropy(text_head(task, mapped + alpha * residual)(rows), label).backward()
        second.step()
    found = train([Run(method, task, method.prepare(task), 0)])[0]
    assert found.keys() == ({"residual", "alpha"} if learnt else {"residual"})
    assert_close(found["residual"], residual.detach(), rtol=0, atol=1e-10)
    if learnt:
        assert_close(found["alpha"], alpha.detach(), rtol=0, atol=1e-10)
        assert float(alpha.detach()) != 0.7
    expected = text_head(task, mapped + alpha * residual)(task.support.unit).detach()
    assert_close(method.fit(task).logits(task.support.embedding).double(), expected, rtol=1e-5, atol=1e-4)


def test_an_enhanced_base_fits_the_support_better_before_any_residual(make_task):
    task = noisy(make_task)
    loss = [float(cross_entropy(TaskRes(enhanced=epochs, epochs=0).fit(task).logits(task.support.embedding),
                                task.support.label)) for epochs in (0, 20, 200)]
    assert loss[0] > loss[1] > loss[2]


@pytest.mark.parametrize("size", [6, 0, 500])
def test_mixed_batches_are_half_images_and_half_prompts_drawn_equally_often(make_task, size):
    """Twelve images beside nine prompts: the fewer are repeated, so that over epochs all are seen alike."""
    task = make_task((4, 4, 4))
    method, order, seen = CrossModalLinearProbe(mixed_batches=True, batch_size=size), torch.Generator(), Counter()
    embedding = torch.cat([task.support.unit, task.text.unit])
    truth = torch.cat([task.support.label, task.text.class_index])
    for epoch in range(3):
        rows, label = method.training_rows(task, task, epoch)
        batches = method.batches(len(rows), order)
        assert len(batches) == 100
        for batch in batches:
            place = torch.cdist(rows[batch], embedding).argmin(dim=1)
            assert torch.equal(truth[place], label[batch])
            assert int((place < 12).sum()) == len(place) / 2 == (3 if size == 6 else 12)
            seen.update(place.tolist())
    for kind, members in (("images", range(12)), ("prompts", range(12, len(truth)))):
        count = [seen[member] for member in members]
        assert max(count) <= 1.1 * min(count), kind


def test_training_on_mixed_batches_lowers_the_mean_over_images_and_prompts(make_task):
    task = noisy(make_task)
    method = CrossModalLinearProbe(preset="reference", epochs=2, learning_rate=0.01)
    weight = normalize(task.text.raw_mean, dim=1).requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=0.01, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 50 if step < 50 else 0.5 * (
        1 + torch.cos(torch.tensor(torch.pi * (step - 50) / 150, dtype=torch.float64)).item()))
    order = torch.Generator().manual_seed(3 + ORDER)
    for epoch in range(2):
        rows, label = method.training_rows(task, task, epoch)
        for batch in method.batches(len(rows), order):
            image, prompt = batch[:4], batch[4:]
            loss = sum(cross_entropy(task.logit_scale * rows[half] @ weight.T, label[half]) for half in (image, prompt))
            optimizer.zero_grad()
            (loss / 2).backward()
            optimizer.step()
            schedule.step()
    found = train([Run(method, task, task, 3)])[0]["weight"]
    assert_close(found, weight.detach(), rtol=0, atol=1e-9)


def test_runs_on_mixed_batches_are_stacked(make_task, monkeypatch):
    task = noisy(make_task)
    methods = [CrossModalLinearProbe(preset="reference", epochs=1, learning_rate=rate) for rate in (1e-3, 1e-2)]
    together = train([Run(each, task, task, 0) for each in methods])
    monkeypatch.setattr(engine, "stacks", lambda *_: False)
    for method, found in zip(methods, together, strict=True):
        assert_close(found, train([Run(method, task, task, 0)])[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", [CrossModalLinearProbe, CrossModalAdapter])
def test_the_cross_modal_reference_makes_12800_steps_and_looks_at_validation_rows_128_times(make_task, method):
    task, reference = make_task((4, 4, 4)), method(preset="reference")
    steps = Run(reference, task, task, 0).steps_per_epoch()
    assert (steps, steps * reference.epochs, reference.keep) == (100, 12800, "best")


def test_mixed_batches_need_the_support_in_memory(make_task):
    task = make_task((4, 4, 4))
    rows = task.support.embedding
    support = Stream(task.support.label, lambda places: rows[places].numpy(), rows[:0])
    with pytest.raises(MethodError, match="leave out --stream"):
        CrossModalLinearProbe(mixed_batches=True).fit(replace(task, support=support))
