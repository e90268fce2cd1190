"""Workers: processes that carry out the tasks of a command."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Iterable, Sequence
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
