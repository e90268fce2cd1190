"""The training loop: runs on their way from start values to fitted parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.task import BLOCK, Rows, Stream, Task
from onceclip.adapters.training.history import Watch
from onceclip.adapters.training.optimizer import Optimizer, Position
from onceclip.adapters.training.stack import Parameters, Stack
from onceclip.adapters.training.trainable import Trainable

Progress = Callable[[float], None]
Step = Callable[[Tensor, Tensor, Position], None]  # rows, labels, and where in the training the step is
CompileStep = Callable[["Training", Tensor, Tensor], Step]  # of a training and its first batch
_ORDER, _NOISE = 2**32, 2**33  # start values, batch order and noise come from streams of their own


@dataclass(frozen=True)
class Run:
    """One training: a method with its values, the task, what `Method.prepare` made of it, and a seed."""

    method: Trainable
    task: Task
    prepared: Any
    seed: int

    @cached_property
    def start(self) -> Parameters:
        """Start values of the parameters."""
        return self.method.initial(self.prepared, torch.Generator().manual_seed(self.seed))

    def noise(self) -> torch.Generator:
        """Where the losses' noise comes from."""
        return torch.Generator().manual_seed(self.seed + _NOISE)

    def steps_per_epoch(self) -> int:
        """Number of steps of each epoch."""
        support, any_order = self.task.support, torch.Generator().manual_seed(0)
        if isinstance(support, Stream):
            whole, rest = divmod(len(support), BLOCK)
            sizes = [(whole, BLOCK), (1, rest)]
            return sum(count * len(self.method.batches(size, any_order)) for count, size in sizes if size)
        _, label = self.method.training_rows(self.task, self.prepared, 0)
        return len(self.method.batches(len(label), any_order))


def no_progress(fraction: float) -> None:
    """Watch nothing."""


def part_of(progress: Progress, start: float, share: float) -> Progress:
    """Progress of a part of the work. start: fraction that is done before. share: the part's own."""
    return lambda fraction: progress(start + fraction * share)


