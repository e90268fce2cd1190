"""One process of this machine that carries out tasks, with one thread; when it dies, it is known what it was doing."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

from onceclip.pipeline.errors import WorkerError

_PATIENCE = 0.1, 1.0  # seconds until a process that cannot be started is tried again
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(eq=False)
class Attempt:
    """A task, the processes that it has ended, how the last of them ended, and when it was handed out."""

    task: Any
    deaths: int = 0
    end: str = ""
    begun: float = 0.0


class Process:
    """An executor of a single process, which is started by its first task.

    tasks: what it has, the one in hand first.
    """

    def __init__(self, context: BaseContext, gpu: str | None) -> None:
        """gpu: a name that CUDA_VISIBLE_DEVICES takes, of the only one that it is to see."""
        self._context = context
        self._environment = {**os.environ, **_ONE_THREAD, **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})}
        self._renew()

    def _renew(self) -> None:
        self.pool = self._new_pool()
        self.tasks: deque[tuple[Future[Any], Attempt]] = deque()
        self.process: Any = None
        self._first: Future[Any] = Future()
        self._first.set_result(None)

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, self._context, _begin, (self._environment,))

    def begin(self, function: Callable[[Any], Any], task: Any) -> None:
        """Have it carry out a task that nobody waits for."""
        self._first = self._submitted(function, task)

    def submit(self, function: Callable[[Any], Any], attempt: Attempt) -> None:
        """Add a task to those that it has."""
        attempt.begun = time.monotonic()
        self.tasks.append((self._submitted(function, attempt.task), attempt))

    def _submitted(self, function: Callable[[Any], Any], task: Any) -> Future[Any]:
        future: Future[Any]
        try:
            future = self._started(function, task)
        except BrokenProcessPool as error:  # found so when its first task is asked for
            future = Future()
            future.set_exception(error)
        self.process = next(iter((self.pool._processes or {}).values()), None) or self.process
        return future

    def _started(self, function: Callable[[Any], Any], task: Any) -> Future[Any]:
        """Hand a task to the pool, which has its process started if there is none."""
        for seconds in _PATIENCE:
            try:
                return self.pool.submit(function, task)
            except (EOFError, OSError):  # what it is to be a fork of has died: that shows after a moment
                self.pool.shutdown(wait=False, cancel_futures=True)
                self.pool = self._new_pool()
                time.sleep(seconds)
        try:
            return self.pool.submit(function, task)
        except (EOFError, OSError) as error:
            raise WorkerError(f"no worker can be started ({error}): see whether this machine has room for more "
                              "processes, or do without workers") from error

    def replace(self) -> list[Attempt]:
        """Have another process start in place of one that died; gives what it had, the task in hand first."""
        attempts = [attempt for _, attempt in self.tasks]
        attempts[0].deaths += 1
        attempts[0].end = _end_of(self.process)
        self.pool.shutdown(wait=False, cancel_futures=True)
        self._renew()
        return attempts

    def stop(self) -> None:
        """End it, in the middle of what it does."""
        if (self.tasks or not self._first.done()) and self.process is not None:
            self.process.terminate()
        self.pool.shutdown(cancel_futures=True)


def load(modules: Sequence[str]) -> None:
    """Import modules, which take a process longer to find and to read than many a task takes."""
    for name in modules:
        importlib.import_module(name)


def can_fork() -> bool:
    """Whether processes can be forks of one that has imported what they need: elsewhere libraries do not allow it."""
    return sys.platform == "linux"


def forks_of_one(modules: Sequence[str]) -> BaseContext:
    """Start a process that imports modules and computes nothing; gives a context whose processes are its forks.

    It ends with this process and those forks. There is one: a second call changes nothing but what it would import if
    it had to be started again.
    """
    from multiprocessing import forkserver, resource_tracker

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    resource_tracker.ensure_running()  # which else happens within, and lets signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C would end it with a traceback
    try:
        with for_processes():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def await_imports(context: BaseContext) -> None:
    """Wait until the process that those of a context are forks of has imported its modules.

    Whoever stops this process while it waits for a fork with tasks would see the fork complain that it is gone. This
    one has none.
    """
    with suppress(EOFError, OSError):  # it died: the next process starts it again
        context.Process(target=os.getpid).start()  # type: ignore[attr-defined]


@contextmanager
def for_processes() -> Iterator[None]:
    """Let libraries of processes that are started meanwhile have one thread; they read this as they load.

    Nor do such processes take files of the working directory for modules.
    """
    values = {**_ONE_THREAD, "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def _begin(environment: Mapping[str, str]) -> None:
    """environment: of the process that hands out the work; a fork has that of another time."""
    os.environ.clear()
    os.environ.update(environment)  # torch reads CUDA_VISIBLE_DEVICES when it first looks for devices
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that hands out the work
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """A process that waits for work would wait for ever if the one that hands it out was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _end_of(process: Any) -> str:
    if process is None:
        return "it could not be started"
    process.join(5)
    code = process.exitcode
    if code is not None and code < 0:
        return signal.Signals(-code).name + (", as where memory runs out" if code == -signal.SIGKILL else "")
    return f"exit code {code}"
