"""Compiled training steps: between matrix products, one pass over memory in place of one per operation.

torch traces the step as a graph of tensor operations and compiles it for any number of rows and runs, any values and
any task of the same shapes. Methods need not know of it.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from onceclip.adapters.errors import MethodError
from onceclip.adapters.ops import narrow
from onceclip.adapters.training import code_cache
from onceclip.adapters.training.loop import Run, Step, Training
from onceclip.adapters.training.optimizer import Position, StepNumbers
from onceclip.adapters.training.stack import stackable, varying

AUTO, ON, OFF = CHOICES = ("auto", "on", "off")
_MIN_SECONDS = 10.0  # of uncompiled steps in all trainings, about what compiling takes, once for all later processes
_MIN_SECONDS_OF_ONE = 0.002  # of the uncompiled steps of one run: below, checking the code takes longer than it saves
_STEP_SECONDS = 1e-4  # overhead of one step, which several runs may share
_THROUGHPUT = 1.6e10  # parameters times rows per second, forward and backward, in float32
_MAX_DIFFERENCE = 0.02  # of both steps, relative to the length of one: bfloat16 rounds at other places
_MAX_NODES = 300  # of a graph that is compiled without being required; CLIP-Adapter's has 150
_MIN_TRACED_SIZE = 11  # numbers of rows and runs to trace with are this or somewhat more
_FIRST_POSITION = Position(0, 1, 0, 1)
_PLAIN_TYPES = (int, float, str, bytes, type, type(None))
_known: dict[Any, tuple[str, Sequence[int]]] = {}  # names of code, and positions of its constants among the leaves


@dataclass(frozen=True)
class Compiling:
    """Whether steps are compiled. choice: "auto" (where it pays, on a CPU), "on" or "off". alike: number of trainings
    that can use the same code.

    Raises MethodError for another choice.
    """

    choice: str = AUTO
    alike: int = 1

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise MethodError(f"compile={self.choice}: there are {', '.join(CHOICES)}")


USUAL = Compiling()
_CURRENT: ContextVar[Compiling] = ContextVar("compiling", default=USUAL)


@contextmanager
def compiling(choice: Compiling) -> Iterator[None]:
    """Train by this choice in a block of code."""
    token = _CURRENT.set(choice)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def several(number: int) -> Iterator[None]:
    """Declare that so many trainings like those in the block share the cost of compiling."""
    around = _CURRENT.get()
    with compiling(replace(around, alike=around.alike * number)):
        yield


def compiles(run: Run, parameters: int) -> bool:
    """Whether a run's steps are compiled; what is trained beside it does not matter. parameters: number of elements."""
    current = _CURRENT.get()
    if not stackable(run.method) or current.choice == OFF or run.task.support.weight is not None:
        return False
    if current.choice == ON:
        return True
    if run.task.device.type != "cpu":
        return False
    steps = run.method.epochs * run.steps_per_epoch()
    rows = run.method.epochs * len(run.task.support)
    seconds = steps * _STEP_SECONDS + rows * parameters / _THROUGHPUT
    return seconds >= _MIN_SECONDS_OF_ONE and seconds * current.alike >= _MIN_SECONDS


