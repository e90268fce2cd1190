"""Workers: processes that carry out the tasks of a command."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from onceclip.pipeline.errors import WorkerError
from onceclip.pipeline.words import counted

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers(Protocol):
    """Processes that carry out tasks, here or on other machines."""

    @property
    def per_machine(self) -> int:
        """Workers that share the cores of one machine."""

    def begin(self, function: Callable[[Task], Any], task: Task) -> None:
        """Have every worker carry out a task before those that follow, such as imports and opening an encoder.

        Nobody waits for it; its result and its errors are dropped.
        """

    def work(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result, None, None]:
        """Carry out tasks and yield their results in any order. The number of tasks under way is bounded.

        function, tasks: must be picklable; `str` of a task names it in error messages.
        A task whose worker dies is carried out again by another one. A task that kills several workers is set aside.
        Raises what a task raises; WorkerError for tasks that were set aside, once all others are done.
        """


def load(modules: Sequence[str]) -> None:
    """Import modules by name, so that the tasks that need them find them loaded."""
    for name in modules:
        importlib.import_module(name)


def refuse(aside: Sequence[tuple[str, str]]) -> None:
    """Raise WorkerError if tasks were set aside. aside: the name of each, and why."""
    if aside:
        named = "; ".join(f"{task}: {reason}" for task, reason in aside[:8]) + (" ..." if len(aside) > 8 else "")
        raise WorkerError(f"{counted(len(aside), 'task was', 'tasks were')} set aside, all others are done: {named}: "
                          "see whether there is enough memory and whether what they read is sound, then run the same "
                          "command again")


Each = TypeVar("Each")


@dataclass(frozen=True)
class Part:
    """The share of one process: part `number`, from 1, of `of`."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part that is called `number/of`.

        Raises ValueError for anything else.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"{text!r} is not one of N parts, such as 2/8 (from 1/8 to 8/8)")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def share(self, everything: Sequence[Each]) -> Sequence[Each]:
        """Which of some things are this part's: every `of`-th."""
        return everything[self.number - 1::self.of]
