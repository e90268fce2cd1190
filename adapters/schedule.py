"""How the step size falls over a training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

SCHEDULES = ("cosine", "warmup", "dassl", "constant")
_DASSL_START = 1e-5


@dataclass(frozen=True)
class Moment:
    """Where a training is. step, epoch: from 0. steps, epochs: their numbers."""

    step: int
    steps: int
    epoch: int
    epochs: int


def step_size(name: str, learning_rate: float | Tensor, at: Moment, warmup: int = 0) -> float | Tensor:
    """The step size at a moment of a training that starts with a learning rate; of several runs (runs,) at once.

    cosine: `(1 + cos(pi step / steps)) / 2` of it. warmup: linear over `warmup` steps, then cosine to zero over the
        rest. constant: all of it.
    dassl: per epoch, the first one at 1e-5, then cosine over all epochs, counted from the second, so that the last
        still moves (Dassl's schedule as the configurations of CoOp, Zhou et al., IJCV 2022, set it).
    """
    if name == "constant":
        return learning_rate
    if name == "dassl":
        return learning_rate * _cosine((at.epoch - 1) / at.epochs) if at.epoch else _DASSL_START
    if name == "warmup" and at.step < warmup:
        return learning_rate * (at.step + 1) / warmup
    start = warmup if name == "warmup" else 0
    return learning_rate * _cosine((at.step - start) / max(at.steps - start, 1))


def _cosine(part: float) -> float:
    return (1 + math.cos(math.pi * part)) / 2