class CompiledStep:
    """The compiled step of trainings that share method, task and number of runs.

    Where it cannot be compiled the plain step is taken; the choice "on" raises MethodError.
    """

    def __init__(self) -> None:
        self.required = _CURRENT.get().choice == ON
        self._code: code_cache.Code | None = None
        self._constants: Sequence[Tensor] = ()
        self._failed = False

    def __call__(self, training: Training, rows: Tensor, label: Tensor) -> Step:
        """The compiled step of a training, or its plain one. rows, label: its first batch."""
        if self._code is None and not self._failed:
            try:
                self._make(training, rows, label)
            except Exception as error:  # of any kind: torch compiles with what the machine has
                self._failed, reason = True, _reason(error)
                if self.required:
                    raise MethodError(f"the steps of {training.first.method.name} cannot be compiled ({reason}): "
                                      "use --compile off") from error
                logging.getLogger(__name__).info("%s is trained without compiling: %s", training.first.method.name,
                                                 reason)
        return training.step if self._failed else partial(self._run, training)

    def _run(self, training: Training, rows: Tensor, label: Tensor, position: Position) -> None:
        assert self._code is not None
        if len(label) == 1:  # code is for two rows and more; of two equal ones the mean is the same
            rows, label = rows.repeat(2, 1), label.repeat(2)
        self._code([*_tensors(training, rows, label, training.optimizer.numbers(position)), *self._constants])

    @torch.no_grad()
    def _make(self, training: Training, rows: Tensor, label: Tensor) -> None:
        if rows.device.type != "cpu":
            raise MethodError("its device is no CPU")
        plain = _copy(training)
        # This also fills the caches of methods and tasks, which must not happen while the step is traced.
        plain.step(rows, label, _FIRST_POSITION)
        found = [*_leaves((training.first.task, training.first.prepared, _step_constants(training)), set())]
        key = training.alone, torch.get_num_threads(), narrow(), *map(_leaf_key, found)
        for number in (None, training.stack.runs):
            name, where = _remembered(number, *key)
            if name and (code := code_cache.load(name)):
                self._code, self._constants = code, [found[place] for place in where]
                with suppress(MethodError):
                    return self._try(training, plain, rows, label)
        for number in (None, training.stack.runs):
            if name := self._write(training, rows, label, found, number):
                break
        self._try(training, plain, rows, label)
        places = {id(leaf): place for place, leaf in enumerate(found) if isinstance(leaf, Tensor)}
        if all(id(each) in places for each in self._constants):
            _remember(name, [places[id(each)] for each in self._constants], number, *key)

    def _write(self, training: Training, rows: Tensor, label: Tensor, found: Sequence[Any], runs: int | None) -> str:
        """Trace the step and compile it, unless code of it exists; returns the code's name.

        found: leaves of task and method. runs: their number, None for code that serves any number: the name is empty
        if some operation does not allow that.
        """
        from torch.fx.experimental.proxy_tensor import make_fx  # a second, for those who compile nothing
        from torch.fx.experimental.symbolic_shapes import is_concrete_int

        with _quiet():
            example, free = _example(training, rows, label, found, runs)
            graph, self._constants = _lift_constants(make_fx(partial(_step, training), tracing_mode="symbolic",
                                                    _allow_non_fake_inputs=True)(*example))
            if not self.required and len(graph.graph.nodes) > _MAX_NODES:
                raise MethodError("its steps are of so many parts that compiling them takes minutes")
            inputs = graph.graph.find_nodes(op="placeholder")
            if runs is None and any(is_concrete_int(node.meta["val"].shape[place])
                                    for node, sizes in zip(inputs, free, strict=False) for place in sizes):
                return ""
            tensors, free = [*example, *self._constants], [*free, *[{} for _ in self._constants]]
            name = code_cache.digest(graph.code, *(
                (*(sizes.get(place, size) for place, size in enumerate(each.shape)), each.dtype, each.device)
                for each, sizes in zip(tensors, free, strict=True)))
            assert name is not None
            self._code = code_cache.load(name) or code_cache.make(name, graph, tensors, free)
        return name

    def _try(self, training: Training, plain: Training, rows: Tensor, label: Tensor) -> None:
        """Take a first step on a copy. Raises MethodError unless it changes the parameters as the plain step does."""
        other = _copy(training)
        self._run(other, rows, label, _FIRST_POSITION)
        start, one, two = ([*chain.from_iterable(each.optimizer.moments[:1])] or each.optimizer.values
                           for each in (training, plain, other))
        distance, apart = (math.sqrt(sum(float((end - begin).norm())**2 for end, begin in zip(one, base, strict=True)))
                        for base in (start, two))
        if not apart <= _MAX_DIFFERENCE * distance:
            raise MethodError(f"the compiled step is {apart:.3g} from the plain one, which goes {distance:.3g} far")


def _reason(error: Exception) -> str:
    """The first line of what torch or this module says; what is none by itself, such as a key, with its kind."""
    said = str(error).strip().splitlines()[:1]
    return said[0] if said and " " in said[0] else ": ".join([type(error).__name__, *said])


def _step_constants(training: Training) -> tuple[Any, ...]:
    """Hyperparameters that are constants of the compiled step, and what else of the method decides its operations.

    The number of epochs is none of a method of this package: rungs of a halving, which differ in it, share their code.
    The loss of another's may read it.
    """
    method, optimizer = training.first.method, training.optimizer
    free = varying(method) | ({"epochs"} if code_cache.digest(type(method)) else set())
    return (type(method), optimizer.clips, optimizer.decays, training.stack.smoothed,
            {name: value for name, value in method.values.items() if name not in free})


def _remembered(*key: Any) -> tuple[str, Sequence[int]]:
    """Name of the code of steps with these leaves, empty if there is none, and positions of its constants in them."""
    if key in _known:
        return _known[key]
    index = code_cache.digest(code_cache.sources(), *key)
    return (index and code_cache.noted(index)) or ("", ())


def _remember(name: str, where: Sequence[int], *key: Any) -> None:
    """Let this process and later ones find the code by the leaves."""
    _known[key] = name, where
    if (index := code_cache.digest(code_cache.sources(), *key)) is not None:
        code_cache.note(index, _known[key])


