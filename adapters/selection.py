"""Choosing hyperparameters on support and validation rows; test rows cannot be named here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.engine import Progress, Run, finite, no_progress, require_finite, train
from onceclip.adapters.errors import MethodError, UnknownName
from onceclip.adapters.heads import Head
from onceclip.adapters.method import Method, Value, unknown
from onceclip.adapters.mixing import best_weight
from onceclip.adapters.task import Rows, Task
from onceclip.adapters.threads import threads_for

POLICIES = ("fixed", "val", "val-full", "loo")


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
    accuracy: float
    loss: float
    interval: tuple[float, float] | None
    fitted: Classifier | None  # None where it is still to be made (leave-one-out)


def fit_selected(method: Method, task: Task, policy: str, held: Set[str] = frozenset(), seed: int = 0,
                 progress: Progress = no_progress) -> Selection:
    """Choose the free hyperparameters by a policy and fit.

    policy: "fixed" takes the present values; "val" and "val-full" use the task's validation rows; "loo" uses
        leave-one-image-out on the support. held: names that keep their present values.
    Ties in accuracy go to the lower cross-entropy, then to the value that was tried first.
    Raises MethodError if the policy needs rows that the task does not have.
    """
    if policy not in POLICIES:
        raise MethodError(f"no selection policy {policy!r}: there are: {', '.join(POLICIES)}")
    for name in held:
        if name not in method.hyperparameters:
            raise UnknownName(unknown("hyperparameter", name, method.hyperparameters, f" of {method.name}"))
    method.check(task)
    free = {name: setting.search for name, setting in method.hyperparameters.items()
            if setting.search and name not in held}
    mixing = method.mixing if method.mixing not in held else None
    if policy == "fixed" or not (free or mixing):
        return Selection(method.fit(task, seed, progress))
    with threads_for(task.work):
        if policy == "loo":
            trials = list(_leave_one_out(method, task, free, mixing))
        elif task.val is not None and len(task.val):
            trials = list(_validated(method, task, task.val, free, mixing, seed, progress))
        else:
            raise MethodError(f"--select {policy} needs validation rows and the task has none: use --select fixed")
    best = max(trials, key=lambda trial: (trial.accuracy, -trial.loss))
    classifier = best.method.fit(task, seed, progress) if best.fitted is None else best.fitted
    return Selection(classifier, best.accuracy, len(trials), best.interval)


def _grid(values: dict[str, tuple[Value, ...]]) -> Iterator[dict[str, Value]]:
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _validated(method: Method, task: Task, rows: Rows, free: dict[str, tuple[Value, ...]], mixing: str | None,
               seed: int, progress: Progress) -> Iterator[_Trial]:
    """Compare settings on validation rows; settings that share a training are trained once."""
    prepared = method.prepare(task)
    retrain = {name: values for name, values in free.items() if method.hyperparameters[name].retrain}
    rest = {name: values for name, values in free.items() if name not in retrain}
    outer = [method.with_values(**values) for values in _grid(retrain)]
    trained = train([Run(each, task, prepared, seed) for each in outer], progress)
    if not any(map(finite, trained)):
        require_finite(outer[0], trained[0])
    for each, parameters in zip(outer, trained, strict=True):
        for values in _grid(rest) if finite(parameters) else ():
            yield _trial(each.with_values(**values), task, prepared, parameters, rows, mixing)


@torch.no_grad()
def _trial(method: Method, task: Task, prepared: Any, parameters: dict[str, Tensor], rows: Rows,
           mixing: str | None) -> _Trial:
    interval = None
    if mixing is not None:
        first, second = (_logits(method, head, task, rows) for head in method.terms(prepared, parameters))
        method, weight, interval = _mixed(method, mixing, first, second, rows.label)
        logits = first + weight * second
    fitted = method.classifier(task, prepared, parameters)
    if mixing is None:
        logits = fitted.logits(rows.input(method.inputs))
    return _Trial(method, *_score(logits, rows.label), interval, fitted)


def _leave_one_out(method: Method, task: Task, free: dict[str, tuple[Value, ...]],
                   mixing: str | None) -> Iterator[_Trial]:
    prepared, label = method.prepare(task), task.support.label
    for values in _grid(free):
        each, interval = method.with_values(**values), None
        first, second = each.leave_one_out(prepared)
        weight = float(each.values[each.mixing]) if each.mixing else 0.0
        if mixing is not None:
            each, weight, interval = _mixed(each, mixing, first, second, label)
        yield _Trial(each, *_score(first + weight * second, label), interval, None)


def _mixed(method: Method, mixing: str, first: Tensor, second: Tensor,
           label: Tensor) -> tuple[Method, float, tuple[float, float]]:
    setting = method.hyperparameters[mixing]
    found = best_weight(first, second, label, setting.high, setting.low)
    return method.with_values(**{mixing: found.weight}), found.weight, (found.low, found.high)


def _score(logits: Tensor, label: Tensor) -> tuple[float, float]:
    accuracy = (logits.argmax(dim=1) == label).double().mean()
    return float(accuracy), float(cross_entropy(logits, label))


def _logits(method: Method, head: Head, task: Task, rows: Rows) -> Tensor:
    values = rows.input(method.inputs)
    return Classifier(head, task.text.class_names, values.shape[1], "", inputs=method.inputs).logits(values)
