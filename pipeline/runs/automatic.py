"""The run of a user who names no method: see `fit_automatically`."""

from __future__ import annotations

from dataclasses import dataclass

from onceclip.adapters import Method, Task, method_class
from onceclip.adapters.selection.automatic import AUTOMATIC, Reached, fit_automatically
from onceclip.adapters.selection.selection import Selection
from onceclip.adapters.training.loop import Progress


class Automatic(Method):
    """Stands where a method is asked what it needs; `average_of` fits it."""

    name = AUTOMATIC
    summary = "The weighted average of several methods, each with hyperparameters chosen for the task."
    needs_text = False


@dataclass(frozen=True)
class Average(Selection):
    """A fitted average. reached: what each method reached on the rows that weighed it, the average last."""

    reached: tuple[Reached, ...] = ()


def run_method(name: str | type[Method]) -> type[Method]:
    """The method of a run by its name, as `method_class`; "automatic" is one too."""
    return Automatic if name == AUTOMATIC else method_class(name)


def average_of(task: Task, seed: int, progress: Progress) -> Average:
    """Fit the average for a task."""
    classifier, reached = fit_automatically(task, seed, progress)
    return Average(classifier, reached[-1].accuracy, len(reached) - 1, reached=tuple(reached))
