"""Processes on this machine that carry out tasks: one thread each, a GPU each where there are some."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

from onceclip.pipeline.errors import WorkerError
from onceclip.pipeline.pace import Pace
from onceclip.pipeline.process import Attempt, Process, await_imports, can_fork, for_processes, forks_of_one, load
from onceclip.pipeline.words import counted

Task = TypeVar("Task")
Result = TypeVar("Result")
ATTEMPTS = 3  # processes that a task may end before it is set aside
_AHEAD = 2  # short tasks that a process has, so that it never waits for the next


class Workers(Protocol):
    """What carries out tasks somewhere."""

    @property
    def per_machine(self) -> int:
        """Workers that share the cores of one machine."""

    def begin(self, function: Callable[[Task], Any], task: Task) -> None:
        """Have every worker carry out a task before those that follow.

        Nobody waits for it, and what it gives or raises is not told: it is for what a worker would do first anyway.
        """

    def work(self, function: Callable[[Task], Result], tasks: Iterable[Task],
             twice: bool = False) -> Generator[Result, None, None]:
        """Carry out tasks and give the results as they come. The number of tasks under way is bounded.

        function, tasks: such as can be sent to another process; a task's `str` names it for people.
        twice: whether a task may be carried out by two workers at the same time, as one that writes nothing may. When
            none is left to hand out, one that takes far longer than the others is given to a worker without work, too;
            the first result counts.
        A task whose worker dies is carried out again by another. One that ends every worker it meets is set aside.
        Raises what a task raises; WorkerError, when all others are done, for those that were set aside.
        """


class Here:
    """This process."""

    per_machine = 1

    def begin(self, function: Callable[[Task], Any], task: Task) -> None:
        """As of `Workers`; nothing is ahead of its time here."""

    def work(self, function: Callable[[Task], Result], tasks: Iterable[Task],
             twice: bool = False) -> Generator[Result, None, None]:
        """As of `Workers`."""
        yield from map(function, tasks)


class Processes:
    """Processes of this machine, from the first task until the end of the `with` block."""

    def __init__(self, number: int, gpus: Sequence[str] = (), modules: Sequence[str] = ()) -> None:
        """gpus: names that CUDA_VISIBLE_DEVICES takes; each process sees one of them.

        modules: what they need, imported from the beginning of the `with` block on. Where there are some, and no GPUs,
        one process imports them and the others are its forks, on Linux; it is the fork server of
        `multiprocessing`, which stays as long as this process: for a command, not for a library.
        """
        self.per_machine, self._gpus, self._modules = number, gpus, modules

    def __enter__(self) -> Processes:
        forked = bool(self._modules) and not self._gpus and can_fork()
        context = forks_of_one(self._modules) if forked else multiprocessing.get_context("spawn")
        self._importing = context if forked else None
        self._processes = [Process(context, self._gpus[each % len(self._gpus)] if self._gpus else None)
                           for each in range(self.per_machine)]
        if self._modules and not forked:
            self.begin(load, self._modules)
        return self

    def __exit__(self, *_: object) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Process.stop, self._processes))

    def begin(self, function: Callable[[Task], Any], task: Task) -> None:
        """As of `Workers`."""
        with for_processes():
            self._await_imports()
            for process in self._processes:
                process.begin(function, task)

    def work(self, function: Callable[[Task], Result], tasks: Iterable[Task],
             twice: bool = False) -> Generator[Result, None, None]:
        """As of `Workers`. On one machine no process stays slower than the others: none has a task twice."""
        upcoming = map(Attempt, tasks)
        again: deque[Attempt] = deque()
        aside: list[Attempt] = []
        pace = Pace()
        with for_processes():
            self._await_imports()
            while True:
                self._hand_out(function, again, upcoming, _AHEAD if pace.short else 1)
                in_hand = {process.tasks[0][0]: process for process in self._processes if process.tasks}
                if not in_hand:
                    break
                for future in wait(in_hand, return_when=FIRST_COMPLETED).done:
                    process = in_hand[future]
                    try:
                        result = future.result()
                    except BrokenProcessPool:
                        attempts = process.replace()
                        if attempts[0].deaths >= ATTEMPTS:
                            aside.append(attempts.pop(0))
                        again.extend(attempts)
                        continue
                    _, attempt = process.tasks.popleft()
                    pace.add(time.monotonic() - attempt.begun)
                    yield result
        refuse([(str(each.task), f"it ended {each.deaths} processes ({each.end})") for each in aside])

    def _await_imports(self) -> None:
        if self._importing is not None:
            await_imports(self._importing)
            self._importing = None

    def _hand_out(self, function: Callable[[Any], Any], again: deque[Attempt], upcoming: Iterator[Attempt],
                  most: int) -> None:
        """Give every process its next task, and what it is to have ahead: `most` in all."""
        for ahead in range(most):
            for process in self._processes:
                if len(process.tasks) == ahead and (each := _next(again, upcoming)):
                    process.submit(function, each)


def refuse(aside: Sequence[tuple[str, str]]) -> None:
    """Raise WorkerError if tasks were set aside. aside: the name of each, and why."""
    if aside:
        named = "; ".join(f"{task}: {reason}" for task, reason in aside[:8]) + (" ..." if len(aside) > 8 else "")
        raise WorkerError(f"{counted(len(aside), 'task was', 'tasks were')} set aside, all others are done: {named}: "
                          "see whether there is enough memory and whether what they read is sound, then run the same "
                          "command again")


def _next(again: deque[Attempt], upcoming: Iterator[Attempt]) -> Attempt | None:
    return again.popleft() if again else next(upcoming, None)
