"""Trainings on several draws that take their steps together.

The gradients of one training are written down as a graph; what they take of its task are inputs of that graph. With a
leading axis of draws for all of them it gives those of many trainings at once. No method knows of it.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.fx import GraphModule, Interpreter
from torch.fx.experimental.proxy_tensor import make_fx

from onceclip.adapters.graph import lifted, places
from onceclip.adapters.leaves import kind, leaves
from onceclip.adapters.optimiser import Optimiser
from onceclip.adapters.run_axis import narrow
from onceclip.adapters.schedule import Moment
from onceclip.adapters.stack import Parameters
from onceclip.adapters.stream import Stream
from onceclip.adapters.training import Progress, Training, no_progress

_Gradients = Callable[..., Sequence[Tensor]]
_APART = 1e-3, 0.02  # of the length of gradients, by which both ways may differ: the second in bfloat16
_made: dict[Any, _Gradients] = {}  # graphs of all draws, which serve every task and every value of the same forms


def bundles(trainings: Sequence[Training]) -> list[list[int]]:
    """Places of trainings that can go together; one that cannot is a bundle alone."""
    alike: dict[Any, list[int]] = defaultdict(list)
    for place, training in enumerate(trainings):
        alike[_form(training)].append(place)
    return list(alike.values())


def _form(training: Training) -> Any:
    """What trainings have in common that may go together; of one that may with none, itself."""
    if training.alone or isinstance(training.first.task.support, Stream):
        return id(training)
    rows, label = next(training.batches(0, torch.Generator().manual_seed(0)))
    training.gradients(training.parameters, training.state, training.stack.numbers, rows, label)  # fills what is kept
    return training.stack.runs, *map(kind, _leaves(training))


def _leaves(training: Training) -> list[Any]:
    return leaves((training.first.task, training.first.prepared, training.fixed))


class Lockstep:
    """Trainings of one form, see `bundles`, whose parameters become parts of one tensor each."""

    def __init__(self, trainings: Sequence[Training]) -> None:
        self.trainings = trainings
        self.values = {name: torch.stack([each.parameters[name].detach() for each in trainings])
                       for name in trainings[0].parameters}
        self.optimiser = Optimiser([method for each in trainings for method in each.methods],
                                   {name: value.flatten(0, 1) for name, value in self.values.items()}, alone=False)
        self.numbers = {name: torch.stack([each.stack.numbers[name] for each in trainings])
                        for name in trainings[0].stack.numbers}
        self._graphs: dict[int, tuple[_Gradients, list[Tensor]]] = {}

    @torch.no_grad()
    def agrees(self) -> bool:
        """Whether every draw's first gradients are those that it has by itself.

        They are not where a method reads a tensor of its task as a number: that of the first draw would be everyone's,
        if torch wrote it down at all.
        """
        same_order = [torch.Generator().manual_seed(0) for _ in self.trainings]
        rows, label = next(self._batches(0, same_order))
        try:
            of_draws = list(zip(*self._gradients(rows, label), strict=True))
        except Exception as error:  # torch raises many types where it cannot write something down
            logging.getLogger(__name__).info("%s is trained draw by draw: %s", self.trainings[0].first.method.name,
                                             error)
            return False
        return all(_near(found, training.gradients(training.parameters, training.state, training.stack.numbers, *batch))
                   for training, found, *batch in zip(self.trainings, of_draws, rows, label, strict=True))

    def run(self, progress: Progress = no_progress) -> list[list[Parameters]]:
        """Carry out all epochs and give what `Training.run` gives, of every training."""
        first, orders = self.trainings[0], [each.order for each in self.trainings]
        for place, training in enumerate(self.trainings):
            training.parameters = {name: value[place] for name, value in self.values.items()}
        epochs = first.first.method.epochs
        for epoch in range(epochs):
            for place, (rows, label) in enumerate(self._batches(epoch, orders)):
                self.step(rows, label, Moment(epoch * first.steps + place, epochs * first.steps, epoch, epochs))
            progress((epoch + 1) / epochs)
            if all([training.over(epoch) for training in self.trainings]):  # a list: every one has to look
                break
        return [training.result() for training in self.trainings]

    def step(self, rows: Tensor, label: Tensor, at: Moment) -> None:
        """Carry out one step on a batch of every draw: rows (draws, n, width), label (draws, n)."""
        self.optimiser.step([each.flatten(0, 1) for each in self._gradients(rows, label)], at)

    def _gradients(self, rows: Tensor, label: Tensor) -> Sequence[Tensor]:
        """Of every parameter (draws, runs, ...)."""
        tensors = [rows, label, *self.numbers.values(), *self._states(), *self.values.values()]
        if label.shape[1] not in self._graphs:
            self._graphs[label.shape[1]] = self._written(tensors)
        gradients, constants = self._graphs[label.shape[1]]
        return gradients(*tensors, *constants)

    def _states(self) -> list[Tensor]:
        return [torch.stack([each.state[name] for each in self.trainings]) for name in self.trainings[0].state]

    def _batches(self, epoch: int, orders: Sequence[torch.Generator]) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and labels of every step of an epoch, each draw's in an order of its own."""
        method = self.trainings[0].first.method
        given = [each.rows(epoch) for each in self.trainings]
        rows, label = (torch.stack(each) for each in zip(*given, strict=True))
        draws = torch.arange(len(given), device=rows.device).unsqueeze(1)
        for pieces in zip(*(method.batches(label.shape[1], order) for order in orders), strict=True):
            if isinstance(pieces[0], slice):
                yield rows[:, pieces[0]], label[:, pieces[0]]
            else:
                chosen = torch.stack(pieces).to(rows.device)
                yield rows[draws, chosen], label[draws, chosen]

    @torch.no_grad()
    def _written(self, tensors: Sequence[Tensor]) -> tuple[_Gradients, list[Tensor]]:
        """The gradients of all draws as a function of such tensors and of constants, and these."""
        graph, constants = self._written_of(0, tensors)
        draws = range(len(self.trainings))
        found = list(map(_leaves, self.trainings))
        where = places(constants, found[0])
        kept = ([[found[draw][place] for place in where] for draw in draws] if where is not None else
                [self._written_of(draw, tensors)[1] for draw in draws])
        of_draws = [[each[place] for each in kept] for place in range(len(constants))]
        shared = [all(_equal(each, parts[0]) for each in parts) for parts in of_draws]
        joined = [parts[0] if same else torch.stack(parts) for parts, same in zip(of_draws, shared, strict=True)]
        key = (graph.code, narrow(), tuple(shared), *(kind(each) for each in [*tensors, *joined]))
        if key not in _made:
            axes = (*[0] * len(tensors), *(None if same else 0 for same in shared))
            _made[key] = make_fx(vmap(Interpreter(graph).run, axes), _allow_non_fake_inputs=True)(*tensors, *joined)
        return _made[key], joined

    def _written_of(self, draw: int, tensors: Sequence[Tensor]) -> tuple[GraphModule, list[Tensor]]:
        """The gradients of one draw as a graph, and its constants."""
        return lifted(make_fx(partial(_gradients, self.trainings[draw]), _allow_non_fake_inputs=True)(
            *(each[draw] for each in tensors)))


def _near(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether gradients are the same but for rounding; of runs that diverge at once nothing can be said."""
    pairs = list(zip(some, others, strict=True))
    apart = sum(float((one.nan_to_num() - other.nan_to_num()).square().sum()) for one, other in pairs)
    length = sum(float(other.square().sum()) for _, other in pairs)
    return not math.isfinite(length) or math.sqrt(apart) <= _APART[narrow() is not None] * math.sqrt(length)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or torch.equal(one, other)


def _gradients(training: Training, rows: Tensor, label: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Gradients as a function of those tensors. training: gives their names."""
    remaining = iter(tensors)
    numbers = {name: next(remaining) for name in training.stack.numbers}
    state = {name: next(remaining) for name in training.state}
    values = {name: next(remaining).detach().requires_grad_() for name in training.parameters}
    return [each.detach() for each in training.gradients(values, state, numbers, rows, label)]
