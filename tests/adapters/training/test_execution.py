"""However runs are carried out, their numbers are theirs: the company of a run, and compiling, are nobody's result."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.fx.experimental import proxy_tensor

from onceclip.adapters import CLAP, METHODS, ClipAdapter, Method, MethodError, TipAdapterF, WiseFT, ZeroShotLinearProbe
from onceclip.adapters.training import code_cache, engine
from onceclip.adapters.training.compile import Compiling, compiles, compiling
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.loop import Run


def by_gradient(case):
    cls = METHODS[case[0]]
    return cls.trained and cls.solver == "gradient" and cls.loss is Method.loss


def numbers(make_method, case, count, **fixed):
    """Runs of a method that differ in all numbers that may differ in a stack."""
    base = make_method(case, **fixed)
    names = [name for name, setting in base.hyperparameters.items()
             if setting.retrain and isinstance(setting.default, float) and name not in ("epsilon", "momentum")]

    def value(name, step):
        return min(base.hyperparameters[name].high, (base.values[name] or 0.01) * (1 + 0.1 * step))

    return [base.with_values(**{name: value(name, step) for name in names}) for step in range(count)]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_has_the_same_bits_in_any_company(case, make_task, make_method):
    """Alone, among others, at another place among them: so that a resumed sweep ends as an undisturbed one."""
    if not by_gradient(case):
        pytest.skip("not trained by the engine's steps")
    dim = 512 if case[0] == "vt-clip" else 64  # as large as any CLIP's: libraries sum small products in other orders
    task = make_task((5, 6, 7), dim=dim)
    methods = numbers(make_method, case, 5, batch_size=7, epochs=3)
    prepared = methods[0].prepare(task)
    runs = [Run(method, task, prepared, 3) for method in methods]
    expected = train(runs)
    assert not same(expected[0], expected[1])
    for some in ([2], [2, 0], [4, 3, 2, 1], [0, 1, 2, 3, 4, 2]):
        for place, found in zip(some, train([runs[place] for place in some]), strict=True):
            assert same(found, expected[place])


def test_pieces_of_any_size_give_the_same_bits(make_task, monkeypatch):
    task = make_task((3,) * 20, dim=512)
    runs = [Run(ZeroShotLinearProbe(learning_rate=rate / 100, epochs=9), task, task, 0) for rate in range(1, 8)]
    monkeypatch.setattr(engine, "threads_for", lambda _: nullcontext())  # which follows the largest size there may be
    expected = train(runs)
    for size in (1, 2, 3, 6, 7):
        monkeypatch.setattr(engine, "group_sizes", lambda *_, size=size: (size, size))
        assert all(map(same, train(runs), expected))


def test_large_runs_are_trained_one_by_one_and_small_ones_share_steps(make_task, monkeypatch):
    sizes = []
    training = engine.Training
    monkeypatch.setattr(engine, "Training", lambda runs, starts, alone, compile_step: sizes.append((len(runs), alone))
                        or training(runs, starts, alone, compile_step))
    for dim in (128, 512):
        task = make_task((3, 3), dim=dim)
        train([Run(ClipAdapter(epochs=1, ratio=ratio), task, task, 0) for ratio in (0.1, 0.2, 0.3)])
    assert sizes == [(3, False), *[(1, True)] * 3]


def traced(methods, task):
    """Parameters after plain steps, and after the operations of the graph that would be compiled."""
    prepared = methods[0].prepare(task)
    runs = [Run(method, task, prepared, 7) for method in methods]
    with compiling(Compiling("off")):
        plain = train(runs)
    with compiling(Compiling("on")):
        return plain, train(runs)


def close(some, others):
    for one, other in zip(some, others, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("uncompiled")
def test_a_traced_step_is_the_plain_one(case, make_task, make_method):
    """Also for other numbers of rows than it was written down with, and for a last batch of one."""
    if not by_gradient(case):
        pytest.skip("not trained by the engine's steps")
    task = make_task((6, 6, 7), views=2, dtype=torch.float64)
    close(*traced(numbers(make_method, case, 3, batch_size=6, epochs=3), task))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("case", [(name, {}) for name in ("clip-adapter", "tip-adapter-f", "taskres", "clap", "coop")],
                         ids=lambda case: case[0])
def test_a_traced_step_of_a_run_without_an_axis_of_runs_is_the_plain_one(case, make_task, make_method, monkeypatch):
    """As large runs have theirs; what differs between runs is an input of the graph here too."""
    monkeypatch.setattr(engine, "stacks", lambda *_: False)
    task = make_task((6, 6, 7), views=2, dtype=torch.float64)
    close(*traced(numbers(make_method, case, 2, batch_size=6, epochs=3), task))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "nesterov"])
@pytest.mark.parametrize("more", [{}, {"momentum": 0.0, "weight_decay": 0.0}, {"clip": 0.01, "smoothing": 0.1}])
def test_a_traced_step_is_the_plain_one_of_every_optimizer(make_task, make_method, optimizer, more):
    task = make_task((6, 6, 7), dtype=torch.float64)
    methods = [WiseFT(learning_rate=rate, optimizer=optimizer, schedule="dassl", epochs=5, **more)
               for rate in (0.01, 0.02)]
    close(*traced(methods, task))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("constraint", ["adaptive", "constant"])
def test_state_that_changes_between_epochs_reaches_compiled_steps(make_task, constraint):
    task = make_task((6, 6, 7), dtype=torch.float64)
    methods = [CLAP(epochs=5, learning_rate=rate, constraint=constraint) for rate in (0.01, 0.1)]
    close(*traced(methods, task))


@pytest.mark.parametrize("methods", [[ClipAdapter(ratio=ratio, epochs=3) for ratio in (0.1, 0.2, 0.7)],
                                     [WiseFT(smoothing=share, clip=0.1, epochs=3) for share in (0.05, 0.1, 0.2)]])
def test_one_graph_serves_all_runs_without_an_axis_of_runs(methods, make_task, monkeypatch, uncompiled):
    monkeypatch.setattr(engine, "stacks", lambda *_: False)
    close(*traced(methods, make_task((6, 6, 7), dtype=torch.float64)))
    assert len(uncompiled) == 1


def test_a_step_is_written_down_once_for_all_draws_and_compiled_once_for_all_tasks(make_task, monkeypatch, uncompiled):
    """The tensors of a task are inputs of the graph; where its plain values differ, it is written down again."""
    written = []
    make = proxy_tensor.make_fx
    monkeypatch.setattr(proxy_tensor, "make_fx", lambda *given, **more: written.append(1) or make(*given, **more))
    for seed, shots, scale, graphs, codes in ((1, 6, 100.0, 1, 1), (2, 6, 100.0, 1, 1), (2, 6, 50.0, 2, 1),
                                              (3, 6, 100.0, 2, 1), (3, 5, 100.0, 3, 2)):
        task = replace(make_task((shots, 6, 7), seed=seed, dtype=torch.float64), logit_scale=scale)
        runs = [Run(TipAdapterF(train_alpha=alpha, epochs=3), task, task, 7) for alpha in (0.5, 1.5)]
        with compiling(Compiling("off")):
            plain = train(runs)
        with compiling(Compiling("on")):
            close(train(runs), plain)
        assert (len(written), len(uncompiled)) == (graphs, codes), (seed, shots, scale)


def test_code_for_one_number_of_threads_is_not_taken_for_another(make_task, monkeypatch, uncompiled):
    task = make_task((6, 6, 7), dtype=torch.float64)
    for threads, codes in ((1, 1), (3, 2), (1, 2)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with compiling(Compiling("on")):
            ZeroShotLinearProbe(epochs=2).fit(task)
        assert len(uncompiled) == codes


def test_a_step_that_cannot_be_compiled_is_taken_plainly_or_refused(make_task, caplog):
    """A method that decides by the values of its tensors, as a stranger's may."""

    class Deciding(ZeroShotLinearProbe):
        def penalty(self, prepared, parameters):
            return 0.0 * float(prepared.support.unit.sum())

    task = make_task()
    method = Deciding(epochs=3)
    with compiling(Compiling("on")), pytest.raises(MethodError, match=r"zs-lp cannot be compiled .* use --compile off"):
        method.fit(task)
    expected = method.fit(task)
    with compiling(Compiling(alike=10**9)):
        assert torch.equal(method.fit(task).head.weight, expected.head.weight)


