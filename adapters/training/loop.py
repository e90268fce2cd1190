"""The training loop: runs on their way from start values to fitted parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.task import BLOCK, Stream, Task
from onceclip.adapters.training.history import Checkpoints
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
        self.checkpoints = Checkpoints(self.stack, self.methods, self.first.task, self.first.prepared)
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
        for epoch in range(epochs):
            self.epoch(epoch)
            progress((epoch + 1) / epochs)
            if self.state:
                self.state = self.stack.after_epoch(self.parameters | self.state)
            if self.checkpoints.update(self.parameters | self.state, epoch):
                break
        return self.stack.split(self.checkpoints.end(self.parameters | self.state))

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
