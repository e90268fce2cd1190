"""Runs on different draws that take their steps together end where each ends by itself."""

from dataclasses import replace

import pytest
import torch

from onceclip.adapters import CLAP, ClipAdapter, descent, engine, fit_all, fit_selected, groups, lockstep
from onceclip.adapters.engine import Run, train
from onceclip.adapters.method import Hyperparameter
from onceclip.adapters.search import Search
from onceclip.adapters.selection import Choice, fit_each, select_all

from .test_execution import by_gradient, close, numbers


@pytest.fixture
def together(monkeypatch):
    """As on a GPU; gives how many trainings went together, each time."""
    sizes = []

    class Watched(lockstep.Lockstep):
        def run(self, *given):
            sizes.append(len(self.trainings))
            return super().run(*given)

    monkeypatch.setattr(groups, "_ONE_BY_ONE", set())
    monkeypatch.setattr(descent, "group_sizes", lambda *_: (1, 64))
    monkeypatch.setattr(lockstep, "Lockstep", Watched)
    return sizes


def one_by_one(runs):
    return [train([run])[0] for run in runs]


def test_every_method_ends_where_its_runs_end_one_by_one(case, make_task, make_method, together):
    """Other draws, other seeds, other numbers; views in turn, a last batch that is smaller."""
    if not by_gradient(case):
        pytest.skip("not trained by the engine's steps")
    runs = []
    for seed in (1, 2, 3):
        task = make_task((6, 6, 7), views=2, dtype=torch.float64, seed=seed)
        methods = numbers(make_method, case, 2, batch_size=6, epochs=3)
        prepared = methods[0].prepare(task)
        runs += [Run(method, task, prepared, seed) for method in methods]
    expected = one_by_one(runs)
    assert together == []
    close(train(runs), expected)
    assert together == [3]


def clip_adapters(make_task, seeds, rates=(0.01, 0.02), shots=(6, 6, 7), **values):
    runs = []
    for seed in seeds:
        task = make_task(shots, val=5, dtype=torch.float64, seed=seed)
        runs += [Run(ClipAdapter(**{"epochs": 4, "batch_size": 6, "learning_rate": rate, **values}), task, task, seed)
                 for rate in rates]
    return runs


def test_only_draws_of_one_size_and_settings_of_one_kind_go_together(make_task, together):
    runs = [*clip_adapters(make_task, (1, 2)), *clip_adapters(make_task, (3, 4, 5), shots=(5, 5, 5)),
            *clip_adapters(make_task, (6,), optimiser="sgd"), *clip_adapters(make_task, (7, 8), rates=(0.01,))]
    order = torch.randperm(len(runs), generator=torch.Generator().manual_seed(0)).tolist()
    mixed = [runs[place] for place in order]
    expected = one_by_one(mixed)
    close(train(mixed), expected)
    assert sorted(together) == [2, 2, 3]


def test_no_more_runs_go_together_than_there_is_room_for(make_task, together, monkeypatch):
    monkeypatch.setattr(descent, "group_sizes", lambda *_: (1, 4))
    runs = clip_adapters(make_task, (1, 2, 3))
    seen = []
    close(train(runs, seen.append), one_by_one(runs))
    assert together == [2]
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_every_run_keeps_its_own_best_epoch(make_task, together):
    runs = clip_adapters(make_task, (1, 2, 3), rates=(0.01, 1.0), epochs=9, keep="best", patience=2)
    last = clip_adapters(make_task, (1, 2, 3), rates=(0.01, 1.0), epochs=9)
    expected = one_by_one(runs)
    close(train(runs), expected)
    assert together == [3]
    assert any(not torch.allclose(best[name], end[name]) for best, end in zip(expected, train(last), strict=True)
               for name in best)


class Breaking(ClipAdapter):
    """Whose parameters become NaN where its number is above 1."""

    hyperparameters = {**ClipAdapter.hyperparameters, "number": Hyperparameter(0.0, "what breaks it", retrain=True)}

    def penalty(self, prepared, parameters):
        return torch.log(torch.as_tensor(1.0 - self.number)) * sum(each.sum() for each in parameters.values())


