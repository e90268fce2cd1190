"""Choosing hyperparameters on support and validation rows; test rows cannot be named here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.cpu import threads_for
from onceclip.adapters.errors import MethodError, UnknownName, unknown
from onceclip.adapters.heads.batched import batched_logits
from onceclip.adapters.method import Method
from onceclip.adapters.ops import are_tied
from onceclip.adapters.selection.rule import LOGITS, Race, accuracy, calibrated_loss, departure, some_rows
from onceclip.adapters.selection.search import GRID, OPTUNA, SURVIVORS, Proposals, Search, Setting
from onceclip.adapters.task import Task
from onceclip.adapters.training.compile import several
from onceclip.adapters.training.engine import finite, require_finite, train
from onceclip.adapters.training.loop import Progress, Run, no_progress, part_of
from onceclip.adapters.training.stack import Parameters
from onceclip.adapters.training.trainable import Value

POLICIES = ("fixed", "val", "val-full", "loo")
ENOUGH = 4  # images of each class from which leaving one out says what all are worth
Fitted = tuple[Method, Parameters]  # a method with its values, and what was trained with them
Interval = tuple[float, float]


@dataclass(frozen=True)
class Selection:
    """A fitted classifier and how its hyperparameters were found.

    accuracy, cost: on the rows that chose them, by the rule of `rule.py`, or None where nothing was chosen.
    tried: number of settings compared. interval: of the mixing weights that are about as good, where there is one.
    """

    classifier: Classifier
    accuracy: float | None = None
    tried: int = 0
    interval: Interval | None = None
    cost: float | None = None


@dataclass(frozen=True)
class _Trial:
    method: Method
    parameters: Parameters
    accuracy: float
    cost: float
    interval: Interval | None = None


@dataclass(frozen=True)
class _Choice:
    """What may be chosen. start: the values that are left only with evidence. free: values to try. mixing: its name."""

    start: Method
    free: Mapping[str, tuple[Value, ...]]
    mixing: str | None

    def distance(self, method: Method) -> float:
        """What the rule charges for a method's values, but for the mixing weight's."""
        return departure(method.values, {name: self.start.values[name] for name in self.free})

    def race(self, label: Tensor) -> Race | None:
        """What weighs the two parts of the logits of rows with these labels, where there is a mixing weight."""
        if self.mixing is None:
            return None
        setting = self.start.hyperparameters[self.mixing]
        return Race(label, float(self.start.values[self.mixing]), setting.low, setting.high)


def default_policy(method: Method, task: Task) -> str:
    """How hyperparameters are chosen where the user does not say, for every method: "val", "loo" or "fixed".

    On labelled validation rows where the task has any; else by leaving out each support image in turn, where that has a
    closed form, every class has at least four images, none is a copy of another or of its group, which would tell what
    was left out, and the logits fit in memory; else not at all.
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
    few = int(torch.bincount(label, minlength=task.classes).min()) < ENOUGH
    return "fixed" if few or are_tied(task.support.embedding, task.support.group) else "loo"


def choices(method: Method, frozen: Set[str] = frozenset()) -> dict[str, tuple[Value, ...]]:
    """Values to try of every hyperparameter that may be chosen, the present one first; none of the mixing weight.

    frozen: names that keep their present values, beside those that a preset gives.
    """
    frozen = frozen | set(method.presets.get(str(method.values.get("preset")), ()))
    return {name: tuple(dict.fromkeys([method.values[name], *setting.search]))
            for name, setting in method.hyperparameters.items()
            if name not in frozen and (setting.search or name == method.mixing)}


def remarks_on(method: Method, task: Task, policy: str, frozen: Set[str] = frozenset()) -> list[str]:
    """What a user should know of a choice: that nothing was chosen although there was something, or on which rows.

    Arguments as of `fit_selected`.
    """
    if not choices(method, frozen):
        return []
    if policy == "fixed":
        return ["hyperparameters are defaults: nothing chose them (--select val does, on labelled validation rows)"]
    if policy == "loo" and are_tied(task.support.embedding, task.support.group):
        return ["some training images are copies of others, or of one group: one that is left out is known by these, "
                "and what chose the hyperparameters is too sure (--select fixed, or validation images)"]
    if policy in ("val", "val-full") and task.val is not None:
        some = len(some_rows(task.val, task.classes))
        if some < len(task.val):
            return [f"hyperparameters are chosen on {some:,} of the {len(task.val):,} validation rows, evenly spread: "
                    f"logits of all of them for {task.classes:,} classes would not fit in memory"]
    return []