class Training:
    """The training of runs that share a task and a seed; only float hyperparameters differ.

    starts: their start values. alone: whether it is a single run whose parameters have no axis of runs.
    compile_step: makes a faster way to carry out `step`; None to take the steps as they are written here.
    """

    def __init__(self, runs: Sequence[Run], starts: Sequence[Parameters], alone: bool = False,
                 compile_step: CompileStep | None = None) -> None:
        self.first, self.methods, self.alone = runs[0], [run.method for run in runs], alone
        self.stack = Stack(self.methods, self.first.task, self.first.prepared, alone)
        joined = self.stack.join(starts)
        self.state = {name: joined.pop(name) for name in self.first.method.state if name in joined}
        self.parameters = {name: value.requires_grad_() for name, value in joined.items()}
        self.optimizer = Optimizer(self.methods, self.parameters, alone)
        self.best = BestCheckpoint(self.stack, self.first.method, self.first.task)
        self.steps = self.first.steps_per_epoch()
        self.order = torch.Generator().manual_seed(self.first.seed + _ORDER)
        self.noise = self.first.noise()
        self.weight = self.first.task.support.weight
        self._batch_weight: Tensor | None = None  # of the rows of the present step
        self._compile_step = compile_step
        self._step: Step = self.step

    def run(self, progress: Progress = no_progress) -> list[Parameters]:
        """Carry out all epochs and give the parameters of every run: the last, or the best on validation rows."""
        epochs = self.first.method.epochs
        watch = Watch(self.stack, self.methods, self.first.task, self.first.prepared)
        for epoch in range(epochs):
            self.epoch(epoch)
            progress((epoch + 1) / epochs)
            if self.state:
                self.state = self.stack.after_epoch(self.parameters | self.state)
            watch.update(self.parameters | self.state, epoch)
            if self.best.update(self.parameters | self.state, epoch):
                break
        watch.end(self.best.epoch if self.best.kept else None, self.best.patience if self.best.kept else 0)
        return self.stack.split(self.best.chosen(self.parameters | self.state))

    def epoch(self, number: int) -> None:
        """Carry out one epoch."""
        epochs = self.first.method.epochs
        for index, (rows, label) in enumerate(self._batches(number)):
            if self._compile_step is not None:
                self._step, self._compile_step = self._compile_step(self, rows, label), None
            self._step(rows, label, Position(number * self.steps + index, epochs * self.steps, number, epochs))

    def step(self, rows: Tensor, label: Tensor, position: Position) -> None:
        """Carry out one step on a batch: rows (n, width), label (n,)."""
        self.optimizer.step(self.gradients(self.parameters, self.state, None, rows, label), position)

    def gradients(self, parameters: Parameters, state: Parameters, numbers: Parameters | None, rows: Tensor,
                  label: Tensor) -> Sequence[Tensor]:
        """Gradients of all parameters; those of a run are its own. Arguments as of `Stack.loss`."""
        with torch.enable_grad():
            loss = self.stack.loss(parameters | state, rows, label, self.noise, numbers, self._batch_weight)
            return torch.autograd.grad(loss.sum(), list(parameters.values()))

    def _batches(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and labels of every step of an epoch."""
        method, task = self.first.method, self.first.task
        blocks = (task.support.blocks(self.order) if isinstance(task.support, Stream) else
                  [method.training_rows(task, self.first.prepared, number)])
        for rows, label in blocks:
            for batch in method.batches(len(label), self.order):
                self._batch_weight = None if self.weight is None else _rows_at(self.weight, batch)
                yield _rows_at(rows, batch), _rows_at(label, batch)


def _rows_at(values: Tensor, batch: Tensor | slice) -> Tensor:
    if isinstance(batch, slice):
        return values if batch == slice(None) else values[batch]
    return values.index_select(0, batch.to(values.device))


class BestCheckpoint:
    """The best parameters of every run so far, where `keep` is "best" and the task has validation rows.

    Ties go to the lower cross-entropy, then to the earlier epoch. With a `patience`, a run that has not become better
    for that many epochs is over: later epochs, which runs beside it may need, count no more.
    """

    def __init__(self, stack: Stack, method: Trainable, task: Task) -> None:
        self.stack, self.patience = stack, int(method.values.get("patience", 0))
        self.rows: Rows | None = task.val if method.values.get("keep") == "best" and task.val else None
        self.input = None if self.rows is None else method.rows_of(self.rows)
        runs, device = stack.runs, task.device
        self.accuracy = torch.full((runs,), -1.0, dtype=torch.float64, device=device)
        self.loss = torch.full((runs,), float("inf"), device=device)
        self.epoch = torch.zeros(runs, dtype=torch.int64, device=device)
        self.over = torch.zeros(runs, dtype=torch.bool, device=device)
        self.kept: Parameters = {}

    def update(self, parameters: Parameters, epoch: int) -> bool:
        """Look at the parameters after an epoch; whether all runs are over."""
        if self.rows is None or self.input is None:
            return False
        accuracy, loss = self.stack.scores(parameters, self.input, self.rows.label)
        better = ~self.over & ((accuracy > self.accuracy) | ((accuracy == self.accuracy) & (loss < self.loss)))
        for name, value in parameters.items():
            if name not in self.kept:
                self.kept[name] = value.detach().clone()
            elif self.stack.alone:
                if better:
                    self.kept[name].copy_(value.detach())
            else:
                self.kept[name][better] = value.detach()[better]
        self.accuracy = torch.where(better, accuracy, self.accuracy)
        self.loss = torch.where(better, loss.to(self.loss.dtype), self.loss)
        self.epoch = torch.where(better, epoch, self.epoch)
        if self.patience:
            self.over |= epoch - self.epoch >= self.patience
        return bool(self.over.all())

    def chosen(self, last: Parameters) -> Parameters:
        """The best parameters, or the last where nothing is watched."""
        return self.kept or last
