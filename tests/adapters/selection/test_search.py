"""What a selection tries: grids, random draws, halving; and that narrow products only search."""

import math
import statistics

import pytest
import torch

from onceclip.adapters import GDA, ClipAdapter, LinearProbeAdamW, LpClip, MethodError, TipAdapter, fit_selected
from onceclip.adapters.heads.batched import batched_logits, join
from onceclip.adapters.selection.search import Search, between
from onceclip.adapters.training import engine
from onceclip.adapters.training.compile import _CURRENT, Compiling, compiling
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.loop import Run


def test_a_grid_is_all_combinations_in_order():
    settings, = Search().proposals({"a": (1.0, 2.0), "b": ("x", "y")}, seed=0)
    assert settings == [{"a": 1.0, "b": "x"}, {"a": 1.0, "b": "y"}, {"a": 2.0, "b": "x"}, {"a": 2.0, "b": "y"}]


def test_random_draws_span_the_range_on_a_logarithmic_scale_and_follow_the_seed():
    free = {"l2": (1e-4, 1e-6, 1e-2), "share": (0.0, 1.0), "kind": ("x", "y"), "epochs": (5, 10)}
    search = Search.parse("random:400")
    draws, again, others = (next(search.proposals(free, seed)) for seed in (3, 3, 4))
    assert draws == again != others
    assert len(draws) == 400
    assert draws[0] == {name: values[0] for name, values in free.items()}  # the defaults
    assert list(search.proposals({}, seed=3)) == [[{}]]
    logarithms = [math.log10(draw["l2"]) for draw in draws]
    assert min(logarithms) >= -6
    assert max(logarithms) <= -2
    assert sum(logarithm < -4 for logarithm in logarithms) == pytest.approx(200, abs=50)
    assert sum(draw["share"] < 0.5 for draw in draws) == pytest.approx(200, abs=50)
    assert {draw["kind"] for draw in draws} == {"x", "y"}
    assert {draw["epochs"] for draw in draws} == {5, 10}


@pytest.mark.parametrize("text", ["guess", "random", "random:x", "random:0", "halving:-1", "optuna"])
def test_a_search_that_does_not_exist_is_named(text):
    with pytest.raises(MethodError, match=r"(random|optuna):30"):
        Search.parse(text)


def test_rungs_of_halving_end_with_whole_trainings():
    assert Search("halving").rungs(27, 81) == [3, 9, 27, 81]
    assert Search("halving").rungs(27, 4) == [1, 4]
    assert Search("halving").rungs(2, 100) == [100]
    assert Search("halving").rungs(27, 0) == [0]  # of a training that was asked to be none
    assert Search("halving").rungs(30, 20) == [1, 2, 7, 20]
    assert Search().rungs(27, 81) == [81]


def test_halving_finds_what_the_grid_finds_with_fewer_epochs(make_task, monkeypatch):
    """Nine ratios, one of which alone can learn: the others keep zero-shot's answers."""
    spent = {"halving": 0, "grid": 0}
    epoch = "onceclip.adapters.training.loop.Training.epoch"
    from onceclip.adapters.training.loop import Training

    original = Training.epoch
    found = {}
    for kind in spent:
        def counted(self, number, kind=kind):
            spent[kind] += len(set(self.stack.numbers["ratio"].tolist()))  # a stack may hold copies
            return original(self, number)

        monkeypatch.setattr(epoch, counted)
        task = make_task((8, 8, 8), val=8, noise=0.6)
        method = ClipAdapter(epochs=27, learning_rate=0.01)
        monkeypatch.setitem(ClipAdapter.hyperparameters, "ratio", with_search(ClipAdapter, "ratio", tuple(
            number / 10 for number in range(1, 10))))
        found[kind] = fit_selected(method, task, "val", {"learning_rate"}, search=Search(kind))
    assert spent["halving"] < 0.5 * spent["grid"]
    assert found["halving"].accuracy >= found["grid"].accuracy - 0.1
    assert found["halving"].classifier.hyperparameters["epochs"] == 27


def test_all_trainings_of_a_halving_are_compiled_or_none(make_task, monkeypatch):
    """Whether that pays is asked of the whole search: a short first rung comes to as much as the long last one."""
    seen = []

    def compiles(run, parameters):
        seen.append((run.method.epochs, run.method.epochs * _CURRENT.get().alike))
        return False

    monkeypatch.setattr(engine, "compiles", compiles)
    method = ClipAdapter(epochs=90)
    with compiling(Compiling(alike=7)):
        fit_selected(method, make_task((3, 3), val=2), "val", search=Search("halving", 9))
    assert dict(seen) == dict.fromkeys((10, 30, 90), 7 * (9 * 10 + 3 * 30 + 90))


