"""Computations that have runs trained now and then, carried on side by side: what they want is trained together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from onceclip.adapters.compiling import several
from onceclip.adapters.engine import train
from onceclip.adapters.errors import MethodError
from onceclip.adapters.stack import Parameters
from onceclip.adapters.training import Progress, Run, part_of

Result = TypeVar("Result")


@dataclass(frozen=True)
class Wanted:
    """Runs that a computation wants trained.

    narrow: as of `train`. start, share: of the computation, for its progress. alike: number of trainings like these
    that it consists of, 0 for these alone.
    """

    runs: Sequence[Run]
    narrow: bool = False
    start: float = 0.0
    share: float = 1.0
    alike: int = 0


Computation = Generator[Wanted, list[Parameters], Result]


def carry_on(computations: Sequence[Computation[Result]], progress: Progress) -> list[Result | MethodError]:
    """What each computation gives, or the failure that ended it.

    computations: each yields what it wants trained and is sent the parameters.
    """
    results: dict[int, Result | MethodError] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(computations)))
    while answers:
        alike: dict[Any, dict[int, Wanted]] = defaultdict(dict)
        for place, answer in answers.items():
            try:
                wanted = (computations[place].throw(answer) if isinstance(answer, MethodError) else
                          computations[place].send(answer))
                alike[wanted.narrow, len(wanted.runs), wanted.alike or len(wanted.runs)][place] = wanted
            except StopIteration as end:
                results[place] = end.value
            except MethodError as error:
                results[place] = error
        answers = {}
        for (narrow, number, of_all), some in alike.items():
            answers |= _answers(some, narrow, number, of_all, progress)
    return [results[place] for place in range(len(computations))]


def _answers(some: dict[int, Wanted], narrow: bool, number: int, of_all: int, progress: Progress) -> dict[int, Any]:
    """Train the runs, so many of each, and give each its own; or each the failure. of_all: those alike in each."""
    first = next(iter(some.values()))
    try:
        with several(of_all):
            trained = iter(train([run for wanted in some.values() for run in wanted.runs],
                                 part_of(progress, first.start, first.share), narrow))
    except MethodError as error:
        return dict.fromkeys(some, error)
    return {place: list(islice(trained, number)) for place in some}
