"""What a training reaches after every epoch: the best parameters, and on request the losses of all epochs."""

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


def _short(number: float) -> float | None:
    """A number to six digits for JSON, None where it is not finite."""
    return float(f"{number:.6g}") if abs(number) < float("inf") else None


@dataclass
class Recorder:
    """The histories of all trainings in a block of code, by what was trained.

    A history is JSON values: "train_loss" and "val_loss", the mean cross-entropy in nats after each epoch, empty where
    there are no such rows or training rows are streamed; "val_accuracy", fractions; "kept", the epoch from 1 that was.
    """

    found: dict[Any, dict[str, Any]] = field(default_factory=dict)

    def history(self, method: Trainable, values: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """That of the last training of a method with its values, or others; None where no epochs were trained."""
        return self.found.get(_key(method.with_values(**values or {})))


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


def _key(method: Trainable) -> Any:
    """What tells trainings apart."""
    return method.name, method.training_values


class Checkpoints:
    """Looks at the runs of a training after each epoch: keeps the best parameters of each, and records if asked to.

    Parameters are kept where `keep` is "best" and the task has validation rows. Ties go to the lower cross-entropy,
    then to the earlier epoch. With a `patience`, a run that has not become better for that many epochs is over: later
    epochs, which runs beside it may need, count no more.
    """

    def __init__(self, stack: Stack, methods: Sequence[Trainable], task: Task, prepared: Any) -> None:
        self.recorder, self.stack, self.methods, self.task = _CURRENT.get(), stack, methods, task
        self.prepared, self.patience = prepared, int(methods[0].values.get("patience", 0))
        keeps = methods[0].values.get("keep") == "best"
        self.val = methods[0].rows_of(task.val) if task.val and (keeps or self.recorder is not None) else None
        self.keeps = keeps and self.val is not None
        self.accuracy = torch.full((stack.runs,), -1.0, dtype=torch.float64, device=task.device)
        self.loss = torch.full((stack.runs,), float("inf"), device=task.device)
        self.epoch = torch.zeros(stack.runs, dtype=torch.int64, device=task.device)
        self.over = torch.zeros(stack.runs, dtype=torch.bool, device=task.device)
        self.kept: Parameters = {}
        self.train_losses: list[Tensor] = []
        self.val_scores: list[tuple[Tensor, Tensor]] = []

    def update(self, parameters: Parameters, epoch: int) -> bool:
        """Look at the parameters after an epoch; whether all runs are over."""
        method, task = self.methods[0], self.task
        if self.recorder is not None and not isinstance(task.support, Stream):
            rows = method.recorded_rows(task, self.prepared, epoch)
            if rows is not None:
                self.train_losses.append(self.stack.scores(parameters, *rows)[1])
        if task.val is None or self.val is None:
            return False
        accuracy, loss = self.stack.scores(parameters, self.val, task.val.label)
        self.val_scores.append((accuracy, loss))
        return self.keeps and self._keep(parameters, epoch, accuracy, loss)

    def _keep(self, parameters: Parameters, epoch: int, accuracy: Tensor, loss: Tensor) -> bool:
        better = ~self.over & ((accuracy > self.accuracy) | ((accuracy == self.accuracy) & (loss < self.loss)))
        for name, value in parameters.items():
            if name not in self.kept:
                self.kept[name] = value.detach().clone()
            elif not self.stack.alone:
                self.kept[name][better] = value.detach()[better]
            elif better:
                self.kept[name].copy_(value.detach())
        self.accuracy = torch.where(better, accuracy, self.accuracy)
        self.loss = torch.where(better, loss.to(self.loss), self.loss)
        self.epoch = torch.where(better, epoch, self.epoch)
        if self.patience:
            self.over |= epoch - self.epoch >= self.patience
        return bool(self.over.all())

    def end(self, last: Parameters) -> Parameters:
        """The best parameters, or the last where none are kept; if somebody records, every run's history too."""
        epochs = max(len(self.train_losses), len(self.val_scores))
        if self.recorder is not None and epochs:
            scores = {"train_loss": self.train_losses, "val_loss": [loss for _, loss in self.val_scores],
                      "val_accuracy": [accuracy for accuracy, _ in self.val_scores]}
            numbers = {name: torch.stack(each).double().cpu().T.tolist() if each else [[]] * len(self.methods)
                       for name, each in scores.items()}
            for place, method in enumerate(self.methods):
                best = int(self.epoch[place]) if self.kept else epochs - 1
                # After a run that ended by its patience, epochs are those of runs beside it.
                count = min(epochs, best + self.patience + 1) if self.kept and self.patience else epochs
                self.recorder.found[_key(method)] = {
                    **{name: [*map(_short, each[place][:count])] for name, each in numbers.items()}, "kept": best + 1}
        return self.kept or last
