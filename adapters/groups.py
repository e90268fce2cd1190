"""How many runs are trained together: what a few timed steps on this machine say."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from onceclip.adapters.method import Method
from onceclip.adapters.stack import Parameters
from onceclip.adapters.task import Task

_SIZES = {"cpu": (4, 16, 64), "cuda": (32, 256, 1024)}
_STEPS = 3
_SHARE = 0.1  # of the work that the timing may cost
_GAIN = 0.95  # of a single run's time per run, so that noise alone never decides
_BYTES = {"cpu": 2**29, "cuda": 2**33}
_COPIES = 5  # of the parameters: themselves, gradients, two moments, room
_known: dict[Any, int] = {}


class Trainable(Protocol):
    """Runs that can be trained for a few steps."""

    parameters: Parameters

    def epoch(self, number: int, most: int | None = None) -> None:
        """Carry out some steps."""


def group_size(make: Callable[[int], Trainable], count: int, steps: int, method: Method, task: Task) -> int:
    """Number of runs that share a step, so that a run is never slower than alone.

    On a GPU hundreds of runs go together; on a CPU large ones fall out of its caches and are faster one by one.
    make: gives the first runs, ready to train. count: runs that there are. steps: of each.
    """
    device = task.text.embedding.device.type
    sizes = [size for size in _SIZES.get(device, ()) if size <= count]
    shape = (type(method), device, tuple(task.text.embedding.shape), len(task.support), method.values.get("batch_size"))
    best, fastest, spent = 1, float("inf"), 0
    if not sizes:
        return 1
    if (shape, len(sizes)) in _known:
        return _known[shape, len(sizes)]
    for size in (1, *sizes):
        spent += size * (_STEPS + 1)
        runs = make(size)
        needed = _COPIES * sum(value.numel() * value.element_size() for value in runs.parameters.values())
        if (size > 1 and spent > _SHARE * count * steps) or needed > _BYTES[device]:
            break
        seconds = _timed(runs, device) / size
        if seconds > (_GAIN * fastest if best == 1 else fastest):
            break
        best, fastest = size, seconds
    _known[shape, len(sizes)] = best
    return best


def _timed(runs: Trainable, device: str) -> float:
    runs.epoch(0, 1)
    if device == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    runs.epoch(0, _STEPS)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun
