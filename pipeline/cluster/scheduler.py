"""Workers that a dask scheduler hands tasks to, on whatever machines they are."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from onceclip import __version__
from onceclip.pipeline.errors import WorkerError
from onceclip.pipeline.pace import LOOK, Pace
from onceclip.pipeline.workers import refuse

if TYPE_CHECKING:
    from distributed import Client, Future

Task = TypeVar("Task")
Result = TypeVar("Result")
CONFIGURED = "dask"  # in place of an address: the one that dask itself is configured with
TIMEOUT = 10.0
_AHEAD = 2  # tasks under way per worker
_RECOUNT = 5.0  # seconds after which the workers are counted again
_ONE_AT_A_TIME = threading.Lock()


@dataclass
class _Sent:
    """A task, and its copies on their way. begun: when it was handed out."""

    task: Any
    futures: list[Future]
    begun: float = field(default_factory=time.monotonic)


class Cluster:
    """The workers of one scheduler; make it with `connected`."""

    def __init__(self, client: Client, address: str) -> None:
        self.client, self.address = client, address
        self._names, self._counted, self._workers = count(), 0.0, 1
        self._session = os.urandom(6).hex()
        self._first: list[Future] = []

    @property
    def per_machine(self) -> int:
        """Workers that share the cores of one machine, where they are the most."""
        hosts = Counter(address.rpartition(":")[0] for address in self.client.nthreads())
        return max(hosts.values(), default=1)

    def begin(self, function: Callable[[Task], Any], task: Task) -> None:
        """As of `workers.Workers`; workers that come later are left out."""
        self._first = [self._submit(function, task, [address]) for address in self.client.nthreads()]

    def work(self, function: Callable[[Task], Result], tasks: Iterable[Task],
             twice: bool = False) -> Generator[Result, None, None]:
        """As of `workers.Workers`. Raises WorkerError too if the scheduler is lost."""
        from distributed import KilledWorker

        upcoming, pace = iter(tasks), Pace()
        running: dict[Future, _Sent] = {}
        ended: SimpleQueue[Future] = SimpleQueue()
        suspects: list[Task] = []

        def send(sent: _Sent, workers: Sequence[str] = ()) -> None:
            future = self._submit(function, sent.task, workers, preferably=True)
            sent.futures.append(future)
            running[future] = sent
            future.add_done_callback(ended.put)

        try:
            while True:
                while len(running) < _AHEAD * self._number() and (task := next(upcoming, None)) is not None:
                    send(_Sent(task, []))
                if not running:
                    break
                try:
                    future = ended.get(timeout=LOOK)
                except Empty:
                    if twice and (late := [each for each in running.values() if len(each.futures) == 1
                                           and pace.late(time.monotonic() - each.begun)]):
                        for sent, address in zip(late, self._idle(), strict=False):
                            send(sent, [address])
                    continue
                if future not in running:
                    continue  # a copy that was given up
                sent = running.pop(future)
                sent.futures.remove(future)
                try:
                    result = self._result(future)
                except KilledWorker:
                    if not sent.futures:
                        suspects.append(sent.task)
                    continue
                for copy in sent.futures:
                    del running[copy]
                self._cancel(sent.futures)
                pace.add(time.monotonic() - sent.begun)
                yield result
            yield from self._alone(function, suspects)
        finally:
            self._cancel(list(running))

    def _alone(self, function: Callable[[Task], Result], suspects: Iterable[Task]) -> Generator[Result, None, None]:
        """Carry out one by one what was on workers that died: each had waiting tasks beside the guilty one."""
        from distributed import KilledWorker

        aside: list[tuple[str, str]] = []
        for task in suspects:
            future = self._submit(function, task)
            try:
                yield self._result(future)
            except KilledWorker as error:
                last = error.last_worker.address
                aside.append((str(task), f"it ended every worker that took it, the last one {last}"))
            finally:
                if not future.done():
                    self._cancel([future])
        refuse(aside)

    def _idle(self) -> list[str]:
        """Workers that have nothing to do, of this command or another."""
        with suppress(OSError):  # a scheduler that was lost is found so by what is under way
            return [address for address, keys in self.client.processing().items() if not keys]
        return []

    def _cancel(self, futures: list[Future]) -> None:
        if futures and self.client.status == "running":
            with suppress(OSError):
                self.client.cancel(futures, force=True)

    def _submit(self, function: Callable[[Task], Result], task: Task, workers: Sequence[str] = (),
                preferably: bool = False) -> Future:
        """workers: addresses of those that may have it, or, with preferably, rather than others; all by default.

        What is to be done goes as bytes: the scheduler, and the loop of a worker, would import all that it names.
        """
        from distributed.protocol import pickle

        name = f"{function.__name__.strip('_')}-{self._session}-{next(self._names)}"
        return self.client.submit(_carried_out, pickle.dumps((function, task)), __version__, key=name, pure=False,
                                  workers=list(workers) or None, allow_other_workers=preferably and bool(workers))

    def _result(self, future: Future) -> Any:
        from distributed.comm import CommClosedError

        try:
            return future.result()
        except (CancelledError, CommClosedError) as error:
            raise self._lost(error) from error
        except ImportError as error:
            raise WorkerError(f"a worker of {self.address} cannot import what it is to do ({error}): install the same "
                              "onceclip, and modules of your own, where the workers run") from error

    def _number(self) -> int:
        if time.monotonic() - self._counted > _RECOUNT:
            try:
                self._workers = max(1, len(self.client.nthreads()))
            except (OSError, CancelledError) as error:
                raise self._lost(error) from error
            self._counted = time.monotonic()
        return self._workers

    def _lost(self, error: BaseException) -> WorkerError:
        return WorkerError(f"the scheduler {self.address} was lost ({' '.join(str(error).split())[:200] or 'no answer'}"
                           "): what was done is kept; start a scheduler, then run the same command again to go on")


@contextmanager
def connected(choice: str) -> Iterator[Cluster]:
    """The workers of a scheduler. choice: its address, the file that it wrote, or "dask" for dask's configuration.

    Raises WorkerError if dask is not installed or the scheduler does not answer.
    """
    try:
        import dask
        import distributed
    except ImportError as error:
        raise WorkerError("--scheduler needs dask: pip install onceclip[dask]") from error
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
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters of it is raised
    try:
        client = distributed.Client(**place, timeout=TIMEOUT, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise WorkerError(f"no scheduler answers at {place.get('address', choice)} ({said}): start one with `dask "
                          "scheduler`, or correct the address") from error
    try:
        cluster = Cluster(client, client.scheduler.address)
        workers = len(client.nthreads())
        tqdm.write(f"{workers} workers at {cluster.address}; dashboard: {client.dashboard_link}"
                   + ("" if workers else "; waiting for workers"), file=sys.stderr)
        yield cluster
    finally:
        client.close(timeout=TIMEOUT)


def _carried_out(work: bytes, version: str) -> Any:
    """Carry out a task on a worker, whose threads take turns: the GPU and the cores are for one task."""
    from distributed import get_worker
    from distributed.protocol import pickle

    if version != __version__:
        raise WorkerError(f"the worker {get_worker().address} has onceclip {__version__}, this command is {version}: "
                          "install the same version on both")
    with _ONE_AT_A_TIME:
        from onceclip.pipeline.cluster.worker import give_threads

        give_threads(get_worker().state.nthreads)
        function, task = pickle.loads(work)
        return function(task)