def test_halves_lie_between_the_best_value_and_its_neighbours():
    free = {"C": (1.0, 100.0, 10000.0), "kind": ("x", "y"), "shots": (1, 2), "decay": (0.0, 1e-4)}
    best = {"C": 100.0, "kind": "y", "shots": 2, "decay": 1e-4, "other": 7.0}
    tried = [{**best, "C": value, "decay": decay} for value in free["C"] for decay in free["decay"]]
    found = between(tried, best, free)
    assert [each["C"] for each in found] == pytest.approx([10.0, 1000.0])
    assert all({**best, **each, "C": 100.0} == best and "other" not in each for each in found)
    assert [each["C"] for each in between(tried + found, found[0] | best, free)] == pytest.approx([31.6, 316.2],
                                                                                                          rel=1e-3)
    edge = {**best, "C": 1.0}
    assert [each["C"] for each in between(tried, edge, free)] == pytest.approx([10.0])
    assert next(Search("halves").proposals(free, 0)) == next(Search().proposals(free, 0))


def test_halves_reach_the_grid_of_97_decays_of_the_published_probe(make_task):
    """From every sixteenth value, in rounds of 8, 4, 2 and 1 steps, with at most eight trainings more."""
    task = make_task((4, 4, 4), val=15, noise=0.9)
    found = fit_selected(LinearProbeAdamW(epochs=20, weight_decay=0.01), task, "val", search=Search.parse("halves"))
    assert 8 + 4 <= found.tried <= 8 + 8
    decay = found.classifier.hyperparameters["weight_decay"]
    step = (math.log10(decay) + 6) * 12
    assert step == pytest.approx(round(step), abs=0.01)


@pytest.mark.parametrize("rounds", [1, 4])
def test_halves_find_nothing_worse_than_the_grid(make_task, rounds):
    task = make_task((4, 4, 4), val=15, noise=0.9)
    grid, halves = (fit_selected(LpClip(), task, "val", search=each) for each in (Search(), Search("halves", rounds)))
    assert grid.tried < halves.tried <= grid.tried + 2 * rounds
    assert halves.cost <= grid.cost
    again = LpClip(**halves.classifier.hyperparameters).fit(task)
    assert torch.equal(again.head.weight, halves.classifier.head.weight)


def test_halves_of_a_method_without_training_go_by_leave_one_out_too(make_task):
    task = make_task((4, 4, 4), noise=0.9)
    grid, halves = (fit_selected(TipAdapter(), task, "loo", search=Search.parse(text)) for text in ("grid", "halves"))
    assert halves.cost <= grid.cost
    assert halves.tried > grid.tried


def test_what_optuna_proposes_begins_with_the_defaults_follows_the_seed_and_nears_the_best():
    """A valley at 1e-3 and "y": the later settings are nearer to it than random ones; nothing is proposed twice."""
    free = {"l2": (1e-6, 1e-5, 1e-1), "kind": ("x", "y"), "epochs": (5, 10)}

    def cost(setting):
        l2 = setting.get("l2", 1e-3)
        return math.inf if l2 > 0.05 else abs(math.log10(l2) + 3) + (setting["kind"] == "x")

    def proposed(search, free, seed):
        settings, proposals = [], search.proposals(free, seed)
        try:
            settings += (some := next(proposals))
            while True:
                settings += (some := proposals.send([(cost(each), 0.0) for each in some]))
        except StopIteration:
            return settings

    search = Search.parse("optuna:40")
    settings = proposed(search, free, 3)
    assert settings == proposed(search, free, 3) != proposed(search, free, 4)
    assert settings[0] == {"l2": 1e-6, "kind": "x", "epochs": 5}
    assert len(settings) == 40
    late, drawn = (statistics.fmean(statistics.median(map(cost, proposed(Search.parse(text), free, seed)[20:]))
                                    for seed in range(4)) for text in ("optuna:40", "random:40"))
    assert late < drawn
    few = proposed(search, {"kind": ("x", "y")}, 3)
    assert sorted(each["kind"] for each in few) == ["x", "y"]
    assert next(search.proposals({}, 3)) == [{}]