@contextmanager
def _quiet() -> Iterator[None]:
    """Compile without further processes, as there may be many of this one, and without the compiler's messages."""
    from torch._inductor import config

    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), config.patch(compile_threads=1):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _tensors(training: Training, rows: Tensor, label: Tensor, numbers: StepNumbers) -> list[Tensor]:
    """All tensors that a step reads and changes, apart from those of the task."""
    optimizer = training.optimizer
    return [rows, label, *numbers, *training.stack.numbers.values(), *training.state.values(), *optimizer.values,
            *chain.from_iterable(optimizer.moments)]


def _step(training: Training, rows: Tensor, label: Tensor, *tensors: Tensor) -> None:
    """A step as a function of those tensors, some of which it changes. training: gives their names and numbers."""
    remaining = iter(tensors)
    numbers = StepNumbers(*islice(remaining, len(StepNumbers._fields)))
    own = {name: next(remaining) for name in training.stack.numbers}
    state = {name: next(remaining) for name in training.state}
    values = {name: next(remaining) for name in training.parameters}
    moments = [[next(remaining) for _ in values] for _ in training.optimizer.moments]
    parameters = {name: value.detach().requires_grad_() for name, value in values.items()}
    gradients = training.gradients(parameters, state, own, rows, label)
    training.optimizer.update(list(values.values()), [each.detach() for each in gradients], moments, numbers)


def _example(training: Training, rows: Tensor, label: Tensor,
             found: Sequence[Any], runs: int | None) -> tuple[list[Tensor], list[dict[int, str]]]:
    """Tensors to trace with, and names for those of their sizes that are free.

    Rows and runs are as many as no other size is: torch takes equal sizes for the same. Arguments as of `_write`.
    """
    tensors = _tensors(training, rows, label, copy(training.optimizer).numbers(_FIRST_POSITION))
    free = [{0: "rows"} if place < 2 else {0: "runs"} if each.ndim and not training.alone and runs is None else {}
            for place, each in enumerate(tensors)]
    fixed = {size for each, names in zip(tensors, free, strict=True) for size in each.shape[len(names):]}
    fixed |= {size for leaf in found if isinstance(leaf, Tensor) for size in leaf.shape}
    numbers = (number for number in count(_MIN_TRACED_SIZE) if number not in fixed)
    sizes = {"rows": next(numbers), "runs": next(numbers)}
    return [each.new_zeros((*(sizes[name] for name in names.values()), *each.shape[len(names):]))
            for each, names in zip(tensors, free, strict=True)], free


def _copy(training: Training) -> Training:
    """The training with parameters, moments and counts of steps of its own."""
    other, optimizer = copy(training), copy(training.optimizer)
    other.parameters = {name: value.detach().clone().requires_grad_() for name, value in training.parameters.items()}
    optimizer.values = [value.detach() for value in other.parameters.values()]
    optimizer.moments = [[each.clone() for each in kept] for kept in optimizer.moments]
    optimizer.steps = [each.clone() for each in optimizer.steps]
    other.optimizer = optimizer
    return other


def _leaves(value: Any, seen: set[int]) -> Iterator[Any]:
    """All tensors and plain values in an object, in the order of its fields; other values by their identity.

    Two objects with equal leaves make the same computation.
    """
    if isinstance(value, (Tensor, *_PLAIN_TYPES)):
        yield value
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    parts = (value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (tuple, list)) else
             vars(value).items() if hasattr(value, "__dict__") and not callable(value) else None)
    if parts is None:
        yield type(value), id(value)
        return
    yield type(value)
    for name, part in parts:
        yield name
        yield from _leaves(part, seen)


def _leaf_key(leaf: Any) -> Any:
    """What two leaves must share: the shape, type and device of a tensor, the type and value of all else."""
    return (tuple(leaf.shape), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else (type(leaf), leaf)


def _lift_constants(traced: GraphModule) -> tuple[GraphModule, list[Tensor]]:
    """The graph with the tensors that it holds as further inputs, and these tensors.

    traced: what `make_fx` made of a function; it is changed.
    """
    constants: dict[str, Tensor] = {}
    inputs: dict[str, Node] = {}
    nodes = traced.graph.find_nodes(op="get_attr")
    last = traced.graph.find_nodes(op="placeholder")[-1]
    for node in nodes:
        name = str(node.target)
        if name not in constants:
            constants[name] = getattr(traced, name)
            delattr(traced, name)  # or a graph that serves all tasks would keep the first
            with traced.graph.inserting_after(last):
                last = traced.graph.placeholder(f"constant_{len(constants)}")
            inputs[name] = last
        node.replace_all_uses_with(inputs[name])
        traced.graph.erase_node(node)
    traced.recompile()
    return traced, list(constants.values())
