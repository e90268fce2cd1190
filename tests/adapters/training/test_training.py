"""What training does, by whichever solver: repeatable, contained, and moved by what claims to move it."""

import math
from dataclasses import replace

import pytest
import torch

from onceclip.adapters import METHODS, ClipAdapter, Method, MethodError, Rows, TipAdapterF
from onceclip.adapters.selection.selection import fit_all
from onceclip.adapters.training import engine
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.history import recording
from onceclip.adapters.training.loop import Run
from onceclip.adapters.training.optimizer import Position, step_size
from onceclip.adapters.training.trainable import SCHEDULES


def another(setting, value):
    """A valid value other than the present one."""
    if setting.choices:
        return next(choice for choice in reversed(setting.choices) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return ""
    if isinstance(value, int):
        return value // 2 or 4
    return min(setting.high, 3 * value + 0.01) if value < setting.high else value / 2


def test_one_seed_gives_the_same_bits(case, make_task, make_method, queries):
    task = make_task((6, 6, 6))
    more = {"batch_size": 4} if "batch_size" in METHODS[case[0]].hyperparameters else {}
    first, second = (make_method(case, **more).fit(task, seed=5).logits(queries) for _ in range(2))
    assert torch.equal(first, second)


def test_only_hyperparameters_marked_retrain_change_what_is_trained(case, make_task, make_method):
    """Selection trains once for all values of the others; a retrain mark that does nothing is a dead setting."""
    task, base = make_task((6, 6, 6)), make_method(case)
    if not base.trained:
        assert base.initial(base.prepare(task), torch.Generator()) == {}
        return
    opposing = {"strength", "temperature"} if base.wants_tower else ()
    needs = {"momentum": {"optimizer": "sgd"}, "warmup": {"schedule": "warmup"}, "epsilon": {"optimizer": "adam"},
             "clip": {"clip": 1e-6}, "drop_last": {"batch_size": 4},
             **{name: {"epochs": 30, "learning_rate": 1e-2} for name in opposing}}
    # Where images are easy, no gradient opposes what zero-shot says.
    easy, hard = task, make_task((6, 6, 6), noise=2.0)
    # Prompts of random words: those of the tests' text tower leave some losses nothing to do.
    base_values = {"words": ""} if base.wants_tower else {}
    known = {}

    def trained(method, task):
        key = task is hard, *method.values.items()
        if key not in known:  # most settings are compared with one training
            known[key], = train([Run(method, task, method.prepare(task), 0)])
        return known[key]

    for name in base.hyperparameters.keys() - {"keep", "patience"}:  # which need validation rows
        setting, more = base.hyperparameters[name], {**(base_values if name != "words" else {}), **needs.get(name, {})}
        task = hard if name in opposing else easy
        like = make_method(case, **{key: value for key, value in more.items() if key in base.hyperparameters})
        before = trained(like, task)
        changed = like.with_values(**{name: another(setting, like.values[name])})
        after = trained(changed, task)
        equal = before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
        assert equal != setting.retrain, name


def test_progress_grows_to_one(method, make_task):
    seen = []
    method.fit(make_task(), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1:] == ([1.0] if method.trained else [])


def test_fitting_leaves_the_random_state_and_the_thread_count_alone(method, make_task):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    method.fit(make_task())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_training_that_diverges_is_reported_with_what_to_change(make_task):
    method = TipAdapterF(learning_rate=10, beta=50, train_beta=50, epochs=20)
    with pytest.raises(MethodError, match=r"tip-adapter-f diverged .* learning_rate"):
        method.fit(make_task((4, 4, 4), noise=1.0))


def test_recording_a_training_changes_no_number_and_says_something_of_every_method(method, make_task, queries):
    task = make_task(val=2)
    plain = method.fit(task).logits(queries)
    with recording() as recorder:
        assert torch.equal(method.fit(task).logits(queries), plain)
    if method.trained and method.solver == "gradient":
        history = recorder.history(method)
        assert len(history["val_loss"]) == method.epochs
        assert len(history["train_loss"]) == (0 if method.name == "reco" else method.epochs)
        assert all(math.isfinite(loss) for name in ("train_loss", "val_loss") for loss in history[name])


def test_views_take_turns_over_epochs(make_task):
    """Two epochs see the first two views: a third view matters to three epochs only."""
    task = make_task(views=3, noise=0.6)
    views = task.support.views.clone()
    views[:, 2] = views[:, 2].flip(0)
    other = replace(task, support=Rows(task.support.embedding, task.support.label, views))
    for epochs, equal in ((2, True), (3, False)):
        method = ClipAdapter(epochs=epochs)
        first, second = train([Run(method, each, method.prepare(each), 0) for each in (task, other)])
        assert torch.equal(first["image_up"], second["image_up"]) == equal


def test_the_start_of_a_learnt_ratio_is_the_ratio(make_task, make_rows):
    task, queries = make_task(), make_rows((5, 5, 5), 10, seed=50).embedding
    learnt, fixed = (ClipAdapter(ratio=0.3, learn_ratio=learn, epochs=0).fit(task).logits(queries)
                     for learn in (True, False))
    torch.testing.assert_close(learnt, fixed)


def test_clip_adapter_starts_like_layers_of_torch(make_task):
    """Uniform within one over the root of the number of inputs."""
    task = make_task(dim=64)
    method = ClipAdapter(reduction=2)
    start = method.initial(method.prepare(task), torch.Generator().manual_seed(0))
    assert start["image_down"].shape == (32, 64)
    assert start["image_down"].abs().max() == pytest.approx(64**-0.5, rel=0.01)
    assert start["image_up"].abs().max() == pytest.approx(32**-0.5, rel=0.01)


def test_the_step_size_follows_a_cosine_over_all_batches(make_task):
    """Without a weight on the cache its keys get no gradient, and each step only shrinks them by rate times decay."""
    task = make_task((5, 5, 5))
    method = TipAdapterF(alpha=0, train_alpha=0, learning_rate=0.1, weight_decay=2, epochs=3, batch_size=4)
    keys = train([Run(method, task, task, 0)])[0]["keys"]
    left = math.prod(1 - 0.1 * (1 + math.cos(math.pi * step / 12)) for step in range(12))
    torch.testing.assert_close(keys, left * task.support.keys)


def test_runs_trained_together_are_those_trained_one_by_one(case, make_task, make_method, monkeypatch):
    """Different step sizes, decays and numbers of the method in one stack, with and without shuffled batches.

    In double precision to the last digits. In single precision Adam's first steps depend on the sign of gradients
    that are all but zero, so there a larger epsilon is taken. A loss of a method's own is never stacked, and neither
    are steps that keep a machine busy.
    """
    base = make_method(case)
    if not base.trained or base.solver != "gradient" or type(base).loss is not Method.loss or not base.shares_steps:
        return
    numbers = {name: (setting.default, another(setting, setting.default))
               for name, setting in base.hyperparameters.items()
               if setting.retrain and isinstance(setting.default, float) and name not in ("epsilon", "momentum")}
    ways = [("adamw", 5, torch.float32, 1e-5), ("adam", 0, torch.float64, 1e-11)]
    if case[0] in ("clip-adapter", "linear-probe-adamw", "tip-adapter-f"):  # a network, a linear map and a cache
        ways += [("adamw", 5, torch.float64, 1e-12), ("sgd", 5, torch.float64, 1e-12)]
    for optimizer, batch, kind, tolerance in ways:
        task = make_task((6, 6, 6), views=2, dtype=kind)
        prepared = base.prepare(task)
        fixed = {"batch_size": batch, "optimizer": optimizer, "epsilon": 1e-3 if kind == torch.float32 else 1e-8}
        first, other = ({name: each[place] for name, each in numbers.items()} for place in (0, 1))
        methods = [make_method(case, **fixed, **values)
                   for values in (first, other, *({**first, name: other[name]} for name in numbers))]
        together = train([Run(method, task, prepared, 7) for method in methods])
        with monkeypatch.context() as patch:
            patch.setattr(engine, "stacks", lambda *_: False)
            alone = [train([Run(method, task, prepared, 7)])[0] for method in methods]
        assert len(methods) >= 4
        for one, other in zip(together, alone, strict=True):
            for name, value in one.items():
                torch.testing.assert_close(value, other[name], rtol=tolerance, atol=tolerance)


def test_equal_runs_are_trained_once(make_task, monkeypatch):
    task, calls = make_task(), []
    initial = ClipAdapter.initial
    monkeypatch.setattr(ClipAdapter, "initial", lambda *given: calls.append(1) or initial(*given))
    first, second, other = train([Run(ClipAdapter(epochs=2, ratio=ratio), task, task, 0) for ratio in (0.3, 0.3, 0.4)])
    assert len(calls) == 2
    assert torch.equal(first["image_up"], second["image_up"])
    assert not torch.equal(first["image_up"], other["image_up"])


def test_start_values_are_drawn_once_for_runs_that_the_optimizer_alone_tells_apart(make_task, monkeypatch):
    task, calls, initial = make_task(), [], ClipAdapter.initial
    monkeypatch.setattr(ClipAdapter, "initial", lambda *given: calls.append(1) or initial(*given))
    methods = [ClipAdapter(epochs=0, learn_ratio=True, ratio=ratio, learning_rate=rate)
               for ratio in (0.3, 0.4) for rate in (0.1, 0.2, 0.3)]
    trained = train([Run(method, task, task, 0) for method in methods])
    assert len(calls) == 2
    for method, parameters in zip(methods, trained, strict=True):
        assert float(parameters["image_theta"].sigmoid()) == pytest.approx(method.ratio)


@pytest.mark.parametrize("name", SCHEDULES)
def test_step_sizes_of_every_schedule(name):
    """Ten steps in five epochs from a rate of 0.2, three of warm-up: the values of the formulas."""
    sizes = [step_size(name, 0.2, Position(step, 10, step // 2, 5), warmup=3) for step in range(10)]
    cosine = [0.1 * (1 + math.cos(math.pi * part)) for part in torch.linspace(0, 1, 11)[:10].tolist()]
    per_epoch = [1e-5, *(0.1 * (1 + math.cos(math.pi * part)) for part in (0, 0.2, 0.4, 0.6))]
    rising = [0.2 / 3, 0.4 / 3, 0.2, *(0.1 * (1 + math.cos(math.pi * step / 7)) for step in range(7))]
    expected = {"cosine": cosine, "constant": [0.2] * 10, "dassl": [size for size in per_epoch for _ in range(2)],
                "warmup": rising}[name]
    assert sizes == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("batch", [0, 7])
def test_training_is_that_of_a_plain_loop_of_torch(make_task, batch):
    """Written out with torch's own optimizer, schedule and shuffling."""
    task = make_task((6, 6, 6), dtype=torch.float64)
    method = ClipAdapter(epochs=6, batch_size=batch, learning_rate=0.01, ratio=0.4)
    down, up = (value.clone().requires_grad_() for value in
                method.initial(task, torch.Generator().manual_seed(3)).values())
    optimizer = torch.optim.AdamW([down, up], lr=0.01, weight_decay=0.01, fused=False, foreach=False)
    rows, label, size = task.support.unit, task.support.label, batch or len(task.support)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6 * math.ceil(len(label) / size))
    order = torch.Generator().manual_seed(3 + 2**32)
    for _ in range(6):
        places = torch.randperm(len(label), generator=order) if batch else torch.arange(len(label))
        for piece in places.split(size):
            adapted = torch.relu(torch.relu(rows[piece] @ down.T) @ up.T)
            mixed = torch.nn.functional.normalize(0.4 * adapted + 0.6 * rows[piece], dim=1)
            loss = torch.nn.functional.cross_entropy(mixed @ task.zero_shot_weights.T, label[piece])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    trained = train([Run(method, task, task, 3)])[0]
    torch.testing.assert_close(trained["image_down"], down.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(trained["image_up"], up.detach(), rtol=0, atol=1e-12)


def test_start_values_of_any_layout_in_memory_train_alike(make_task):
    """Fused optimizer steps take a parameter and its gradient for laid out in one way, and say nothing if not."""
    class Transposed(ClipAdapter):
        name = "transposed"

        def initial(self, prepared, generator):
            return {name: value.T.contiguous().T for name, value in super().initial(prepared, generator).items()}

    task = make_task()
    plain, turned = (train([Run(kind(epochs=3), task, task, 0)])[0] for kind in (ClipAdapter, Transposed))
    for name, value in plain.items():
        assert torch.equal(value, turned[name])


def test_a_float_hyperparameter_that_is_used_as_a_count_is_said_in_one_line(make_task):
    """Runs that differ in it share a tensor of its values."""

    class Rounded(ClipAdapter):
        def training_head(self, prepared, parameters):
            assert round(self.ratio) < 9
            return super().training_head(prepared, parameters)

    with pytest.raises(MethodError, match=r"uses a float hyperparameter as a count .*whole number"):
        fit_all([Rounded(epochs=2, ratio=ratio) for ratio in (0.2, 0.3)], make_task())
