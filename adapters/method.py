"""The one interface of every method. A new method is one file with one subclass, named in `METHODS`.

A training-free method writes `head`, or `terms` where its logits are `A + weight * B`. A trained one adds
`initial`, which gives the start values of its parameters; the engine does the rest. All tensors that a
method sees are the task's. Hyperparameters that are not whole are only calculated with, never branched on, where a
head or a penalty is made: the engine may put those of many runs in one tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError, UnknownName, unknown
from onceclip.adapters.heads import Head, Linear, Sum
from onceclip.adapters.task import EMBEDDING, Rows, Task
from onceclip.adapters.training.trainable import Hyperparameter, Value


class Method:
    """An algorithm that turns a task into a classifier.

    name, summary, family, source, equation: what `onceclip methods` prints.
    hyperparameters: its settings. presets: named sets of values for them, such as those of a paper's code.
    mixing: the hyperparameter that weighs B where the logits are `A + weight * B`.
    select: the policy by which hyperparameters are chosen where the user names none.
    trained, solver: whether there are parameters to train, and by what: "gradient", "lbfgs"
        or "own", which is `solve`.
    inputs: the stored outputs that its head's rows are made of; of the embedding alone they are unit rows.
    needs: what else a task must have, in words for people. wants_unlabelled: whether it reads rows without labels.
    needs_text: whether it looks at prompts; without, a task of class names alone will do.
    transfers: whether what it learns serves other classes; `for_classes` makes their head.
    state: names among its parameters that no gradient changes; `after_epoch` does.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    family: ClassVar[str]
    source: ClassVar[str]
    equation: ClassVar[str]
    hyperparameters: ClassVar[Mapping[str, Hyperparameter]] = {}
    presets: ClassVar[Mapping[str, Mapping[str, Value]]] = {}
    mixing: ClassVar[str | None] = None
    select: ClassVar[str] = "fixed"
    trained: ClassVar[bool] = False
    solver: ClassVar[str] = "gradient"
    needs_support: ClassVar[bool] = True
    needs_text: ClassVar[bool] = True
    inputs: ClassVar[tuple[str, ...]] = (EMBEDDING,)
    needs: ClassVar[str] = ""
    wants_unlabelled: ClassVar[bool] = False
    transfers: ClassVar[bool] = False
    state: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        if cls.presets and "preset" not in cls.hyperparameters:
            preset = Hyperparameter("none", "named values for the others; those given by hand win",
                                    choices=("none", *cls.presets))
            cls.hyperparameters = {"preset": preset, **cls.hyperparameters}

    def __init__(self, **values: Value) -> None:
        for name in values:
            if name not in self.hyperparameters:
                raise UnknownName(unknown("hyperparameter", name, self.hyperparameters, f" of {self.name}"))
        if self.presets:
            preset = str(self.hyperparameters["preset"].parse("preset", values.get("preset", "none")))
            values = {**self.presets.get(preset, {}), **values}
        self.values = {name: setting.parse(name, values.get(name, setting.default))
                       for name, setting in self.hyperparameters.items()}

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
        return other

    def prepare(self, task: Task) -> Any:
        """Work that no hyperparameter changes, done once for a task; handed to all methods below."""
        return task

    def initial(self, prepared: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Start values of the trained parameters; none for a training-free method."""
        return {}

    def head(self, prepared: Any, parameters: dict[str, Tensor]) -> Head:
        """The classifier's head for given parameters; differentiable in them."""
        if self.mixing is None:
            raise NotImplementedError(f"{type(self).__name__} defines neither head nor terms")
        first, second = self.terms(prepared, parameters)
        return Sum((first, second), (1.0, getattr(self, self.mixing)))

    def training_head(self, prepared: Any, parameters: dict[str, Tensor]) -> Head:
        """The head that training sees, where it is not the one that predicts."""
        return self.head(prepared, parameters)

    def terms(self, prepared: Any, parameters: dict[str, Tensor]) -> tuple[Head, Head]:
        """The two heads A and B where the logits are `A + weight * B`."""
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
        """The rows (n, width) that one epoch is made of, and their labels (n,)."""
        return task.support.epoch(epoch), task.support.label

    def rows_of(self, rows: Rows) -> Tensor:
        """What its heads take of some rows: unit embeddings, or other outputs as they are."""
        return rows.unit if self.inputs == (EMBEDDING,) else rows.input(self.inputs)

    def batches(self, count: int, order: torch.Generator) -> Sequence[Tensor | slice]:
        """Positions among `count` training rows for every step of one epoch; equally many in all epochs."""
        size = int(self.values.get("batch_size", 0)) or count
        return [slice(None)] if size >= count else torch.randperm(count, generator=order).split(size)

    def solve(self, prepared: Any, start: dict[str, Tensor], progress: Callable[[float], None]) -> dict[str, Tensor]:
        """Fitted parameters from the start values, of a method whose `solver` is "own"."""
        raise NotImplementedError(f"{type(self).__name__} has a solver of its own and does not define it")

    def leave_one_out(self, prepared: Any) -> tuple[Tensor, Tensor]:
        """Logits A and B (rows, classes) of each support image, as if that image were not in the support.

        Raises MethodError where that has no closed form.
        """
        raise MethodError(f"{self.name} has no leave-one-image-out form: use --select val or fixed")

    def fit(self, task: Task, seed: int = 0, progress: Callable[[float], None] | None = None) -> Classifier:
        """Fit with the present hyperparameters; `fit_selected` chooses them first.

        seed: of the start values and of the batch order of a trained method. progress: gets the fraction done.
        """
        from onceclip.adapters.training.engine import require_finite, train
        from onceclip.adapters.training.loop import Run, no_progress

        self.check(task)
        prepared = self.prepare(task)
        parameters = train([Run(self, task, prepared, seed)], progress or no_progress)[0]
        require_finite(self, parameters)
        return self.classifier(task, prepared, parameters)

    def classifier(self, task: Task, prepared: Any, parameters: dict[str, Tensor]) -> Classifier:
        """Wrap the head of fitted parameters."""
        with torch.no_grad():
            head = self.head(prepared, parameters)
        return Classifier(head, task.text.class_names, task.width(self.inputs), self.name, dict(self.values),
                          inputs=self.inputs, parameters=self.kept(prepared, parameters) if self.transfers else {})

    def kept(self, prepared: Any, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a classifier of a method that transfers keeps for `for_classes`; mostly the trained parameters."""
        return parameters

    def for_classes(self, task: Task, kept: dict[str, Tensor]) -> Head:
        """The head for other classes than those that it was fitted on, without training.

        task: their text, and the encoder's numbers; mostly without support. kept: what `kept` gave.
        """
        return self.head(self.prepare(task), kept)

    def check(self, task: Task) -> None:
        """Raise MethodError if the task lacks what the method needs."""
        if self.needs_support and not len(task.support):
            raise MethodError(f"{self.name} needs labelled training rows and the task has none: "
                              "use a store with a train split, or --method zero-shot")
        if self.needs_text and not len(task.text.embedding):
            raise MethodError(f"{self.name} needs prompts and the task has class names alone: add a text set, or use "
                              "--method linear-probe")
        for rows in (task.support, task.val):
            if rows is not None and self.inputs != (EMBEDDING,):
                rows.input(self.inputs)  # complains if an output is missing


def zero_shot_head(task: Task) -> Linear:
    """Zero-shot logits `s x . w_c + b`, the first term of most methods."""
    weights = task.zero_shot_weights
    return Linear(weights, weights.new_full((task.classes,), task.logit_bias) if task.logit_bias else None)
