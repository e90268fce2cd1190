"""Runs on their way from start values to fitted parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.best import Best
from onceclip.adapters.method import Method
from onceclip.adapters.optimiser import Optimiser
from onceclip.adapters.schedule import Moment
from onceclip.adapters.stack import Parameters, Stack
from onceclip.adapters.stream import BLOCK, Stream
from onceclip.adapters.task import Task

Progress = Callable[[float], None]
_ORDER, _NOISE = 2**32, 2**33  # start values, batch order and noise come from streams of their own


@dataclass(frozen=True)
class Run:
    """One training: a method with its values, the task, what `Method.prepare` made of it, and a seed."""

    method: Method
    task: Task
    prepared: Any
    seed: int

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


class Training:
    """The training of runs on one task with one seed that differ only in numbers.

    starts: their start values. alone: whether it is a single run whose parameters have no axis of runs.
    compile: makes another way to carry out `step`, with the same arguments, of this training and its first batch.
    """

    def __init__(self, runs: Sequence[Run], starts: Sequence[Parameters], alone: bool = False,
                 compile: Callable[[Training, Tensor, Tensor], Callable[..., None]] | None = None) -> None:
        self.first, methods = runs[0], [run.method for run in runs]
        self.stack = Stack(methods, self.first.task, self.first.prepared, alone)
        joined = self.stack.join(starts)
        self.state = {name: joined.pop(name) for name in self.first.method.state if name in joined}
        self.parameters = {name: value.requires_grad_() for name, value in joined.items()}
        self.optimiser = Optimiser(methods, self.parameters, alone)
        self.steps = self.first.steps_per_epoch()
        self.order = torch.Generator().manual_seed(self.first.seed + _ORDER)
        self.noise = self.first.noise()
        self._compile = compile
        self._step: Callable[..., None] = self.step

    def run(self, progress: Progress = no_progress) -> list[Parameters]:
        """Carry out all epochs and give the parameters of every run: the last, or the best on validation rows."""
        method, task = self.first.method, self.first.task
        best = Best(self.stack, method, task)
        for epoch in range(method.epochs):
            self.epoch(epoch)
            if self.state:
                self.state = self.stack.after_epoch(self.parameters | self.state)
            progress((epoch + 1) / method.epochs)
            if best.seen(self.parameters | self.state, epoch):
                break
        return self.stack.split(best.chosen(self.parameters | self.state))

    def epoch(self, number: int, most: int | None = None) -> None:
        """Carry out one epoch, or the first `most` steps of it."""
        epochs = self.first.method.epochs
        for place, (rows, label) in enumerate(islice(self._batches(number), most)):
            if self._compile is not None:
                self._step, self._compile = self._compile(self, rows, label), None
            self._step(rows, label, Moment(number * self.steps + place, epochs * self.steps, number, epochs))

    def step(self, rows: Tensor, label: Tensor, at: Moment) -> None:
        """Carry out one step on a batch."""
        self.optimiser.step(self.gradients(self.parameters, self.state, self.stack.numbers, rows, label), at)

    def gradients(self, parameters: Parameters, state: Parameters, numbers: Parameters, rows: Tensor,
                  label: Tensor) -> Sequence[Tensor]:
        """Gradients of all parameters; those of a run are its own."""
        with torch.enable_grad():
            loss = self.stack.loss(parameters | state, rows, label, self.noise, numbers)
            return torch.autograd.grad(loss.sum(), list(parameters.values()))

    def _batches(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and labels of every step of an epoch."""
        method, support = self.first.method, self.first.task.support
        blocks = (support.blocks(self.order) if isinstance(support, Stream) else
                  [method.training_rows(self.first.task, self.first.prepared, number)])
        for rows, label in blocks:
            for piece in method.batches(len(label), self.order):
                yield _at(rows, piece), _at(label, piece)


def _at(values: Tensor, piece: Tensor | slice) -> Tensor:
    return values[piece] if isinstance(piece, slice) else values.index_select(0, piece.to(values.device))