def fit_selected(method: Method, task: Task, policy: str, frozen: Set[str] = frozenset(), seed: int = 0,
                 progress: Progress = no_progress, search: Search = GRID) -> Selection:
    """Choose the free hyperparameters by a policy and fit.

    policy: "fixed" takes the present values; "val" and "val-full" use the task's validation rows; "loo" uses
        leave-one-image-out on the support. frozen: names that keep their present values, beside those that a
        preset gives. search: what is tried.
    The rule that chooses is that of `rule.py`; the present values are always among those tried. A training that
    diverges is no candidate.
    Raises MethodError if the policy needs rows that the task does not have.
    """
    if policy not in POLICIES:
        raise MethodError(f"no selection policy {policy!r}: there are: {', '.join(POLICIES)}")
    for name in frozen:
        if name not in method.hyperparameters:
            raise UnknownName(unknown("hyperparameter", name, method.hyperparameters, f" of {method.name}"))
    method.check(task)
    method = method.suited(task)
    free = choices(method, frozen)
    mixing = method.mixing if method.mixing in free else None
    with threads_for(method.work(task)):
        if policy == "fixed" or not free:
            return Selection(method.fit_prepared(task, method.prepare(task), seed, progress))
        prepared = _prepared(method, task, free)
        choice = _Choice(method, {name: values for name, values in free.items() if name != mixing}, mixing)
        proposals = search.proposals(choice.free, seed)
        if policy == "loo":
            method.check_left_out(task)
            best, tried = _best(proposals, choice, lambda settings, _: _leave_one_out(choice, task, prepared, settings))
            classifier = best.method.fit_prepared(task, best.method.prepare(task), seed, progress)
        else:
            if task.val is None or not len(task.val):
                raise MethodError(f"--select {policy} needs validation rows and the task has none: use --select fixed")
            best, tried = _validated(choice, proposals, task, prepared, seed, search, progress)
            classifier = best.method.classifier(task, prepared, best.parameters)
        return Selection(classifier, best.accuracy, tried, best.interval, best.cost)


def fit_all(methods: Sequence[Method], task: Task, seed: int = 0, progress: Progress = no_progress,
            scored: bool = True) -> list[Selection | MethodError]:
    """Fit one method with several sets of values, as they are; trained together where that is faster.

    Each gets its accuracy on the task's validation rows, if it has any and they are to be `scored`, or the failure of
    its training.
    """
    methods[0].check(task)
    methods = [method.suited(task) for method in methods]
    free = {name for name, value in methods[0].values.items() if any(other.values[name] != value for other in methods)}
    shared: dict[Any, Any] = {}
    with threads_for(methods[0].work(task)):
        for method in methods:
            fixed = _fixed_values(method)
            if fixed not in shared:
                shared[fixed] = _prepared(method, task, free - dict(fixed).keys())
        runs = [Run(method, task, shared[_fixed_values(method)], seed) for method in methods]
        results: list[Selection | MethodError] = []
        for run, parameters in zip(runs, train(runs, progress), strict=True):
            try:
                require_finite(run.method, parameters)
                results.append(Selection(run.method.classifier(task, run.prepared, parameters)))
            except MethodError as error:
                results.append(error)
        heads = [result.classifier.head for result in results if isinstance(result, Selection)]
        if not (scored and heads) or task.val is None or not len(task.val):
            return results
        val = some_rows(task.val, task.classes)
        logits = batched_logits(heads, methods[0].rows_of(val))
        return [replace(result, accuracy=accuracy(next(logits), val.label)) if isinstance(result, Selection) else
                result for result in results]


def _prepared(method: Method, task: Task, free: Collection[str]) -> Any:
    """What `prepare` makes of a task for all values of some hyperparameters at once, which it therefore cannot see.

    Raises MethodError if it looks at one of them.
    """
    values = method.values
    method.values = {name: value for name, value in values.items() if name not in free}
    try:
        return method.prepare(task)
    except (AttributeError, KeyError) as error:
        read = next((name for name in free if repr(name) in str(error)), None)
        if read is None:
            raise
        raise MethodError(f"{method.name} reads {read} in prepare, which is called once for all values that are tried: "
                          "read it where the head or the start values are made") from error
    finally:
        method.values = values


def _fixed_values(method: Method) -> tuple[Any, ...]:
    """The values that `Method.prepare` may depend on: neither searched nor only calculated with."""
    return tuple((name, value) for name, value in method.values.items() if not (
        isinstance(value, float) or method.hyperparameters[name].search or name == method.mixing))


