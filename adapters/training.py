"""Runs on their way from start values to fitted parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.best import Best
from onceclip.adapters.method import Method
from onceclip.adapters.optimiser import Optimiser
from onceclip.adapters.schedule import Moment
from onceclip.adapters.stack import Parameters, Stack, calculated
from onceclip.adapters.stream import BLOCK, Stream
from onceclip.adapters.task import Task

Progress = Callable[[float], None]
Compile = Callable[["Training", Tensor, Tensor], Callable[..., None]]
_ORDER, _NOISE = 2**32, 2**33  # start values, batch order and noise come from streams of their own


@dataclass(frozen=True)
class Run:
    """One training: a method with its values, the task, what `Method.prepare` made of it, and a seed."""

    method: Method
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
    """What watches a part of the work. start: fraction that is done before. share: the part's own."""
    return lambda fraction: progress(start + fraction * share)


class Training:
    """The training of runs on one task with one seed that differ only in numbers.

    starts: their start values. alone: whether it is a single run whose parameters have no axis of runs.
    compile: makes another way to carry out `step`, with the same arguments, of this training and its first batch.
    """

    def __init__(self, runs: Sequence[Run], starts: Sequence[Parameters], alone: bool = False,
                 compile: Compile | None = None) -> None:
        self.first, self.methods, self.alone = runs[0], [run.method for run in runs], alone
        self.stack = Stack(self.methods, self.first.task, self.first.prepared, alone)
        joined = self.stack.join(starts)
        self.state = {name: joined.pop(name) for name in self.first.method.state if name in joined}
        self.parameters = {name: value.requires_grad_() for name, value in joined.items()}
        self.optimiser = Optimiser(self.methods, self.parameters, alone)
        self.best = Best(self.stack, self.first.method, self.first.task)
        self.steps = self.first.steps_per_epoch()
        self.order = torch.Generator().manual_seed(self.first.seed + _ORDER)
        self.noise = self.first.noise()
        self._compile = compile
        self._step: Callable[..., None] = self.step

    def run(self, progress: Progress = no_progress) -> list[Parameters]:
        """Carry out all epochs and give the parameters of every run."""
        epochs = self.first.method.epochs
        for epoch in range(epochs):
            self.epoch(epoch)
            progress((epoch + 1) / epochs)
            if self.over(epoch):
                break
        return self.result()

    def over(self, epoch: int) -> bool:
        """What is done between epochs; whether no run needs another one."""
        if self.state:
            self.state = self.stack.after_epoch(self.parameters | self.state)
        return self.best.seen(self.parameters | self.state, epoch)

    def result(self) -> list[Parameters]:
        """The parameters of every run: the last, or the best on validation rows."""
        return self.stack.split(self.best.chosen(self.parameters | self.state))

    def epoch(self, number: int, most: int | None = None) -> None:
        """Carry out one epoch, or the first `most` steps of it."""
        epochs = self.first.method.epochs
        for place, (rows, label) in enumerate(islice(self.batches(number, self.order), most)):
            if self._compile is not None:
                self._step, self._compile = self._compile(self, rows, label), None
            self._step(rows, label, Moment(number * self.steps + place, epochs * self.steps, number, epochs))

    def step(self, rows: Tensor, label: Tensor, at: Moment) -> None:
        """Carry out one step on a batch."""
        self.optimiser.step(self.gradients(self.parameters, self.state, None, rows, label), at)

    def gradients(self, parameters: Parameters, state: Parameters, numbers: Parameters | None, rows: Tensor,
                  label: Tensor) -> Sequence[Tensor]:
        """Gradients of all parameters; those of a run are its own."""
        with torch.enable_grad():
            loss = self.stack.loss(parameters | state, rows, label, self.noise, numbers)
            return torch.autograd.grad(loss.sum(), list(parameters.values()))

    @property
    def fixed(self) -> tuple[Any, ...]:
        """What a step takes of the method as it is."""
        method = self.first.method
        return (type(method), self.optimiser.clips, self.optimiser.decays, self.stack.smoothed,
                {name: value for name, value in method.values.items() if name not in calculated(method)})

    def rows(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The rows that an epoch is made of, and their labels; not of a stream, which has them in blocks."""
        return self.first.method.training_rows(self.first.task, self.first.prepared, epoch)

    def batches(self, number: int, order: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and labels of every step of an epoch."""
        support = self.first.task.support
        for rows, label in support.blocks(order) if isinstance(support, Stream) else [self.rows(number)]:
            for piece in self.first.method.batches(len(label), order):
                yield _at(rows, piece), _at(label, piece)


def _at(values: Tensor, piece: Tensor | slice) -> Tensor:
    if isinstance(piece, slice):
        return values if piece == slice(None) else values[piece]
    return values.index_select(0, piece.to(values.device))
