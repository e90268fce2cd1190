"""Choosing hyperparameters on support and validation rows; test rows cannot be named here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.engine import Progress, Run, finite, no_progress, require_finite, train
from onceclip.adapters.errors import MethodError, UnknownName
from onceclip.adapters.groups import in_lockstep
from onceclip.adapters.method import Method, Value, unknown
from onceclip.adapters.mixing import best_weight
from onceclip.adapters.search import GRID, SURVIVORS, Search
from onceclip.adapters.side_by_side import Computation, Wanted, carry_on
from onceclip.adapters.stack import Parameters
from onceclip.adapters.task import Rows, Task
from onceclip.adapters.threads import threads_for
from onceclip.adapters.together import logits_together

POLICIES = ("fixed", "val", "val-full", "loo")
Fitted = tuple[Method, Parameters]  # a method with its values, and what was trained with them
Scored = tuple[Method, Parameters, float, float, tuple[float, float] | None]  # with accuracy, loss, best interval


@dataclass(frozen=True)
class Selection:
    """A fitted classifier and how its hyperparameters were found.

    accuracy: on the rows that chose them, or None where nothing was chosen.
    tried: number of settings compared. interval: of the best mixing weight, where there is one.
    """

    classifier: Classifier
    accuracy: float | None = None
    tried: int = 0
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Choice:
    """What hyperparameters are chosen for: arguments as of `fit_selected`."""

    method: Method
    task: Task
    held: Set[str] = frozenset()
    seed: int = 0


@dataclass(frozen=True)
class _Trial:
    method: Method
    parameters: Parameters
    accuracy: float
    loss: float
    interval: tuple[float, float] | None

    @property
    def rank(self) -> tuple[float, float]:
        return self.accuracy, -self.loss


def fit_selected(method: Method, task: Task, policy: str, held: Set[str] = frozenset(), seed: int = 0,
                 progress: Progress = no_progress, search: Search = GRID) -> Selection:
    """Choose the free hyperparameters by a policy and fit.

    policy: "fixed" takes the present values; "val" and "val-full" use the task's validation rows; "loo" uses
        leave-one-image-out on the support. held: names that keep their present values, beside those that a
        preset gives. search: what is tried.
    Ties in accuracy go to the lower cross-entropy, then to the value that was tried first. A training that diverges
    is no candidate.
    Raises MethodError if the policy needs rows that the task does not have.
    """
    found, = select_all([Choice(method, task, held, seed)], policy, progress, search)
    if isinstance(found, MethodError):
        raise found
    return found


def select_all(choices: Sequence[Choice], policy: str, progress: Progress = no_progress,
               search: Search = GRID) -> list[Selection | MethodError]:
    """What `fit_selected` gives, or the failure, of several choices; what they train may be trained together."""
    work = choices[0].task.work
    together = [choices] if in_lockstep(choices[0].task.device.type) else [[choice] for choice in choices]
    results: list[Selection | MethodError] = []
    for some in together:
        with threads_for(work):
            results += carry_on([_selecting(choice, policy, search) for choice in some], progress)
    return results


def _selecting(choice: Choice, policy: str, search: Search) -> Computation[Selection]:
    method, task, held, seed = choice.method, choice.task, choice.held, choice.seed
    if policy not in POLICIES:
        raise MethodError(f"no selection policy {policy!r}: there are: {', '.join(POLICIES)}")
    for name in held:
        if name not in method.hyperparameters:
            raise UnknownName(unknown("hyperparameter", name, method.hyperparameters, f" of {method.name}"))
    held = held | set(method.presets.get(str(method.values.get("preset")), ()))
    method.check(task)
    free = {name: setting.search for name, setting in method.hyperparameters.items()
            if setting.search and name not in held}
    mixing = method.mixing if method.mixing not in held else None
    prepared = method.prepare(task)
    if policy == "fixed" or not (free or mixing):
        return Selection((yield from _fitting(method, task, prepared, seed)))
    settings = search.settings(free, seed)
    if policy == "loo":
        trials = yield from _refined(list(_leave_one_out(method, task, prepared, settings, mixing)), free, search,
                                     lambda more: _left_out(method, task, prepared, more, mixing))
        best = max(trials, key=lambda trial: trial.rank)
        classifier = yield from _fitting(best.method, task, best.method.prepare(task), seed)
        return Selection(classifier, best.accuracy, len(trials), best.interval)
    if task.val is None or not len(task.val):
        raise MethodError(f"--select {policy} needs validation rows and the task has none: use --select fixed")
    best, tried = yield from _validated([method.with_values(**values) for values in settings], task, prepared, task.val,
                                        mixing, seed, search, free)
    return Selection(best.method.classifier(task, prepared, best.parameters), best.accuracy, tried, best.interval)


def _fitting(method: Method, task: Task, prepared: Any, seed: int) -> Computation[Classifier]:
    """Train a method as it is."""
    parameters, = yield Wanted([Run(method, task, prepared, seed)])
    require_finite(method, parameters)
    return method.classifier(task, prepared, parameters)


def fit_all(methods: Sequence[Method], task: Task, seed: int = 0,
            progress: Progress = no_progress) -> list[Selection | MethodError]:
    """Fit one method with several sets of values, as they are; trained together where that is faster.

    Each gets its accuracy on the task's validation rows, if it has any, or the failure of its training.
    """
    return fit_each([Choice(method, task, seed=seed) for method in methods], progress)


def fit_each(choices: Sequence[Choice], progress: Progress = no_progress) -> list[Selection | MethodError]:
    """As `fit_all`, of one method on several tasks; what is held does not matter."""
    for task in {id(choice.task): choice.task for choice in choices}.values():
        choices[0].method.check(task)
    shared: dict[Any, Any] = {}
    with threads_for(choices[0].task.work):
        for choice in choices:
            if _firm(choice) not in shared:
                shared[_firm(choice)] = choice.method.prepare(choice.task)
        runs = [Run(choice.method, choice.task, shared[_firm(choice)], choice.seed) for choice in choices]
        trained = train(runs, progress)
        results: list[Selection | MethodError] = []
        good: dict[int, list[int]] = defaultdict(list)
        for place, (run, parameters) in enumerate(zip(runs, trained, strict=True)):
            try:
                require_finite(run.method, parameters)
                results.append(Selection(run.method.classifier(run.task, run.prepared, parameters)))
                good[id(run.task)].append(place)
            except MethodError as error:
                results.append(error)
        for places in good.values():
            rows = choices[places[0]].task.val
            if rows is None or not len(rows):
                continue
            heads = [results[place].classifier.head for place in places]  # type: ignore[union-attr]
            for place, logits in zip(places, logits_together(heads, runs[0].method.rows_of(rows)), strict=True):
                results[place] = replace(results[place], accuracy=_score(logits, rows.label)[0])  # type: ignore[type-var]
    return results


def _firm(choice: Choice) -> tuple[Any, ...]:
    """What `Method.prepare` may depend on: the task, and values that are neither searched nor only calculated with."""
    method = choice.method
    return (id(choice.task), *((name, value) for name, value in method.values.items() if not (
        isinstance(value, float) or method.hyperparameters[name].search or name == method.mixing)))


def _validated(methods: Sequence[Method], task: Task, prepared: Any, rows: Rows, mixing: str | None, seed: int,
               search: Search, free: Mapping[str, tuple[Value, ...]]) -> Computation[tuple[_Trial, int]]:
    """The best of some settings on validation rows, and how many were compared."""
    trained = methods[0].trained and "epochs" in methods[0].values
    rungs = search.rungs(len(methods), int(methods[0].values["epochs"])) if trained else [0]

    def compared(some: Sequence[Method], narrow: bool, start: float = 0.0, share: float = 1.0,
                 alike: int = 0) -> Computation[list[_Trial]]:
        wanted = Wanted([Run(each, task, prepared, seed) for each in some], narrow, start, share, alike)
        fitted = yield wanted
        if not any(map(finite, fitted)):
            require_finite(some[0], fitted[0])
        return list(_scored(list(zip(some, fitted, strict=True)), prepared, rows, mixing))

    going: list[Method] = list(methods)
    for number, epochs in enumerate(rungs):
        shortened = [method.with_values(epochs=epochs) for method in going] if trained else going
        trials = yield from compared(shortened, search.narrow, number / len(rungs), 1 / len(rungs),
                                     search.alike(len(methods), rungs, number))
        order = sorted(range(len(trials)), key=lambda place: trials[place].rank, reverse=True)
        if number < len(rungs) - 1:
            going = [going[place] for place in order[:-(-len(order) // SURVIVORS)]]
    trials = yield from _refined(trials, free, search, lambda more: compared(
        [methods[0].with_values(**values) for values in more], search.narrow))
    best = max(trials, key=lambda trial: trial.rank)
    if search.narrow and trained:
        best, = yield from compared([best.method], narrow=False)
    return best, max(len(methods), len(trials))


def _refined(trials: list[_Trial], free: Mapping[str, tuple[Value, ...]], search: Search,
             score: Callable[[list[dict[str, Value]]], Computation[list[_Trial]]]) -> Computation[list[_Trial]]:
    """The trials, and those of the values between the best one and its neighbours, round by round."""
    for _ in range(search.rounds):
        best = max(trials, key=lambda trial: trial.rank)
        more = search.between([trial.method.values for trial in trials], best.method.values, free)
        if more:
            trials = trials + (yield from score(more))
    return trials


@torch.no_grad()
def _scored(fitted: Sequence[Fitted], prepared: Any, rows: Rows, mixing: str | None) -> Iterator[_Trial]:
    """Score fitted settings; one that diverged gets the worst score there is."""
    good = [each for each in fitted if finite(each[1])]
    values, label = good[0][0].rows_of(rows), rows.label
    scored = (_as_they_are(good, prepared, values, label) if mixing is None else
              _mixed_all(good, prepared, values, label, mixing))
    for method, parameters in fitted:
        yield _Trial(*next(scored)) if finite(parameters) else _Trial(method, parameters, -1.0, float("inf"), None)


def _as_they_are(fitted: Sequence[Fitted], prepared: Any, values: Tensor, label: Tensor) -> Iterator[Scored]:
    heads = [method.head(prepared, parameters) for method, parameters in fitted]
    for each, logits in zip(fitted, logits_together(heads, values), strict=True):
        yield (*each, *_score(logits, label), None)


def _mixed_all(fitted: Sequence[Fitted], prepared: Any, values: Tensor, label: Tensor, mixing: str) -> Iterator[Scored]:
    """With the best mixing weight of each."""
    terms = [method.terms(prepared, parameters) for method, parameters in fitted]
    firsts, seconds = (logits_together([each[place] for each in terms], values) for place in (0, 1))
    for (method, parameters), first, second in zip(fitted, firsts, seconds, strict=True):
        chosen, weight, interval = _mixed(method, mixing, first, second, label)
        yield chosen, parameters, *_score(first + weight * second, label), interval


def _leave_one_out(method: Method, task: Task, prepared: Any, settings: Sequence[dict[str, Value]],
                   mixing: str | None) -> Iterator[_Trial]:
    label = task.support.label
    for values in settings:
        each, interval = method.with_values(**values), None
        first, second = each.leave_one_out(prepared)
        weight = float(each.values[each.mixing]) if each.mixing else 1.0
        if mixing is not None:
            each, weight, interval = _mixed(each, mixing, first, second, label)
        yield _Trial(each, {}, *_score(first + weight * second, label), interval)


def _left_out(method: Method, task: Task, prepared: Any, settings: Sequence[dict[str, Value]],
              mixing: str | None) -> Computation[list[_Trial]]:
    yield from ()  # nothing is trained
    return list(_leave_one_out(method, task, prepared, settings, mixing))


def _mixed(method: Method, mixing: str, first: Tensor, second: Tensor,
           label: Tensor) -> tuple[Method, float, tuple[float, float]]:
    setting = method.hyperparameters[mixing]
    found = best_weight(first, second, label, setting.high, setting.low)
    return method.with_values(**{mixing: found.weight}), found.weight, (found.low, found.high)


def _score(logits: Tensor, label: Tensor) -> tuple[float, float]:
    accuracy = (logits.argmax(dim=1) == label).double().mean()
    return float(accuracy), float(cross_entropy(logits, label))