@pytest.mark.parametrize("policy", ["val", "loo"])
def test_optuna_finds_nothing_worse_than_the_defaults_and_the_mixing_weight_is_exact(make_task, policy):
    method, task = TipAdapter(alpha=30.0), make_task((4, 4, 4), val=15, noise=0.9)
    found, again = (fit_selected(method, task, policy, search=Search.parse("optuna:14")) for _ in range(2))
    assert found.classifier.hyperparameters == again.classifier.hyperparameters
    assert found.tried == 14
    assert found.cost <= fit_selected(method, task, policy, {"beta"}).cost
    beta = found.classifier.hyperparameters["beta"]
    same = fit_selected(TipAdapter(beta=beta, alpha=30.0), task, policy, {"beta"})
    assert same.classifier.hyperparameters["alpha"] == found.classifier.hyperparameters["alpha"] != method.alpha


def with_search(method, name, values):
    """A hyperparameter of a method with other search values."""
    from dataclasses import replace

    return replace(method.hyperparameters[name], search=values)


def test_a_narrow_search_ends_with_a_training_in_full_precision(make_task, monkeypatch):
    monkeypatch.setattr(engine, "narrow_dtype", lambda _: torch.bfloat16)  # also where that is slow
    """The winner's parameters are those of its own training, to the bit."""
    task = make_task((6, 6, 6), val=4, noise=0.6)
    method = ClipAdapter(epochs=8, learning_rate=0.01)
    chosen = fit_selected(method, task, "val", search=Search(narrow=True)).classifier
    again = method.with_values(**chosen.hyperparameters).fit(task)
    rows = task.val.embedding
    assert torch.equal(chosen.logits(rows), again.logits(rows))
    narrow = train([Run(method, task, task, 0)], narrow=True)[0]
    full = train([Run(method, task, task, 0)])[0]
    assert not torch.equal(narrow["image_up"], full["image_up"])
    torch.testing.assert_close(narrow["image_up"], full["image_up"], rtol=0.2, atol=0.02)


def test_a_narrow_halving_trains_its_last_settings_as_usual_and_none_of_them_twice(make_task, monkeypatch):
    """The winner's parameters are those of its own training, to the bit."""
    monkeypatch.setattr(engine, "narrow_dtype", lambda _: torch.bfloat16)  # also where that is slow
    trainings = []

    def recorded(runs, progress, narrow):
        trainings.append((narrow, runs[0].method.epochs, len(runs)))
        return train(runs, progress, narrow)

    monkeypatch.setattr("onceclip.adapters.selection.selection.train", recorded)
    monkeypatch.setitem(ClipAdapter.hyperparameters, "ratio", with_search(ClipAdapter, "ratio", (0.2, 0.4, 0.6)))
    task, method = make_task((6, 6, 6), val=4, noise=0.6), ClipAdapter(epochs=9, batch_size=5)
    chosen = fit_selected(method, task, "val", search=Search("halving", narrow=True)).classifier
    assert trainings == [(True, 1, 9), (True, 3, 3), (False, 9, 1)]
    again = method.with_values(**chosen.hyperparameters).fit(task)
    assert torch.equal(chosen.logits(task.val.embedding), again.logits(task.val.embedding))


@pytest.mark.parametrize("heads", ["one product for all betas", "other keys", "other structures"])
def test_heads_scored_together_give_the_logits_of_each_alone(make_task, make_rows, heads, monkeypatch):
    task, rows = make_task((3, 3, 3)), make_rows((9, 9, 9), 10).unit
    fitted = {"one product for all betas": [TipAdapter(beta=beta, alpha=beta / 3).fit(task) for beta in (1.0, 9.0)],
              "other keys": [TipAdapter().fit(make_task((3, 3, 3), seed=seed)) for seed in (1, 2)],
              "other structures": [TipAdapter().fit(task), GDA().fit(task)]}[heads]
    assert (join([each.head for each in fitted]) is None) == (heads == "other structures")
    for most in (2**24, 40):
        monkeypatch.setattr("onceclip.adapters.heads.batched.elements_at_once", lambda device, most=most: most)
        for classifier, logits in zip(fitted, batched_logits([each.head for each in fitted], rows), strict=True):
            torch.testing.assert_close(logits, classifier.logits(rows), rtol=1e-5, atol=1e-4)


def test_what_heads_share_is_computed_once(make_task, make_rows):
    task = make_task((3, 3, 3))
    joined = join([TipAdapter(beta=beta).fit(task).head for beta in (1.0, 3.0)])
    zero_shot, cache = joined.heads
    assert zero_shot.weight.ndim == cache.keys.ndim == 2
    assert cache.beta.shape == (2,)
    assert joined(make_rows((2, 2, 2), 10).unit).shape == (2, 6, 3)
