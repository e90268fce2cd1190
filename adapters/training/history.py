"""What a training reached after every epoch, on request: cross-entropy of training and validation rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.task import Stream, Task
from onceclip.adapters.training.stack import Parameters, Stack
from onceclip.adapters.training.trainable import Trainable


@dataclass(frozen=True)
class History:
    """One training. train_loss, val_loss: mean cross-entropy in nats after each epoch; empty where there are no such
    rows, or training rows are streamed. val_accuracy: fractions. kept: number of the epoch, from 1, that was kept.
    """

    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    val_accuracy: tuple[float, ...]
    kept: int

    def as_values(self) -> dict[str, Any]:
        """As JSON values, numbers to six digits; NaN and infinity are None."""
        return {**{name: [_short(number) for number in getattr(self, name)]
                   for name in ("train_loss", "val_loss", "val_accuracy")}, "kept": self.kept}


def _short(number: float) -> float | None:
    return float(f"{number:.6g}") if abs(number) < float("inf") else None


@dataclass
class Recorder:
    """The histories of all trainings in a block of code, by what was trained."""

    found: dict[Any, History] = field(default_factory=dict)

    def history(self, method: Trainable, values: Mapping[str, Any] | None = None) -> History | None:
        """That of the last training of a method with its values, or others; None where no epochs were trained."""
        return self.found.get(_key(method, method.values if values is None else values))


_CURRENT: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


@contextmanager
def recording(wanted: bool = True) -> Iterator[Recorder]:
    """Record the trainings in a block of code. Their numbers stay what they are without it."""
    recorder = Recorder()
    token = _CURRENT.set(recorder if wanted else None)
    try:
        yield recorder
    finally:
        _CURRENT.reset(token)


def _key(method: Trainable, values: Mapping[str, Any]) -> Any:
    """What tells trainings apart: the hyperparameters of which another value needs another one."""
    return method.name, tuple((name, values[name]) for name, setting in method.hyperparameters.items()
                              if setting.retrain)


class Watch:
    """Looks at a training after each of its epochs, if somebody records."""

    def __init__(self, stack: Stack, methods: Sequence[Trainable], task: Task, prepared: Any) -> None:
        self.recorder, self.stack, self.methods, self.task = _CURRENT.get(), stack, methods, task
        self.prepared = prepared
        self.train: list[Tensor] = []
        self.val: list[tuple[Tensor, Tensor]] = []

    def update(self, parameters: Parameters, epoch: int) -> None:
        """Look at the parameters after an epoch."""
        if self.recorder is None:
            return
        method, task = self.methods[0], self.task
        if not isinstance(task.support, Stream) and method.labels_are_classes:
            self.train.append(self.stack.scores(parameters, *method.training_rows(task, self.prepared, epoch))[1])
        if task.val is not None and len(task.val):
            self.val.append(self.stack.scores(parameters, method.rows_of(task.val), task.val.label))

    def end(self, kept: Tensor | None, patience: int) -> None:
        """Record every run. kept: (runs,) the epoch from 0 whose parameters were kept; None for the last.

        patience: of a run that ended by it, epochs after that are those of runs beside it.
        """
        epochs = max(len(self.train), len(self.val))
        if self.recorder is None or not epochs:
            return
        numbers = [torch.stack(each).double().cpu() if each else None
                   for each in (self.train, [loss for _, loss in self.val], [right for right, _ in self.val])]
        for place, method in enumerate(self.methods):
            best = epochs - 1 if kept is None else int(kept[place])
            count = min(epochs, best + patience + 1) if patience else epochs
            train, loss, right = (() if each is None else tuple(each[:count, place].tolist()) for each in numbers)
            self.recorder.found[_key(method, method.values)] = History(train, loss, right, best + 1)
