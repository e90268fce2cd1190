"""Choosing hyperparameters on support and validation rows; test rows cannot be named here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.cpu import threads_for
from onceclip.adapters.errors import MethodError, UnknownName, unknown
from onceclip.adapters.heads.batched import batched_logits
from onceclip.adapters.method import Method
from onceclip.adapters.selection.mixing import best_weight
from onceclip.adapters.selection.search import GRID, SURVIVORS, Search
from onceclip.adapters.task import Rows, Task
from onceclip.adapters.training.compile import several
from onceclip.adapters.training.engine import finite, require_finite, train
from onceclip.adapters.training.loop import Progress, Run, no_progress, part_of
from onceclip.adapters.training.stack import Parameters
from onceclip.adapters.training.trainable import Value

POLICIES = ("fixed", "val", "val-full", "loo")
ENOUGH = 4  # images of each class from which leaving one out says what all are worth
LOGITS = 2**27  # elements of logits (rows, classes) that a choice is made on at most: 512 MiB in float32
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
class _Trial:
    method: Method
    parameters: Parameters
    accuracy: float
    loss: float
    interval: tuple[float, float] | None

    @property
    def rank(self) -> tuple[float, float]:
        return self.accuracy, -self.loss


def default_policy(method: Method, task: Task) -> str:
    """How hyperparameters are chosen where the user does not say, for every method: "val", "loo" or "fixed".

    On labelled validation rows where the task has any; else by leaving out each support image in turn, where that has a
    closed form, every class has at least four images and the logits fit in memory; else not at all.
    """
    if task.val is not None and len(task.val):
        return "val"
    label = task.support.label
    if not len(label) or len(label) * task.classes > LOGITS:
        return "fixed"
    try:
        method.check_left_out(task)
    except MethodError:
        return "fixed"
    return "loo" if int(torch.bincount(label, minlength=task.classes).min()) >= ENOUGH else "fixed"


def choices(method: Method, frozen: Set[str] = frozenset()) -> dict[str, tuple[Value, ...]]:
    """Values to try of every hyperparameter that may be chosen, the present one first; none of the mixing weight.

    frozen: names that keep their present values, beside those that a preset gives.
    """
    frozen = frozen | set(method.presets.get(str(method.values.get("preset")), ()))
    return {name: tuple(dict.fromkeys([method.values[name], *setting.search]))
            for name, setting in method.hyperparameters.items()
            if name not in frozen and (setting.search or name == method.mixing)}


def fit_selected(method: Method, task: Task, policy: str, frozen: Set[str] = frozenset(), seed: int = 0,
                 progress: Progress = no_progress, search: Search = GRID) -> Selection:
    """Choose the free hyperparameters by a policy and fit.

    policy: "fixed" takes the present values; "val" and "val-full" use the task's validation rows; "loo" uses
        leave-one-image-out on the support. frozen: names that keep their present values, beside those that a
        preset gives. search: what is tried.
    Ties in accuracy go to the lower cross-entropy, then to the value that was tried first. A training that diverges
    is no candidate.
    Raises MethodError if the policy needs rows that the task does not have.
    """
    if policy not in POLICIES:
        raise MethodError(f"no selection policy {policy!r}: there are: {', '.join(POLICIES)}")
    for name in frozen:
        if name not in method.hyperparameters:
            raise UnknownName(unknown("hyperparameter", name, method.hyperparameters, f" of {method.name}"))
    frozen = frozen | set(method.presets.get(str(method.values.get("preset")), ()))
    method.check(task)
    free = {name: setting.search for name, setting in method.hyperparameters.items()
            if setting.search and name not in frozen}
    mixing = method.mixing if method.mixing not in frozen else None
    with threads_for(task.work):
        prepared = method.prepare(task)
        if policy == "fixed" or not (free or mixing):
            return Selection(_fitted(method, task, prepared, seed, progress))
        settings = search.settings(free, seed)
        if policy == "loo":
            method.check_left_out(task)
            trials = _refined(_leave_one_out(method, task, prepared, settings, mixing), free, search,
                              lambda more: _leave_one_out(method, task, prepared, more, mixing))
            best = max(trials, key=lambda trial: trial.rank)
            classifier = _fitted(best.method, task, best.method.prepare(task), seed, progress)
            return Selection(classifier, best.accuracy, len(trials), best.interval)
        if task.val is None or not len(task.val):
            raise MethodError(f"--select {policy} needs validation rows and the task has none: use --select fixed")
        best, tried = _validated([method.with_values(**values) for values in settings], task, prepared, task.val,
                                 mixing, seed, search, free, progress)
        return Selection(best.method.classifier(task, prepared, best.parameters), best.accuracy, tried, best.interval)


def _fitted(method: Method, task: Task, prepared: Any, seed: int, progress: Progress) -> Classifier:
    """Train a method as it is."""
    parameters, = train([Run(method, task, prepared, seed)], progress)
    require_finite(method, parameters)
    return method.classifier(task, prepared, parameters)


def fit_all(methods: Sequence[Method], task: Task, seed: int = 0,
            progress: Progress = no_progress) -> list[Selection | MethodError]:
    """Fit one method with several sets of values, as they are; trained together where that is faster.

    Each gets its accuracy on the task's validation rows, if it has any, or the failure of its training.
    """
    methods[0].check(task)
    shared: dict[Any, Any] = {}
    with threads_for(task.work):
        for method in methods:
            if _firm(method) not in shared:
                shared[_firm(method)] = method.prepare(task)
        runs = [Run(method, task, shared[_firm(method)], seed) for method in methods]
        results: list[Selection | MethodError] = []
        for run, parameters in zip(runs, train(runs, progress), strict=True):
            try:
                require_finite(run.method, parameters)
                results.append(Selection(run.method.classifier(task, run.prepared, parameters)))
            except MethodError as error:
                results.append(error)
        heads = [result.classifier.head for result in results if isinstance(result, Selection)]
        if not heads or task.val is None or not len(task.val):
            return results
        logits = batched_logits(heads, methods[0].rows_of(task.val))
        label = task.val.label
        return [replace(result, accuracy=_score(next(logits), label)[0]) if isinstance(result, Selection) else result
                for result in results]


def _firm(method: Method) -> tuple[Any, ...]:
    """The values that `Method.prepare` may depend on: neither searched nor only calculated with."""
    return tuple((name, value) for name, value in method.values.items() if not (
        isinstance(value, float) or method.hyperparameters[name].search or name == method.mixing))


def _validated(methods: Sequence[Method], task: Task, prepared: Any, rows: Rows, mixing: str | None, seed: int,
               search: Search, free: Mapping[str, tuple[Value, ...]], progress: Progress) -> tuple[_Trial, int]:
    """The best of some settings on validation rows, and how many were compared."""
    trained = methods[0].trained and "epochs" in methods[0].values
    rungs = search.rungs(len(methods), int(methods[0].values["epochs"])) if trained else [0]

    def compared(some: Sequence[Method], narrow: bool, progress: Progress, alike: int = 0) -> list[_Trial]:
        """Train and score settings. alike: number of trainings like these that the whole search consists of."""
        with several(alike or len(some)):
            fitted = train([Run(each, task, prepared, seed) for each in some], progress, narrow)
        if not any(map(finite, fitted)):
            require_finite(some[0], fitted[0])
        return list(_scored(list(zip(some, fitted, strict=True)), prepared, rows, mixing))

    going: list[Method] = list(methods)
    for number, epochs in enumerate(rungs):
        shortened = [method.with_values(epochs=epochs) for method in going] if trained else going
        trials = compared(shortened, search.narrow, part_of(progress, number / len(rungs), 1 / len(rungs)),
                          search.alike(len(methods), rungs, number))
        order = sorted(range(len(trials)), key=lambda place: trials[place].rank, reverse=True)
        if number < len(rungs) - 1:
            going = [going[place] for place in order[:-(-len(order) // SURVIVORS)]]
    trials = _refined(trials, free, search, lambda more: compared(
        [methods[0].with_values(**values) for values in more], search.narrow, progress))
    best = max(trials, key=lambda trial: trial.rank)
    if search.narrow and trained:
        best, = compared([best.method], narrow=False, progress=progress)
    return best, max(len(methods), len(trials))


def _refined(trials: list[_Trial], free: Mapping[str, tuple[Value, ...]], search: Search,
             score: Callable[[list[dict[str, Value]]], list[_Trial]]) -> list[_Trial]:
    """The trials, and those of the values between the best one and its neighbours, round by round."""
    for _ in range(search.rounds):
        best = max(trials, key=lambda trial: trial.rank)
        more = search.between([trial.method.values for trial in trials], best.method.values, free)
        if more:
            trials = trials + score(more)
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
    for each, logits in zip(fitted, batched_logits(heads, values), strict=True):
        yield (*each, *_score(logits, label), None)


def _mixed_all(fitted: Sequence[Fitted], prepared: Any, values: Tensor, label: Tensor, mixing: str) -> Iterator[Scored]:
    """With the best mixing weight of each."""
    terms = [method.terms(prepared, parameters) for method, parameters in fitted]
    firsts, seconds = (batched_logits([each[place] for each in terms], values) for place in (0, 1))
    for (method, parameters), first, second in zip(fitted, firsts, seconds, strict=True):
        chosen, weight, interval = _mixed(method, mixing, first, second, label)
        yield chosen, parameters, *_score(first + weight * second, label), interval


def _leave_one_out(method: Method, task: Task, prepared: Any, settings: Sequence[dict[str, Value]],
                   mixing: str | None) -> list[_Trial]:
    label, trials = task.support.label, []
    for values in settings:
        each, interval = method.with_values(**values), None
        first, second = each.leave_one_out(prepared)
        weight = float(each.values[each.mixing]) if each.mixing else 1.0
        if mixing is not None:
            each, weight, interval = _mixed(each, mixing, first, second, label)
        trials.append(_Trial(each, {}, *_score(first + weight * second, label), interval))
    return trials


def _mixed(method: Method, mixing: str, first: Tensor, second: Tensor,
           label: Tensor) -> tuple[Method, float, tuple[float, float]]:
    setting = method.hyperparameters[mixing]
    found = best_weight(first, second, label, setting.high, setting.low)
    return method.with_values(**{mixing: found.weight}), found.weight, (found.low, found.high)


def _score(logits: Tensor, label: Tensor) -> tuple[float, float]:
    accuracy = (logits.argmax(dim=1) == label).double().mean()
    return float(accuracy), float(cross_entropy(logits, label))
