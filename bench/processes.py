"""Work on several cores, and commands in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from onceclip import OnceclipError

Task = TypeVar("Task")
Result = TypeVar("Result")
ROOT = Path(__file__).resolve().parent.parent


def cores() -> int:
    """Processes of one thread that the machine carries out at once."""
    return os.cpu_count() or 1


def spread(function: Callable[[Task], Result], tasks: Sequence[Task], processes: int) -> list[Result]:
    """Carry out tasks in new processes of one thread, or in this one for one, and give the results in order."""
    if processes == 1:
        return list(map(function, tasks))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return list(pool.map(function, tasks))


def onceclip(*arguments: Any, **environment: str) -> None:
    """Run a command of the package, as a user does; what it prints is passed over.

    Raises RuntimeError with what it complained of if it fails.
    """
    wait_for(start("onceclip", *arguments, **environment))


def start(module: str, *arguments: Any, **environment: str) -> subprocess.Popen[str]:
    """Start `python -m MODULE ARGUMENTS`, wherever the benches were started."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen([sys.executable, "-m", module, *map(str, arguments)], text=True, stderr=subprocess.PIPE,
                            stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path, **environment})


def wait_for(process: subprocess.Popen[str]) -> None:
    """Wait until a process has ended.

    Raises RuntimeError with what it complained of if it failed.
    """
    _, complaint = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, process.args))} failed:\n{complaint}")  # type: ignore[arg-type]


class Used(NamedTuple):
    """What a process and those that it started took: seconds of all cores together, seconds, GiB of the largest."""

    processor: float
    wall: float
    gib: float


def used(command: Sequence[str], module: bool = True) -> Used:
    """Run a process to its end.

    command: of onceclip, or, unless `module`, a file of Python with its arguments.
    Raises OnceclipError if it fails.
    """
    begun = time.perf_counter()
    ours = ["-m", "onceclip"] if module else []
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen([sys.executable, *ours, *command], stdout=subprocess.DEVNULL, stderr=complaints)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            complaints.seek(0)
            raise OnceclipError(f"{' '.join(command)} failed: {complaints.read().decode(errors='replace')}")
    return Used(usage.ru_utime + usage.ru_stime, time.perf_counter() - begun, usage.ru_maxrss / 2**20)
