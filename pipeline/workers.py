"""Processes on this machine that carry out tasks: one thread each, a GPU each where there are some."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from onceclip.pipeline.errors import WorkerError
from onceclip.pipeline.pace import Pace

Task = TypeVar("Task")
Result = TypeVar("Result")
ATTEMPTS = 3  # processes that a task may end before it is set aside
_AHEAD = 2  # short tasks that a process has, so that it never waits for the next
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


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


def load(modules: Sequence[str]) -> None:
    """Import modules, which take a process longer to find and to read than many a task takes."""
    for name in modules:
        importlib.import_module(name)


@dataclass(eq=False)
class _Attempt:
    """A task, the processes that it has ended, how the last of them ended, and when it was handed out."""

    task: Any
    deaths: int = 0
    end: str = ""
    begun: float = 0.0


class _Process:
    """An executor of a single process: when that dies, it is known what it was doing."""

    def __init__(self, gpu: str | None) -> None:
        self.gpu = gpu
        self.start()

    def start(self) -> None:
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_begin,
                                        initargs=(self.gpu,))
        self.tasks: deque[tuple[Future[Any], _Attempt]] = deque()
        self.process: Any = None
        self.first: Future[Any] = Future()
        self.first.set_result(None)

    def begin(self, function: Callable[[Any], Any], task: Any) -> None:
        self.first = self._submitted(function, task)

    def submit(self, function: Callable[[Any], Any], attempt: _Attempt) -> None:
        attempt.begun = time.monotonic()
        self.tasks.append((self._submitted(function, attempt.task), attempt))

    def _submitted(self, function: Callable[[Any], Any], task: Any) -> Future[Any]:
        future: Future[Any]
        try:
            future = self.pool.submit(function, task)
        except BrokenProcessPool as error:  # found so when its first task is asked for
            future = Future()
            future.set_exception(error)
        self.process = next(iter((self.pool._processes or {}).values()), None) or self.process
        return future

    def replace(self) -> list[_Attempt]:
        """Start another process in place of one that died; gives what it had, the task in hand first."""
        attempts = [attempt for _, attempt in self.tasks]
        attempts[0].deaths += 1
        attempts[0].end = _end_of(self.process)
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.start()
        return attempts

    def stop(self) -> None:
        if (self.tasks or not self.first.done()) and self.process is not None:
            self.process.terminate()
        self.pool.shutdown(cancel_futures=True)


class Processes:
    """Processes of this machine, from the first task until the end of the `with` block."""

    def __init__(self, number: int, gpus: Sequence[str] = ()) -> None:
        """gpus: names that CUDA_VISIBLE_DEVICES takes; each process sees one of them."""
        self.per_machine = number
        self._processes = [_Process(gpus[each % len(gpus)] if gpus else None) for each in range(number)]

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(_Process.stop, self._processes))

    def begin(self, function: Callable[[Task], Any], task: Task) -> None:
        """As of `Workers`."""
        with _single_threads():
            for process in self._processes:
                process.begin(function, task)

    def work(self, function: Callable[[Task], Result], tasks: Iterable[Task],
             twice: bool = False) -> Generator[Result, None, None]:
        """As of `Workers`. On one machine no process stays slower than the others: none has a task twice."""
        upcoming = map(_Attempt, tasks)
        again: deque[_Attempt] = deque()
        aside: list[_Attempt] = []
        pace = Pace()
        with _single_threads():
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

    def _hand_out(self, function: Callable[[Any], Any], again: deque[_Attempt], upcoming: Iterator[_Attempt],
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
        raise WorkerError(f"{len(aside)} tasks were set aside, all others are done: {named}: see whether there is "
                          "enough memory and whether what they read is sound, then run the same command again")


def _next(again: deque[_Attempt], upcoming: Iterator[_Attempt]) -> _Attempt | None:
    return again.popleft() if again else next(upcoming, None)


def _end_of(process: Any) -> str:
    if process is None:
        return "it could not be started"
    process.join(5)
    code = process.exitcode
    if code is not None and code < 0:
        return signal.Signals(-code).name + (", as where memory runs out" if code == -signal.SIGKILL else "")
    return f"exit code {code}"


@contextmanager
def _single_threads() -> Iterator[None]:
    """Let libraries of processes that are started meanwhile have one thread; they read this as they load."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def _begin(gpu: str | None) -> None:
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # torch reads it when it first looks for devices
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that hands out the work
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """A process that waits for work would wait for ever if the one that hands it out was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