def _validated(choice: _Choice, proposals: Proposals, task: Task, prepared: Any, seed: int,
               search: Search, progress: Progress) -> tuple[_Trial, int]:
    """The best of what is proposed on the task's validation rows, and how many settings were compared."""
    trained, whole = choice.start.trained and "epochs" in choice.start.values, choice.start.values.get("epochs", 0)

    def train_and_score(methods: Sequence[Method], narrow: bool, progress: Progress, alike: int) -> list[_Trial]:
        """Train and score methods. alike: number of trainings like these that the whole search consists of."""
        with several(alike):
            fitted = train([Run(each, task, prepared, seed) for each in methods], progress, narrow)
        if not any(map(finite, fitted)):
            require_finite(methods[0], fitted[0])
        return list(_scored(list(zip(methods, fitted, strict=True)), choice, task, prepared))

    again = False  # whether the best was trained in bfloat16

    def score(settings: Sequence[Setting], tried: int) -> list[_Trial]:
        """The trials of some settings; of halving those that were trained to the end."""
        nonlocal again
        remaining = [choice.start.with_values(**values) for values in settings]
        rungs = search.rungs(len(remaining), int(whole)) if trained else [0]
        asked = search.count if search.kind == OPTUNA else 0
        total = max(asked, tried + len(settings))
        own_progress = part_of(progress, tried / total, len(settings) / total)
        for number, epochs in enumerate(rungs):
            again = trained and search.narrow_at(rungs, number)
            methods = [method.with_values(epochs=epochs) for method in remaining] if trained else remaining
            alike = max(search.alike(len(settings), rungs, number), asked and total)
            rung = part_of(own_progress, number / len(rungs), 1 / len(rungs))
            trials = train_and_score(methods, again, rung, alike)
            if number < len(rungs) - 1:
                ranked = sorted(zip(trials, remaining, strict=True),
                                key=lambda pair: (pair[0].cost, choice.distance(pair[1])))
                remaining = [method for _, method in ranked[:-(-len(ranked) // SURVIVORS)]]
        return trials

    best, tried = _best(proposals, choice, score)
    if again:
        best, = train_and_score([best.method], narrow=False, progress=progress, alike=1)
    return best, tried


def _best(proposals: Proposals, choice: _Choice,
          score: Callable[[Sequence[Setting], int], list[_Trial]]) -> tuple[_Trial, int]:
    """The best of what is proposed, some at a time after the costs of those before, and the number of settings.

    score: the trials of some settings, given how many were tried before.
    """
    trials: list[_Trial] = []
    tried = 0
    with suppress(StopIteration):
        settings = next(proposals)
        while True:
            more = score(settings, tried)
            trials, tried = trials + more, tried + len(settings)
            settings = proposals.send([(trial.cost, choice.distance(trial.method)) for trial in more])
    # Of equals the one nearest to the start, then the first.
    return min(trials, key=lambda trial: (trial.cost, choice.distance(trial.method))), tried


@torch.no_grad()
def _scored(fitted: Sequence[Fitted], choice: _Choice, task: Task, prepared: Any) -> Iterator[_Trial]:
    """Score fitted settings; one that diverged costs more than any other."""
    good = [each for each in fitted if finite(each[1])]
    val = some_rows(task.val, task.classes)  # type: ignore[arg-type]
    values = good[0][0].rows_of(val)
    if choice.mixing is None:
        sides = [batched_logits([method.head(prepared, parameters) for method, parameters in good], values)]
    else:
        terms = [method.terms(prepared, parameters) for method, parameters in good]
        sides = [batched_logits([each[side] for each in terms], values) for side in (0, 1)]
    race = choice.race(val.label)
    for method, parameters in fitted:
        if finite(parameters):
            yield _trial(choice, race, method, parameters, val.label, *(next(side) for side in sides))
        else:
            yield _Trial(method, parameters, -1.0, float("inf"))


def _leave_one_out(choice: _Choice, task: Task, prepared: Any, settings: Sequence[dict[str, Value]]) -> list[_Trial]:
    trials, race = [], choice.race(task.support.label)
    for values in settings:
        method = choice.start.with_values(**values)
        logits = method.leave_one_out(prepared) if choice.mixing else (method.left_out_logits(prepared),)
        trials.append(_trial(choice, race, method, {}, task.support.label, *logits))
    return trials


def _trial(choice: _Choice, race: Race | None, method: Method, parameters: Parameters, label: Tensor, first: Tensor,
           second: Tensor | None = None) -> _Trial:
    """Score logits, or two of them with the mixing weight that is chosen between them."""
    if second is None or choice.mixing is None or race is None:
        cost = float(calibrated_loss(first, label).sum()) + choice.distance(method)
        return _Trial(method, parameters, accuracy(first, label), cost)
    found = race.weigh(first, second, choice.distance(method))
    chosen = method.with_values(**{choice.mixing: found.weight})
    return _Trial(chosen, parameters, found.accuracy, found.cost, (found.low, found.high))
