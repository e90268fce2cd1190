"""A training step as one piece of machine code, in which the passes over memory between its products are one.

torch writes the step down as a graph of tensor operations, and makes code of it that serves any number of rows, any
values and any task of the same shapes. No method knows of it.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from functools import partial
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from onceclip.adapters.errors import MethodError
from onceclip.adapters.graph import lifted, places
from onceclip.adapters.leaves import kind, leaves
from onceclip.adapters.optimiser import Numbers
from onceclip.adapters.run_axis import narrow
from onceclip.adapters.schedule import Moment
from onceclip.adapters.training import Training

Step = Callable[[Tensor, Tensor, Moment], None]
_APART = 0.02  # of the length of a step's changes, by which both ways may differ: bfloat16 rounds at other places
_NODES = 300  # of a graph: CLIP-Adapter's has 150
_ROWS = 37  # of the batch to trace with, or somewhat more
_FIRST = Moment(0, 1, 0, 1)
_made: dict[Any, Callable[..., Any]] = {}
_known: dict[Any, tuple[Callable[..., Any], list[int]]] = {}  # with the places of constants among leaves


class CompiledStep:
    """The step of some trainings that have method, task and number of runs in common.

    required: raise MethodError where it cannot be compiled; otherwise the plain step is taken.
    """

    def __init__(self, required: bool) -> None:
        self.required = required
        self._function: Callable[..., Any] | None = None
        self._constants: Sequence[Tensor] = ()
        self._failed = False

    def __call__(self, training: Training, rows: Tensor, label: Tensor) -> Step:
        """What carries out the steps of a training, of which this is a batch."""
        if self._function is None and not self._failed:
            try:
                self._make(training, rows, label)
            except Exception as error:  # of any kind: torch compiles with what the machine has
                self._failed, reason = True, (str(error).strip() or type(error).__name__).splitlines()[0]
                if self.required:
                    raise MethodError(f"the steps of {training.first.method.name} cannot be compiled ({reason}): "
                                      "use --compile off") from error
                logging.getLogger(__name__).info("%s is trained without compiling: %s", training.first.method.name,
                                                 reason)
        return training.step if self._failed else partial(self._carry_out, training)

    @torch.no_grad()
    def _carry_out(self, training: Training, rows: Tensor, label: Tensor, at: Moment) -> None:
        assert self._function is not None
        if len(label) == 1:  # torch would make code of its own for one row; of two equal ones the mean is the same
            rows, label = rows.repeat(2, 1), label.repeat(2)
        self._function(*_tensors(training, rows, label, training.optimiser.numbers(at)), *self._constants)

    @torch.no_grad()
    def _make(self, training: Training, rows: Tensor, label: Tensor) -> None:
        plain = _copy(training)
        plain.step(rows, label, _FIRST)  # also fills what methods and tasks keep, which must not happen in a graph
        found = leaves((training.first.task, training.first.prepared, training.fixed))
        key = training.stack.runs, torch.get_num_threads(), narrow(), *map(kind, found)
        if key in _known:
            self._function, kept = _known[key]
            self._constants = [found[place] for place in kept]
            with suppress(MethodError):
                return self._try(training, plain, rows, label)
        with _quiet():
            example = [each.clone() for each in _example(training, rows, label)]
            graph, self._constants = lifted(make_fx(partial(_step, training), tracing_mode="symbolic",
                                                    _allow_non_fake_inputs=True)(*example))
            if not self.required and len(graph.graph.nodes) > _NODES:
                raise MethodError("its steps are of so many parts that compiling them takes minutes")
            code = graph.code, tuple(map(kind, self._constants)), torch.get_num_threads()
            # The method alone: to call a module takes a twentieth of a small step.
            self._function = _made.setdefault(code, torch.compile(graph.forward, fullgraph=True, dynamic=True))
            self._function(*example, *self._constants)  # or code for as many rows as classes would be for these alone
            self._try(training, plain, rows, label)
        if (where := places(self._constants, found)) is not None:
            _known[key] = self._function, where

    def _try(self, training: Training, plain: Training, rows: Tensor, label: Tensor) -> None:
        """Take a first step elsewhere. Raises MethodError unless it goes where the plain one went."""
        other = _copy(training)
        self._carry_out(other, rows, label, _FIRST)
        start, one, two = ([*chain.from_iterable(each.optimiser.moments[:1])] or each.optimiser.values
                           for each in (training, plain, other))
        moved, apart = (math.sqrt(sum(float((end - begin).norm())**2 for end, begin in zip(one, base, strict=True)))
                        for base in (start, two))
        if not apart <= _APART * moved:
            raise MethodError(f"the compiled step is {apart:.3g} from the plain one, which goes {moved:.3g} far")


@contextmanager
def _quiet() -> Iterator[None]:
    """Compile in this process, which may be one of many, and keep from the user what that says of the machine."""
    from torch._inductor import config  # seconds, for those who compile nothing

    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), config.patch(compile_threads=1):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _tensors(training: Training, rows: Tensor, label: Tensor, numbers: Numbers) -> list[Tensor]:
    """All that a step reads and changes, apart from what belongs to the task."""
    optimiser = training.optimiser
    return [rows, label, *numbers, *training.stack.numbers.values(), *training.state.values(), *optimiser.values,
            *chain.from_iterable(optimiser.moments)]


def _step(training: Training, rows: Tensor, label: Tensor, *tensors: Tensor) -> None:
    """A step as a function of those tensors, some of which it changes. training: gives their names and numbers."""
    remaining = iter(tensors)
    numbers = Numbers(*islice(remaining, len(Numbers._fields)))
    own = {name: next(remaining) for name in training.stack.numbers}
    state = {name: next(remaining) for name in training.state}
    values = {name: next(remaining) for name in training.parameters}
    moments = [[next(remaining) for _ in values] for _ in training.optimiser.moments]
    leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
    gradients = training.gradients(leaves, state, own, rows, label)
    training.optimiser.move(list(values.values()), [each.detach() for each in gradients], moments, numbers)


def _example(training: Training, rows: Tensor, label: Tensor) -> list[Tensor]:
    """Tensors to trace with: of a number of rows that is no other tensor's size, which would be taken for the same."""
    tensors = _tensors(training, rows, label, copy(training.optimiser).numbers(_FIRST))
    sizes = {size for each in tensors for size in each.shape}
    some = next(number for number in count(_ROWS) if number not in sizes)
    return [rows.new_zeros(some, *rows.shape[1:]), label.new_zeros(some), *tensors[2:]]


def _copy(training: Training) -> Training:
    """The training with parameters and moments of its own."""
    other, optimiser = copy(training), copy(training.optimiser)
    other.parameters = {name: value.detach().clone().requires_grad_() for name, value in training.parameters.items()}
    optimiser.values = [value.detach() for value in other.parameters.values()]
    optimiser.moments = [[each.clone() for each in kept] for kept in optimiser.moments]
    other.optimiser = optimiser
    return other
