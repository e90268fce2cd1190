"""When the steps of a training are compiled: a rule of the training and of how many like it there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from onceclip.adapters.errors import MethodError
from onceclip.adapters.stack import stackable
from onceclip.adapters.training import Run

AUTO, ON, OFF = CHOICES = ("auto", "on", "off")
_WHOLE = 10.0  # seconds of plain steps in all that pay for compiling, which takes as long, once for all later processes
_EACH = 0.002  # of one run, below which trying its code takes a group as long as is gained
_STEP = 1e-4  # of a step without numbers, which some runs share
_RATE = 1.6e10  # parameters times rows in a second, forward and backward, in float32


@dataclass(frozen=True)
class Compiling:
    """choice: "auto" where it pays on a CPU, "on" or "off". alike: number of trainings that the work consists of.

    Raises MethodError for another choice.
    """

    choice: str = AUTO
    alike: int = 1

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise MethodError(f"compile={self.choice}: there are {', '.join(CHOICES)}")


USUAL = Compiling()
_CURRENT: ContextVar[Compiling] = ContextVar("compiling", default=USUAL)


@contextmanager
def compiling(choice: Compiling) -> Iterator[None]:
    """Train by this choice inside."""
    token = _CURRENT.set(choice)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def several(number: int) -> Iterator[None]:
    """What is around consists of so many trainings like those inside."""
    around = _CURRENT.get()
    with compiling(replace(around, alike=around.alike * number)):
        yield


def compiles(run: Run, parameters: int) -> bool:
    """Whether a run's steps are compiled, whatever is trained beside it. parameters: their elements."""
    current = _CURRENT.get()
    if not stackable(run.method) or current.choice == OFF:
        return False
    if current.choice == ON:
        return True
    if run.task.device.type != "cpu":
        return False
    steps = run.method.epochs * run.steps_per_epoch()
    rows = run.method.epochs * len(run.task.support)
    seconds = steps * _STEP + rows * parameters / _RATE
    return seconds >= _EACH and seconds * current.alike >= _WHOLE


def required() -> bool:
    """Whether a step that cannot be compiled is an error."""
    return _CURRENT.get().choice == ON
