"""What the tests have workers do; a worker imports this file and none of the tests."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from onceclip.pipeline.errors import WorkerError


def work_of(task: tuple[str, str]) -> str:
    """Note that a task was begun, then do it: end this process, fail, or give its own name."""
    name, note = task
    with open(note, "a") as file:
        file.write(f"{name}\n")
    if name == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "failing":
        raise WorkerError("as it should")
    return name


def look(name: str) -> dict[str, Any]:
    """What a worker finds as it takes a task."""
    import torch

    return {"pid": os.getpid(), "threads": torch.get_num_threads(), "set": os.environ.get(name), "folder": os.getcwd()}


def sleep(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)
