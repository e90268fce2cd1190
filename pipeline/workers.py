"""Processes of one thread each that carry out groups of runs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from onceclip.pipeline.errors import WorkerError

Task = TypeVar("Task")
Result = TypeVar("Result")
_AHEAD = 2  # tasks that wait for every worker
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def work(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Carry out tasks in processes and give the results as they come; in this process if there is but one worker.

    function, tasks: such as can be sent to another process. The number of tasks under way is bounded.
    Raises what a task raises, and WorkerError if a process dies.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # read by the libraries of a new process as they load
    pool = ProcessPoolExecutor(workers, context, initializer=_alone)
    upcoming = iter(tasks)
    try:
        running: set[Future[Result]] = {pool.submit(function, task) for task in islice(upcoming, workers * _AHEAD)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(function, task) for task in islice(upcoming, len(done))}
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise WorkerError("a worker process died, for want of memory perhaps: run the same command again to go on, "
                          "with fewer --local-workers") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list((pool._processes or {}).values()):
            process.terminate()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def _alone() -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that hands out the work
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """A process that waits for work would wait for ever if the one that hands it out was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
