"""Runs of several methods: the average where a user names none, ensembles A+B, merges merge:A+B; see `average_of`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

from onceclip.adapters import METHODS, Method, MethodError, Task, method_class
from onceclip.adapters.merging import best_merge, merge
from onceclip.adapters.selection.automatic import AUTOMATIC, Reached, fit_automatically
from onceclip.adapters.selection.selection import Selection, default_policy, fit_selected
from onceclip.adapters.task import EMBEDDING
from onceclip.adapters.training.loop import Progress, part_of

_MERGE, _AND = "merge:", "+"
_NAMES = re.compile("|".join([*(re.escape(name) for name in METHODS if _AND in name), "[^+]+"]))  # lp++ is one


class Automatic(Method):
    """Stands where a method is asked what it needs; `average_of` fits it. members: the methods, or none to choose some.

    merged: whether two methods become one by the weights or logits in between them.
    """

    name = AUTOMATIC
    summary = "The weighted average of several methods, each with hyperparameters chosen for the task."
    needs_text = False
    members: ClassVar[tuple[type[Method], ...]] = ()
    merged: ClassVar[bool] = False


@dataclass(frozen=True)
class Average(Selection):
    """A fitted average. reached: what each method reached on the rows that weighed it, the average last."""

    reached: tuple[Reached, ...] = ()


def member_names(name: str) -> list[str]:
    """The names of the methods that A+B and merge:A+B mean; none for any other name."""
    plain = name.removeprefix(_MERGE)
    found = _NAMES.findall(plain)
    if _AND.join(found) != plain:
        return plain.split(_AND)  # one of them is empty, and no method
    return found if len(found) > 1 else []


def is_average(name: str) -> bool:
    """Whether a run is one of several methods."""
    return name == AUTOMATIC or bool(member_names(name))


def run_method(name: str | type[Method]) -> type[Method]:
    """The method of a run by its name, as `method_class`; "automatic", A+B and merge:A+B are some too.

    Raises MethodError for members that cannot be averaged.
    """
    if isinstance(name, str) and member_names(name):
        return _average_class(name)
    if isinstance(name, str) and name.startswith(_MERGE) and name.removeprefix(_MERGE) in METHODS:
        raise MethodError(f"{name}: a merge is of two methods, such as {_MERGE}gda+zero-shot")
    return Automatic if name == AUTOMATIC else method_class(name)


@lru_cache(maxsize=256)
def _average_class(name: str) -> type[Method]:
    members = tuple(map(method_class, member_names(name)))
    if len(set(members)) < len(members):
        raise MethodError(f"{name} has a method twice: name each once")
    if name.startswith(_MERGE) and len(members) != 2:
        raise MethodError(f"{name}: a merge is of two methods")
    for member in members:
        if member.inputs != (EMBEDDING,) or member.wants_unlabelled:
            raise MethodError(f"{name}: {member.name} needs {member.needs}, and only methods of embeddings and labels "
                              "are averaged")
    return type("Average", (Automatic,), {
        "__doc__": Automatic.__doc__, "__module__": __name__, "name": name, "members": members,
        "merged": name.startswith(_MERGE), "needs_text": any(member.needs_text for member in members),
        "wants_tower": any(member.wants_tower for member in members)})


def average_of(method: Method, task: Task, seed: int, progress: Progress) -> Average:
    """Fit an average for a task: of methods weighed by labelled rows, or of two whose weight these choose.

    An ensemble is `fit_automatically` of its members. A merge is the average of the classifiers that its members are
    alone, in the weights of heads of one form and else in the logits, with the weight that validation rows choose, or
    one half (WiSE-FT, CVPR 2022, equation 1).
    """
    assert isinstance(method, Automatic)
    if method.merged:
        return _merge(method.members, task, seed, progress)
    classifier, reached = fit_automatically(task, seed, progress, method.members)
    return Average(classifier, reached[-1].accuracy, len(reached) - 1, reached=tuple(reached))


def _merge(members: Sequence[type[Method]], task: Task, seed: int, progress: Progress) -> Average:
    found = [fit_selected(member(), task, default_policy(member(), task), seed=seed,
                          progress=part_of(progress, place / 2, 1 / 2)).classifier
             for place, member in enumerate(members)]
    if task.val is None or not len(task.val):
        merged = merge(found[0], found[1])
        return Average(replace(merged, method=AUTOMATIC))
    merged, weighed = best_merge(found[0], found[1], task.val)
    return Average(replace(merged, method=AUTOMATIC), weighed.accuracy, 1, (weighed.low, weighed.high), weighed.cost)