def test_a_run_that_diverges_takes_no_other_with_it(make_task, together):
    tasks = [make_task((6, 6, 7), dtype=torch.float64, seed=seed) for seed in (1, 2)]
    runs = [Run(Breaking(epochs=4, number=number), task, task, 0) for task in tasks for number in (0.0, 2.0)]
    trained = train(runs)
    assert [engine.finite(each) for each in trained] == [True, False, True, False]
    close([trained[0], trained[2]], one_by_one([runs[0], runs[2]]))
    assert together == [2]


class Reading(ClipAdapter):
    """Which reads a tensor of its task as a number: in a graph that would be the first draw's."""

    def penalty(self, prepared, parameters):
        return float(prepared.support.unit.sum()) * sum(each.square().sum() for each in parameters.values())


class Remembering(ClipAdapter):
    """Which keeps a number of each task where nobody looks: torch writes down the first draw's without a word."""

    kept = {}

    def prepare(self, task):
        self.kept[id(task)] = float(task.support.unit.sum())
        return task

    def penalty(self, prepared, parameters):
        return self.kept[id(prepared)] * sum(each.square().sum() for each in parameters.values())


@pytest.mark.parametrize("cls", [Reading, Remembering])
def test_draws_whose_gradients_would_be_another_ones_are_trained_one_by_one(make_task, together, cls):
    tasks = [make_task((6, 6, 7), dtype=torch.float64, seed=seed) for seed in (1, 2)]
    runs = [Run(method, task, method.prepare(task), 0) for task in tasks
            for method in (cls(epochs=4, learning_rate=0.01), cls(epochs=4, learning_rate=0.02))]
    close(train(runs), one_by_one(runs))
    assert together == []


def test_what_a_step_takes_of_its_task_is_its_own_draws(make_task, together):
    """Tensors of the task are inputs of what was written down for an earlier one."""
    for seeds in ((1, 2), (3, 4)):
        runs = []
        for seed in seeds:
            task = make_task((6, 6, 7), dtype=torch.float64, seed=seed)
            methods = [CLAP(epochs=4, learning_rate=rate) for rate in (0.01, 0.1)]
            prepared = methods[0].prepare(task)
            runs += [Run(method, task, prepared, seed) for method in methods]
        close(train(runs), one_by_one(runs))
    assert together == [2, 2]


@pytest.mark.parametrize("kind", ["grid", "halving", "halves:2"])
def test_searches_on_several_draws_find_what_each_finds_by_itself(make_task, together, monkeypatch, kind):
    """And what one of them fails of is its own."""
    monkeypatch.setitem(ClipAdapter.hyperparameters, "ratio", replace(
        ClipAdapter.hyperparameters["ratio"], search=(0.2, 0.4, 0.8)))
    tasks = [make_task((6, 6, 7), val=5, noise=0.6, dtype=torch.float64, seed=seed) for seed in (1, 2, 3)]
    tasks[1] = replace(tasks[1], val=None)
    choices = [Choice(ClipAdapter(epochs=9, learning_rate=0.05), task, seed=seed) for seed, task in enumerate(tasks)]
    search = Search.parse(kind)
    found = select_all(choices, "val", search=search)
    assert together
    assert set(together) == {2}
    assert "needs validation rows" in str(found[1])
    for choice, one in zip(choices[::2], found[::2], strict=True):
        alone = fit_selected(choice.method, choice.task, "val", seed=choice.seed, search=search)
        assert (one.accuracy, one.tried) == (alone.accuracy, alone.tried)
        assert one.classifier.hyperparameters == alone.classifier.hyperparameters
        rows = choice.task.support.embedding
        torch.testing.assert_close(one.classifier.logits(rows), alone.classifier.logits(rows))


def test_fits_on_several_draws_are_those_of_each(make_task, together):
    tasks = [make_task((6, 6, 7), val=val, dtype=torch.float64, seed=seed) for seed, val in enumerate((3, 0, 3))]
    choices = [Choice(ClipAdapter(epochs=3, learning_rate=rate), task, seed=5) for task in tasks for rate in (0.1, 0.2)]
    found = fit_each(choices)
    assert together == [2]  # whose tasks are of one form
    for choice, one in zip(choices, found, strict=True):
        alone, = fit_all([choice.method], choice.task, 5)
        assert one.accuracy == alone.accuracy
        assert (one.accuracy is None) == (choice.task.val is None)
        torch.testing.assert_close(one.classifier.logits(choice.task.support.embedding),
                                   alone.classifier.logits(choice.task.support.embedding))