def test_a_run_alone_that_tried_to_compile_counts_its_steps_as_if_it_had_not(make_task, monkeypatch):
    """Adam's corrections follow the number of steps, and the step that was tried is none of them."""

    class Deciding(ClipAdapter):
        def penalty(self, prepared, parameters):
            return 0.0 * float(prepared.support.unit.sum())

    monkeypatch.setattr(engine, "stacks", lambda *_: False)
    task = make_task()
    run = Run(Deciding(epochs=3), task, task, 0)
    plain, = train([run])
    with compiling(Compiling(alike=10**9)):
        tried, = train([run])
    assert same(plain, tried)


def test_what_could_not_be_compiled_is_said_with_its_kind_where_it_is_one_word(make_task, monkeypatch):
    def lacking(*_, **more):
        raise KeyError("buf14")

    monkeypatch.setattr(proxy_tensor, "make_fx", lacking)
    with compiling(Compiling("on")), pytest.raises(MethodError, match=r"cannot be compiled \(KeyError: 'buf14'\): use"):
        WiseFT(epochs=3).fit(make_task(seed=8))


@pytest.mark.usefixtures("uncompiled")
def test_a_compiled_step_that_goes_elsewhere_is_refused(make_task, monkeypatch):
    monkeypatch.setattr(code_cache, "make", lambda *_: lambda tensors: None)
    task = make_task()
    with compiling(Compiling("on")), pytest.raises(MethodError, match="from the plain one"):
        ZeroShotLinearProbe(epochs=3).fit(task)


def test_long_trainings_are_compiled_and_short_ones_are_not(make_task):
    """By the run itself and by how many there are in all, never by what is trained beside it."""
    task = make_task()

    def decided(parameters, alike=1, choice="auto", epochs=300):
        with compiling(Compiling(choice, alike)):
            return compiles(Run(ClipAdapter(epochs=epochs), task, task, 0), parameters)

    assert not decided(100)
    assert decided(100, alike=10_000)
    assert decided(10**10)
    assert decided(100, choice="on")
    assert not decided(100, alike=10_000, choice="off")
    with pytest.raises(MethodError, match="there are auto, on, off"):
        Compiling("always")
    assert not decided(100, alike=10**9, epochs=1)  # trying the code takes as long
