"""What this machine has for workers."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from glob import glob
from typing import TypeVar

from onceclip.pipeline.errors import WorkerError
from onceclip.stores import NotAStore

Opened = TypeVar("Opened")
# Without any of these files Linux has no GPU: asking torch takes seconds in which workers could start.
_DEVICES = "/dev/nvidia*", "/dev/nvhost*", "/dev/nvgpu*", "/dev/kfd", "/dev/dxg"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process sees, each such as CUDA_VISIBLE_DEVICES takes."""
    if sys.platform == "linux" and not any(glob(each) for each in _DEVICES):
        return []
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    return [name.strip() for name in named.split(",")] if named else [str(each) for each in
                                                                      range(torch.cuda.device_count())]


def reached(store: str, opened: Callable[[], Opened]) -> Opened:
    """What opening a store gives. Raises WorkerError where this machine does not have it."""
    try:
        return opened()
    except NotAStore as error:
        raise WorkerError(f"the worker on {socket.gethostname()} finds no store at {store}: give a path that all "
                          "machines have, or the URL of an object store") from error
