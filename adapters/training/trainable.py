"""What training needs of a method: hyperparameters, losses and parameters; and start values of layers."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.errors import MethodError, UnknownName, unknown
from onceclip.adapters.heads.base import Head
from onceclip.adapters.task import EMBEDDING, Rows, Task

Value = float | int | str | bool
SCHEDULES = ("cosine", "warmup", "dassl", "constant")
RENAMED = {"optimiser": "optimizer", "renormalise": "renormalize"}  # spellings that saved adapters may have
BEFORE = {"share": 1.0, "drop_last": False}  # what saved adapters and rows mean that do not name them
OPTIMIZERS = ("adamw", "adam", "sgd", "nesterov")


@dataclass(frozen=True)
class Hyperparameter:
    """One named setting of a method.

    default: used where nothing is chosen; must work without a validation set.
    meaning: one line for `onceclip methods NAME`.
    search: the values tried when it is chosen on validation rows; empty if it never is.
    low, high: allowed range of a number (both ends included).
    choices: allowed values of a text.
    retrain: whether another value needs another training; False for what no trained parameter depends on.
    """

    default: Value
    meaning: str
    search: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = float("inf")
    choices: tuple[str, ...] = ()
    retrain: bool = True

    def parse(self, name: str, value: Value) -> Value:
        """Turn a number, or a text from the command line, into a valid value.

        Raises MethodError if it is not one.
        """
        kind = type(self.default)
        try:
            if kind is bool:
                parsed: Value = _BOOLEANS[str(value).lower()]
            elif kind is int and float(value) != int(float(value)):
                raise ValueError
            else:
                parsed = int(float(value)) if kind is int else kind(value)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise MethodError(f"{name}={value} is not {_KINDS[kind]}: {self.meaning}") from None
        if self.choices and parsed not in self.choices:
            raise MethodError(f"{name}={value} is not one of {', '.join(self.choices)}: {self.meaning}")
        if kind in (int, float) and not self.low <= float(parsed) <= self.high:
            raise MethodError(f"{name}={value} is not between {self.low:g} and {self.high:g}: {self.meaning}")
        return parsed


_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


class Configurable:
    """A thing with a name and hyperparameters, which are given by keyword and read as attributes.

    name: of the thing. hyperparameters: its settings by name; `values` are theirs. given: the names of those that
    were named, by hand, by a preset or by a choice, and are no defaults. source: what its docstring says behind
    "Source:", on one line.
    """

    name: ClassVar[str]
    hyperparameters: ClassVar[Mapping[str, Hyperparameter]] = {}
    source: ClassVar[str] = ""
    values: dict[str, Any]
    given: frozenset[str]

    def __init_subclass__(cls) -> None:
        paragraph = inspect.cleandoc(cls.__doc__ or "").partition("\n\nSource: ")[2].partition("\n\n")[0]
        if paragraph and "source" not in vars(cls):
            cls.source = " ".join(paragraph.split()).rstrip(".")
        for name, setting in vars(cls).get("hyperparameters", {}).items():
            if not isinstance(setting, Hyperparameter):
                raise MethodError(f"hyperparameter {name} of {cls.__name__} is {setting!r}: write "
                                  "Hyperparameter(default, meaning)")
            own = getattr(cls, name, None)
            if name in Configurable.__annotations__ or not (own is None or isinstance(own, property)):
                raise MethodError(f"hyperparameter {name} of {cls.__name__} has the name of something else that it "
                                  "has, which would be read in its place: give it another name")
            for value in (setting.default, *setting.search):
                setting.parse(name, value)

    def __init__(self, **values: Value) -> None:
        for name in values:
            if name not in self.hyperparameters:
                raise UnknownName(unknown("hyperparameter", name, self.hyperparameters, f" of {self.name}"))
        self.values = {name: setting.parse(name, values.get(name, setting.default))
                       for name, setting in self.hyperparameters.items()}
        self.given = frozenset(values)

    def __getattr__(self, name: str) -> Any:
        """Hyperparameters read as attributes: `self.beta`."""
        values = self.__dict__.get("values", {})
        if name in values:
            return values[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def with_values(self, **values: Any) -> Self:
        """Copy with some hyperparameters replaced."""
        other = copy.copy(self)
        other.values = {**self.values, **values}
        other.given = self.given | values.keys()
        return other


class Trainable(Configurable):
    """What training needs to know of a method: its hyperparameters, its parameters, and the loss that trains them.

    name, hyperparameters: see `Configurable`.
    trained, solver: whether there are parameters to train, and by what: "gradient", "lbfgs" or "own", which is `solve`.
    inputs: the stored outputs that its head's rows are made of; of the embedding alone they are unit rows.
    state: names among its parameters that no gradient changes; `after_epoch` does.
    shares_steps: whether runs of it may be trained together; not where a step of one keeps a machine busy.
    """

    trained: ClassVar[bool] = False
    solver: ClassVar[str] = "gradient"
    inputs: ClassVar[tuple[str, ...]] = (EMBEDDING,)
    state: ClassVar[tuple[str, ...]] = ()
    shares_steps: ClassVar[bool] = True

    @property
    def plain_loss(self) -> bool:
        """Whether its loss is the mean cross-entropy plus `penalty`, which a stack of runs can compute for all."""
        return type(self).loss is Trainable.loss

    @property
    def training_values(self) -> tuple[tuple[str, Any], ...]:
        """Names and values of the hyperparameters of which another value needs another training."""
        return tuple((name, self.values[name]) for name, setting in self.hyperparameters.items() if setting.retrain)

    @property
    def has_penalty(self) -> bool:
        """Whether it writes a `penalty`."""
        return type(self).penalty is not Trainable.penalty

    def work(self, task: Task) -> int:
        """Multiply-adds of one pass over the support."""
        return task.work

    def initial(self, prepared: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Start values of the trained parameters; none for a training-free method."""
        return {}

    def training_head(self, prepared: Any, parameters: dict[str, Tensor]) -> Head:
        """The head that training sees, where it is not the one that predicts."""
        raise NotImplementedError

    def penalty(self, prepared: Any, parameters: dict[str, Tensor]) -> Tensor | float:
        """What training adds to the mean cross-entropy."""
        return 0.0

    def after_epoch(self, prepared: Any, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """What its `state` is after an epoch of training."""
        return {}

    def loss(self, prepared: Any, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
             generator: torch.Generator) -> Tensor:
        """What a training step lowers; write it anew only where it is no mean cross-entropy plus `penalty`.

        A hyperparameter `smoothing` is the share of every label that all classes have alike.
        rows: (n, width) input of the training head. label: (n,). generator: for noise such as dropout.
        """
        logits = self.training_head(prepared, parameters)(rows)
        smoothing = float(self.values.get("smoothing", 0.0))
        return cross_entropy(logits, label, label_smoothing=smoothing) + self.penalty(prepared, parameters)

    def training_rows(self, task: Task, prepared: Any, epoch: int) -> tuple[Tensor, Tensor]:
        """The rows (n, width) that one epoch is made of, and their labels (n,); views of embeddings take turns."""
        of_embeddings = self.inputs == (EMBEDDING,)
        return task.support.epoch(epoch) if of_embeddings else self.rows_of(task.support), task.support.label

    def recorded_rows(self, task: Task, prepared: Any, epoch: int) -> tuple[Tensor, Tensor] | None:
        """Rows that its training head takes and their classes, whose loss after an epoch is recorded; None for none."""
        return self.training_rows(task, prepared, epoch)

    def rows_of(self, rows: Rows) -> Tensor:
        """What its heads take of some rows: unit embeddings, or other outputs as they are."""
        return rows.unit if self.inputs == (EMBEDDING,) else rows.input(self.inputs)

    def batches(self, count: int, order: torch.Generator) -> Sequence[Tensor | slice]:
        """Positions among `count` training rows for every step of one epoch; equally many in all epochs."""
        size = int(self.values.get("batch_size", 0)) or count
        if size >= count:
            return [slice(None)]
        steps = torch.randperm(count, generator=order).split(size)
        return steps[:count // size] if self.values.get("drop_last") else steps

    def solve(self, prepared: Any, start: dict[str, Tensor], progress: Callable[[float], None]) -> dict[str, Tensor]:
        """Fitted parameters from the start values, of a method whose `solver` is "own"."""
        raise NotImplementedError(f"{type(self).__name__} has a solver of its own and does not define it")


def recipe(learning_rate: float, epochs: int, batch_size: int = 0, weight_decay: float = 0.01, epsilon: float = 1e-8,
           optimizer: str = "adamw", schedule: str = "cosine", momentum: float = 0.9,
           warmup: int = 0, rates: tuple[float, ...] = ()) -> dict[str, Hyperparameter]:
    """Optimizer and schedule, as named hyperparameters with these defaults. rates: learning rates that are tried."""
    return {
        "learning_rate": Hyperparameter(learning_rate, "step size at the start of the schedule", rates, high=1000.0),
        "epochs": Hyperparameter(epochs, "passes over the support rows", low=0, high=1e6),
        "batch_size": Hyperparameter(batch_size, "rows per step; 0 takes all of them", high=2**31),
        "weight_decay": Hyperparameter(weight_decay, "decay of the parameters; decoupled in adamw", high=100.0),
        "optimizer": Hyperparameter(optimizer, "what makes steps of gradients; nesterov is sgd with Nesterov's "
                                    "momentum", choices=OPTIMIZERS),
        "schedule": Hyperparameter(schedule, "how the step size falls", choices=SCHEDULES),
        "epsilon": Hyperparameter(epsilon, "epsilon of adam and adamw", high=1.0),
        "momentum": Hyperparameter(momentum, "momentum of sgd and nesterov", high=1.0),
        "warmup": Hyperparameter(warmup, "steps over which the schedule `warmup` rises", high=1e9),
    }


def keeping(keep: str = "last", patience: int = 0) -> dict[str, Hyperparameter]:
    """Which epoch's parameters are kept, as named hyperparameters; without validation rows it is the last."""
    return {
        "keep": Hyperparameter(keep, "the epoch whose parameters stay: the last, or the best on validation rows",
                               choices=("last", "best")),
        "patience": Hyperparameter(patience, "epochs without a better one after which training ends; 0 for never",
                                   high=1e6),
    }


def linear_start(shape: tuple[int, int], generator: torch.Generator, like: Tensor) -> Tensor:
    """Weights (outputs, inputs) of a torch Linear layer: uniform within `1 / sqrt(inputs)`."""
    return _uniform(shape, 1 / math.sqrt(shape[1]), generator, like)


def linear_bias(outputs: int, inputs: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Biases (outputs,) of a torch Linear layer: uniform within `1 / sqrt(inputs)`."""
    return _uniform((outputs,), 1 / math.sqrt(inputs), generator, like)


def xavier_uniform(shape: tuple[int, int], generator: torch.Generator, like: Tensor) -> Tensor:
    """Weights (outputs, inputs), uniform within `sqrt(6 / (inputs + outputs))` (Glorot and Bengio, 2010)."""
    return _uniform(shape, math.sqrt(6 / sum(shape)), generator, like)


def xavier_normal(shape: tuple[int, int], generator: torch.Generator, like: Tensor, gain: float = 1.0) -> Tensor:
    """Weights (outputs, inputs), of deviation `gain sqrt(2 / (inputs + outputs))` (Glorot and Bengio, 2010)."""
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (gain * math.sqrt(2 / sum(shape)) * values).to(like)


def kaiming_normal(shape: tuple[int, int], generator: torch.Generator, like: Tensor) -> Tensor:
    """Weights (outputs, inputs), of deviation `sqrt(2 / inputs)` (He et al., ICCV 2015)."""
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (math.sqrt(2 / shape[1]) * values).to(like)


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator, like: Tensor) -> Tensor:
    return (bound * (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1)).to(like)
