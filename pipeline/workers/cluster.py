"""Workers that a dask scheduler hands tasks to: processes of this machine, or those of a cluster."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from multiprocessing import resource_tracker
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import dask
from distributed import Client, Future, KilledWorker, Nanny, Scheduler, SpecCluster, get_worker
from distributed.comm import CommClosedError
from distributed.protocol import pickle
from distributed.security import Security
from tqdm import tqdm

from onceclip.errors import OnceclipError
from onceclip.pipeline.errors import WorkerError
from onceclip.pipeline.words import counted
from onceclip.pipeline.words import version as own_version
from onceclip.pipeline.workers import repeatable

Task = TypeVar("Task")
Result = TypeVar("Result")
CONFIGURED = "dask"  # in place of an address: the one that dask itself is configured with
TIMEOUT = 10.0
_LOOPBACK = "127.0.0.1"
_AHEAD = 2  # tasks under way per worker
_RECOUNT = 5.0  # seconds after which the workers are counted again
_PATIENCE = 120.0  # seconds without any local worker until the command ends
_ENVIRONMENT = {**dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
                "PYTHONSAFEPATH": "1"}  # so that no file of the working directory is imported
_QUIET = "ignore::UserWarning:multiprocessing.resource_tracker"  # it tells of semaphores of workers that were killed
_LOCAL: dict[str, Any] = {
    "distributed.nanny.pre-spawn-environ": {},  # dask's default makes malloc return memory at once, which is slow
    "distributed.deploy.lost-worker-timeout": "365 days",  # else dask drops a worker that is slow to start again
    "distributed.scheduler.worker-ttl": None,  # and one that is too busy to answer
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.worker.multiprocessing-method": "spawn",
}
_ONE_AT_A_TIME = threading.Lock()


class Workers:
    """Processes that carry out tasks, here or on other machines; make it with `connected` or `local`."""

    def __init__(self, client: Client, local: bool = False) -> None:
        self.client, self.address, self.local = client, client.scheduler.address, local
        self._names, self._counted, self._workers = count(), 0.0, 1
        self._session = os.urandom(6).hex()
        self._first: list[Future] = []

    @property
    def per_machine(self) -> int:
        """Workers that share the cores of one machine, where they are the most."""
        hosts = Counter(address.rpartition(":")[0] for address in self.client.nthreads())
        return max(hosts.values(), default=1)

    def begin(self, function: Callable[[Task], Any], task: Task) -> None:
        """Have every worker carry out a task before those that follow, such as imports and opening an encoder.

        Nobody waits for it; its result and its errors are dropped. Workers that join later are left out.
        """
        self._first = [self._submit(function, task, [address]) for address in self.client.nthreads()]

    def work(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result, None, None]:
        """Carry out tasks and yield their results in any order. The number of tasks under way is bounded.

        function, tasks: must be picklable; `str` of a task names it in error messages.
        A task whose worker dies is carried out again by another one. A task that kills several workers is set aside.
        Raises what a task raises; WorkerError for tasks that were set aside, once all others are done, and if the
        scheduler or all local workers are lost for good.
        """
        suspects: list[tuple[Task, str]] = []
        yield from self._round(function, tasks, lambda: _AHEAD * self._number(), suspects)
        # A task that merely waited at a worker that died is a suspect too: each gets another chance, alone.
        aside: list[tuple[Task, str]] = []
        yield from self._round(function, [task for task, _ in suspects], lambda: 1, aside)
        refuse([(str(task), f"it ended every worker that took it, the last one {last}") for task, last in aside])

    def _round(self, function: Callable[[Task], Result], tasks: Iterable[Task], most: Callable[[], int],
               killed: list[tuple[Task, str]]) -> Generator[Result, None, None]:
        """Carry out tasks, at most `most()` of them at a time.

        killed: gets each task whose workers died too often, with the address of the last one.
        """
        upcoming = iter(tasks)
        running: dict[Future, Task] = {}
        ended: SimpleQueue[Future] = SimpleQueue()
        try:
            while True:
                while len(running) < most() and (task := next(upcoming, None)) is not None:
                    future = self._submit(function, task)
                    running[future] = task
                    future.add_done_callback(ended.put)
                if not running:
                    break
                future = self._wait(ended)
                task = running.pop(future)
                try:
                    result = self._result(future)
                except KilledWorker as error:
                    killed.append((task, error.last_worker.address))
                    continue
                yield result
        finally:
            if running and self.client.status == "running":
                with suppress(OSError):
                    self.client.cancel(list(running), force=True)

    def _wait(self, ended: SimpleQueue[Future]) -> Future:
        """The next future that has ended."""
        begun = time.monotonic()
        while True:
            try:
                return ended.get(timeout=_RECOUNT)
            except Empty:
                if not self.local or self._count():
                    begun = time.monotonic()
                elif time.monotonic() - begun > _PATIENCE:
                    raise WorkerError("no worker can be started any more: see whether this machine has room for more "
                                      "processes, then run the same command again") from None

    def _submit(self, function: Callable[[Task], Result], task: Task, workers: Sequence[str] = ()) -> Future:
        """workers: addresses of those that may have it, all by default.

        Function and task travel as bytes, since the scheduler and the worker's event loop would import all they name.
        """
        name = f"{function.__name__.strip('_')}-{self._session}-{next(self._names)}"
        return self.client.submit(_run_task, pickle.dumps((function, task)), own_version(), key=name, pure=False,
                                  workers=list(workers) or None)

    def _result(self, future: Future) -> Any:
        try:
            return future.result()
        except (CancelledError, CommClosedError) as error:
            raise self._lost(error) from error
        except ImportError as error:
            raise WorkerError(f"a worker of {self.address} cannot import what it is to do ({error}): install the same "
                              "onceclip, and modules of your own, where the workers run") from error
        except OnceclipError as error:
            if self.local or isinstance(error, WorkerError):
                raise
            raise WorkerError(f"a worker of {self.address} says: {error}") from error

    def _number(self) -> int:
        if time.monotonic() - self._counted > _RECOUNT:
            self._workers = max(1, self._count())
            self._counted = time.monotonic()
        return self._workers

    def _count(self) -> int:
        try:
            return len(self.client.nthreads())
        except (OSError, CancelledError) as error:
            raise self._lost(error) from error

    def _lost(self, error: BaseException) -> WorkerError:
        return WorkerError(f"the scheduler {self.address} was lost ({_short(error) or 'no answer'}): what was done is "
                           "kept; start a scheduler, then run the same command again to go on")


@contextmanager
def connected(choice: str, modules: Sequence[str] = ()) -> Iterator[Workers]:
    """The workers of a scheduler.

    choice: its address, the file that it wrote, or "dask" for dask's configuration. modules: what the workers import
        at once.
    Raises WorkerError if the scheduler does not answer.
    """
    place: dict[str, Any] = {"address": choice}
    if choice == CONFIGURED:
        place = {"address": dask.config.get("scheduler-address", None)}
        if place["address"] is None:
            raise WorkerError(f"--scheduler {CONFIGURED}: dask is configured with no scheduler: set "
                              "DASK_SCHEDULER_ADDRESS, or give the scheduler's address or file")
    elif os.path.isfile(choice):
        place = {"scheduler_file": choice}
    elif "://" not in choice and ":" not in choice:
        raise WorkerError(f"--scheduler {choice}: neither an address such as tcp://10.0.0.1:8786 nor a file that a "
                          "scheduler wrote")
    _silence()
    try:
        client = Client(**place, timeout=TIMEOUT, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise WorkerError(f"no scheduler answers at {place.get('address', choice)} ({_short(error)}): start one with "
                          "`dask scheduler`, or correct the address") from error
    try:
        cluster = Workers(client)
        workers = len(client.nthreads())
        tqdm.write(f"{workers} workers at {cluster.address}; dashboard: {client.dashboard_link}"
                   + ("" if workers else "; waiting for workers"), file=sys.stderr)
        if modules:
            cluster.begin(load, modules)
        yield cluster
    finally:
        client.close(timeout=TIMEOUT)


@contextmanager
def local(number: int, gpus: Sequence[str] = (), modules: Sequence[str] = ()) -> Iterator[Workers]:
    """Processes of this machine with one thread each, until the end of the `with` block.

    gpus: names for CUDA_VISIBLE_DEVICES; each process sees one of them, in turn. modules: what they import at once.
    Raises WorkerError if they cannot be started, as by a script that each of them would run again.
    """
    if not repeatable():
        raise WorkerError("each of several processes would run this script again: in its file, put what it does "
                          'behind if __name__ == "__main__":')
    _silence()
    # Whoever could connect could run code as this user, and other users of the machine can reach the loopback.
    safe = {"protocol": "tls", "security": Security.temporary()}
    options = {**safe, "nthreads": 1, "host": _LOOPBACK, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    nannies = {place: {"cls": Nanny, "options": {**options, "env": {"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]}
                                                 if gpus else {}}} for place in range(number)}
    scheduler = {"cls": Scheduler, "options": {**safe, "host": _LOOPBACK, "port": 0, "dashboard": False,
                                               "dashboard_address": f"{_LOOPBACK}:0", "allowed_failures": 1}}
    with dask.config.set(_LOCAL), _environment(), ExitStack() as opened:
        try:
            with _without_ctrl_c():
                processes = SpecCluster(nannies, scheduler, security=safe["security"])
                opened.callback(processes.close)
                opened.callback(_kill, processes)
        except (OSError, RuntimeError) as error:
            raise WorkerError(f"{counted(number, 'worker')} cannot be started ({_short(error)}): see whether this "
                              "machine has room for more processes, or do without workers") from error
        cluster = Workers(opened.enter_context(Client(processes, set_as_default=False)), local=True)
        if modules:
            cluster.begin(load, modules)
        yield cluster


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


def _kill(processes: SpecCluster) -> None:
    """End the workers at once; dask would wait seconds for their tasks to end."""
    for nanny in list(processes.workers.values()):
        nanny.close_gracefully()  # else it starts another one
        if pid := nanny.pid:
            with suppress(ProcessLookupError):
                os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))


def _silence() -> None:
    """Silence dask's log: errors that matter are raised."""
    for name in ("distributed", "distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _environment() -> Iterator[None]:
    """Set the variables that workers inherit; libraries read them when they are loaded."""
    warnings = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), _QUIET)))
    values = {**_ENVIRONMENT, "PYTHONWARNINGS": warnings}
    before = {name: os.environ.get(name) for name in (*values, "PYTHONHASHSEED")}  # dask sets the last one
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Hide Ctrl-C from threads that are started meanwhile, and from the processes that those start."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # started later, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _run_task(work: bytes, version: str) -> Any:
    """Carry out a task on a worker. Its threads take turns, since one task needs the GPU and all the cores."""
    if version != own_version():
        raise WorkerError(f"the worker {get_worker().address} has onceclip {own_version()}, this command is {version}: "
                          "install the same version on both")
    import torch  # only here: the scheduler imports this module

    with _ONE_AT_A_TIME:
        torch.set_num_threads(get_worker().state.nthreads)
        function, task = pickle.loads(work)
        return function(task)
