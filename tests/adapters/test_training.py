"""What training does, by whichever solver: repeatable, contained, and moved by what claims to move it."""

import math
from dataclasses import replace

import pytest
import torch

from onceclip.adapters import METHODS, ClipAdapter, MethodError, Rows, TipAdapterF
from onceclip.adapters.engine import Run, train


def another(setting, value):
    """A valid value other than the present one."""
    if setting.choices:
        return next(choice for choice in setting.choices if choice != value)
    if isinstance(value, bool):
        return not value
    return value // 2 or 4 if isinstance(value, int) else min(setting.high, 3 * value + 0.01)


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
    before = train([Run(base, task, base.prepare(task), 0)])[0]
    for name, setting in base.hyperparameters.items():
        changed = base.with_values(**{name: another(setting, base.values[name])})
        after = train([Run(changed, task, changed.prepare(task), 0)])[0]
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
