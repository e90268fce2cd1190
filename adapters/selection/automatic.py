"""The choice where the user names no method: an average of several, each weighed by what labelled rows say."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError
from onceclip.adapters.heads import Head, Sum
from onceclip.adapters.heads.batched import batched_logits
from onceclip.adapters.heads.linear import as_linear
from onceclip.adapters.method import Method
from onceclip.adapters.methods.clip_adapter import ClipAdapter
from onceclip.adapters.methods.gda import GDA
from onceclip.adapters.methods.linear_probe import LinearProbe
from onceclip.adapters.methods.lp_plus_plus import LPPlusPlus
from onceclip.adapters.methods.zero_shot import ZeroShot
from onceclip.adapters.ops import ties_of
from onceclip.adapters.selection.calibration import HELD_OUT, VALIDATION, on_rows
from onceclip.adapters.selection.rule import accuracy, best_temperature, calibrated_loss, some_rows
from onceclip.adapters.selection.selection import fit_selected
from onceclip.adapters.task import Task
from onceclip.adapters.training.loop import Progress, no_progress, part_of

AUTOMATIC, ENSEMBLE, MERGE = AVERAGES = ("automatic", "ensemble", "merge")  # what a classifier of several is called
MEMBERS: tuple[type[Method], ...] = (ZeroShot, GDA, LinearProbe, LPPlusPlus, ClipAdapter)
SHARPNESS = 0.25  # of the weights exp(-sharpness loss): rows choose hyperparameters, too, and say a little less each
LEAST = 1e-3  # weight of a member that is left out
_PART = 4  # one of so many support rows of a class is held out


@dataclass(frozen=True)
class Reached:
    """What a member, or the average, reached on the rows that weighed it.

    method, hyperparameters: what was fitted. accuracy: there; None where there were no rows. loss: the sum of the
    calibrated cross-entropies of these rows, in nats. weight: in the average, between 0 and 1.
    """

    method: str
    hyperparameters: dict[str, Any]
    accuracy: float | None
    loss: float
    weight: float


def fit_automatically(task: Task, seed: int = 0, progress: Progress = no_progress,
                      members: Sequence[type[Method]] = ()) -> tuple[Classifier, list[Reached]]:
    """Fit several methods, each with hyperparameters chosen by the rule, and average their calibrated logits.

    The members are zero-shot, gda, linear-probe, lp++ and clip-adapter. Logits are `sum_i w_i l_i / T_i` with each
    member's best temperature and `w_i ~ exp(-(loss_i - least loss) / 4)`; then the sum gets a temperature. Rows that
    choose, weigh and calibrate are the task's validation rows. Without any they are a quarter of each class's support
    rows, at least one where a class has two, drawn by the seed, each with its copies and its group; what they chose is
    then fitted on all support rows again. Where no class has two, nothing can be weighed, and lp++ with its defaults is
    all there is.

    linear-probe takes part only where every class has a support row, and is alone where there is no text. Without
    support rows the answer is zero-shot.

    seed: of the rows held out and of trained methods. members: other methods, which all take part, in what is called an
    ensemble; where nothing can be weighed they weigh the same.
    Gives the classifier, and what each member reached, the average last.
    Raises MethodError if there is neither text nor a support row, or if a training diverges.

    Example:
        >>> classifier, reached = onceclip.adapters.fit_automatically(task)
        >>> [each.method for each in reached][-1], 0 <= reached[-1].accuracy <= 1
        ('automatic', True)
    """
    whole, on = task, VALIDATION
    if task.val is None or not len(task.val):
        task, on = _hold_out(task, seed), HELD_OUT
    methods = [member() for member in members] or _members(task)
    name = ENSEMBLE if members else AUTOMATIC
    if task.val is None or not len(task.val):
        return _unweighed(methods, name, task, seed, progress)
    val = some_rows(task.val, task.classes)
    fitted, reached = [], []
    for place, method in enumerate(methods):
        own_progress = part_of(progress, place / len(methods), 1 / len(methods))
        each = fit_selected(method, task, "val", seed=seed, progress=own_progress).classifier
        logits = next(batched_logits([each.head], val.unit))
        fitted.append(replace(each, temperature=best_temperature(logits, val.label)))
        reached.append(_reached(each, logits, val.label))
    least = min(each.loss for each in reached)
    weights = torch.tensor([-SHARPNESS * (each.loss - least) for each in reached]).softmax(dim=0).tolist()
    reached = [replace(each, weight=weight) for each, weight in zip(reached, weights, strict=True)]
    kept = [place for place, weight in enumerate(weights) if weight >= LEAST]
    chosen, shares = [fitted[place] for place in kept], [weights[place] for place in kept]
    factors = [share / each.temperature for share, each in zip(shares, chosen, strict=True)]
    head = _sum([each.head for each in chosen], factors)
    logits = next(batched_logits([head], val.unit))
    if on == HELD_OUT:
        again = [methods[place].with_values(**fitted[place].hyperparameters).fit(whole, seed) for place in kept]
        head = _sum([each.head for each in again], factors)
    average = on_rows(_average(chosen, shares, head, name), logits, val.label, on)
    return average, [*reached, _reached(average, logits, val.label)]


def _unweighed(methods: Sequence[Method], name: str, task: Task, seed: int,
               progress: Progress) -> tuple[Classifier, list[Reached]]:
    """Named members with equal weights; where none are named lp++, or what stands for it, by itself."""
    if name == AUTOMATIC:
        methods = [LPPlusPlus()] if LPPlusPlus in map(type, methods) else methods[:1]
    fitted = [method.fit(task, seed, progress) for method in methods]
    share = [1 / len(fitted)] * len(fitted)
    head = _sum([each.head for each in fitted], share) if name == ENSEMBLE else fitted[0].head
    average = _average(fitted, share, head, name)
    reached = [Reached(each.method, each.hyperparameters, None, 0.0, weight)
               for each, weight in zip([*fitted, average], [*share, 1.0], strict=True)]
    return average, reached if name == ENSEMBLE else reached[:1]


def _reached(classifier: Classifier, logits: Tensor, label: Tensor) -> Reached:
    """What logits (rows, classes) of labelled rows (rows,) say of a classifier that is all there is."""
    return Reached(classifier.method, classifier.hyperparameters, accuracy(logits, label),
                   float(calibrated_loss(logits, label).sum()), 1.0)


def fit_again(average: Classifier, task: Task, seed: int = 0) -> Classifier:
    """Fit the methods of an average on another task of its classes, with the values, weights and temperatures it has.

    Raises MethodError if a training diverges.
    """
    values, heads, factors = average.hyperparameters, [], []
    for method in MEMBERS:
        if f"{method.name} weight" in values:
            own = {name: values[f"{method.name} {name}"] for name in method.hyperparameters}
            heads.append(method(**own).fit(task, seed).head)
            factors.append(values[f"{method.name} weight"] / values[f"{method.name} temperature"])
    return replace(average, head=_sum(heads, factors))


def _members(task: Task) -> list[Method]:
    """The methods that suit a task."""
    every_class = len(task.support.label.unique()) == task.classes
    if not len(task.text.embedding):
        if not len(task.support):
            raise MethodError("there is neither text nor a labelled training row to make a classifier of: add a text "
                              "set, or a train split")
        return [LinearProbe()]
    if not len(task.support):
        return [ZeroShot()]
    return [member() for member in MEMBERS if member is not LinearProbe or every_class]


def _hold_out(task: Task, seed: int) -> Task:
    """The task with a part of each class's support rows as its validation rows.

    A row, its copies and its group go together, in all classes that they are of: nothing that is held out is known.
    The group that is the last in the order of all is held out in no class, so that the support keeps some rows.
    """
    label, ties = task.support.label.tolist(), ties_of(task.support.embedding, task.support.group).tolist()
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed)).tolist()
    place = {tie: number for number, tie in enumerate(dict.fromkeys(ties[row] for row in order))}
    images: dict[int, set[int]] = defaultdict(set)
    for number, tie in zip(label, ties, strict=True):
        images[number].add(tie)
    chosen = {tie for each in images.values() if len(each) > 1
              for tie in sorted(each, key=place.__getitem__)[:max(1, len(each) // _PART)]}
    held = torch.tensor([tie in chosen for tie in ties], dtype=torch.bool)
    return replace(task, support=task.support.at(~held), val=task.support.at(held)) if held.any() else task


def _sum(heads: Sequence[Head], factors: Sequence[float]) -> Head:
    """The weighted sum of heads; the linear ones become one."""
    linear = [as_linear(head) is not None for head in heads]
    first = as_linear(Sum(tuple(itertools.compress(heads, linear)), tuple(itertools.compress(factors, linear))))
    rest = [(head, factor) for head, factor, known in zip(heads, factors, linear, strict=True) if not known]
    if not rest and first is not None:
        return first
    if first is not None and any(linear):
        rest.insert(0, (first, 1.0))
    return Sum(*zip(*rest, strict=True))


def _average(members: Sequence[Classifier], weights: Sequence[float], head: Head, name: str) -> Classifier:
    """A classifier that says what it is an average of."""
    values = values_of(zip([each.method for each in members], members, weights, strict=True))
    return members[0].with_head(head, method=name, hyperparameters=values, parameters={})


def values_of(members: Iterable[tuple[str, Classifier, float]]) -> dict[str, Any]:
    """The hyperparameters of a classifier of several, by their labels: weight, temperature and values of each."""
    return {f"{label} {name}": value for label, each, weight in members for name, value in
            {"weight": weight, "temperature": each.temperature, **each.hyperparameters}.items()}
