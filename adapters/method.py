"""The one interface of every method. A new method is one file with one subclass, named in `METHODS`.

A training-free method writes `head`, or `terms` where its logits are `A + weight * B`. A trained one adds
`initial`, which gives the start values of its parameters; the engine does the rest. All tensors that a
method sees are the task's. Hyperparameters that are not whole are only calculated with, never branched on, where a
head or a penalty is made: the engine may put those of many runs in one tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError, UnknownName
from onceclip.adapters.heads import Head, Linear, Sum, mixed
from onceclip.adapters.heads.packing import plugin_heads, require_sound
from onceclip.adapters.ops import unit
from onceclip.adapters.plugin import full_name, is_plugin
from onceclip.adapters.task import EMBEDDING, Stream, Task
from onceclip.adapters.training.engine import require_finite, train
from onceclip.adapters.training.loop import Progress, Run, no_progress
from onceclip.adapters.training.trainable import BEFORE, RENAMED, Hyperparameter, Trainable, Value


class Method(Trainable):
    """An algorithm that turns a task into a classifier.

    name, summary, family, source, equation: what `onceclip methods` prints.
    hyperparameters, solver, inputs, state: see `Trainable`. trained: whether it writes `initial`.
    presets: named sets of values for hyperparameters, such as those of a paper's code.
    mixing: the hyperparameter that weighs B where the logits are `A + weight * B`.
    needs: what else a task must have, in words for people. wants_unlabelled: whether it reads rows without labels.
    wants_tower: whether it encodes prompts anew, with the text tower of a store.
    needs_text: whether it looks at prompts; without, a task of class names alone will do.
    transfers: whether what it learns serves other classes; `for_classes` makes their head.
    weighs: whether the weights of support rows count; a method that does not weigh rows refuses rows that have any, and
        so does one that is trained on a loss of its own, or by lbfgs, where they would not count.
    any_inputs: whether its `inputs` may be others, such as the embedding of another encoder, since no text is compared.
    needs_bank: what it keeps of a bank of other images: "", "image", or "caption" for both.
    from_bank: whether it cannot do without a bank, to keep or to have support rows from.

    Example:
        >>> method = onceclip.adapters.TipAdapter(beta=5.5)  # any other is fitted in the same way
        >>> method.fit(task).logits(embeddings).shape
        torch.Size([5, 4])
    """

    summary: ClassVar[str] = ""
    family: ClassVar[str] = ""
    equation: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Mapping[str, Value]]] = {}
    mixing: ClassVar[str | None] = None
    needs_support: ClassVar[bool] = True
    needs_text: ClassVar[bool] = True
    needs: ClassVar[str] = ""
    wants_unlabelled: ClassVar[bool] = False
    wants_tower: ClassVar[bool] = False
    transfers: ClassVar[bool] = False
    weighs: ClassVar[bool] = False
    needs_bank: ClassVar[str] = ""
    from_bank: ClassVar[bool] = False
    any_inputs: ClassVar[bool] = False

    def work(self, task: Task) -> int:
        """Multiply-adds of one pass of the support over the classes, and of their prompts through the text tower."""
        return task.work + (task.tower.work * task.classes if self.wants_tower and task.tower else 0)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not hasattr(cls, "name"):
            cls.name = cls.__name__
        if not cls.trained and cls.initial is not Trainable.initial:
            cls.trained = True
        if cls.trained and cls.mixing in cls.hyperparameters and cls._trains_with_mixing():
            raise MethodError(f"{cls.__name__} is trained, and its mixing weight {cls.mixing} is chosen afterwards: "
                              "write a training_head that does not read it, and retrain=False; or leave mixing out")
        if cls.presets or "presets" in vars(cls):  # those of a class that this one derives from are not its own
            others = {name: each for name, each in cls.hyperparameters.items() if name != "preset"}
            preset = Hyperparameter("none", "named values for the others; those given by hand win",
                                    choices=("none", *cls.presets), retrain=False)
            cls.hyperparameters = {"preset": preset, **others} if cls.presets else others

    @classmethod
    def _trains_with_mixing(cls) -> bool:
        """Whether its training reads the mixing weight, of which another value would then need another training."""
        sees_head = cls.training_head is Method.training_head and cls.loss is Trainable.loss and cls.solver != "own"
        return sees_head or cls.hyperparameters[str(cls.mixing)].retrain

    def __init__(self, **values: Value) -> None:
        for name in values:
            if RENAMED.get(name) in self.hyperparameters:
                raise UnknownName(f"the hyperparameter {name} of {self.name} is called {RENAMED[name]}: write "
                                  f"{RENAMED[name]}={values[name]}")
        if self.presets:
            preset = str(self.hyperparameters["preset"].parse("preset", values.get("preset", "none")))
            values = {**self.presets.get(preset, {}), **values}
        super().__init__(**values)

    @classmethod
    def stored_values(cls, values: Mapping[str, Value]) -> dict[str, Value]:
        """What the hyperparameters of a saved adapter or a row mean, which may be older than some names."""
        return {**{name: value for name, value in BEFORE.items() if name in cls.hyperparameters},
                **{RENAMED.get(name, name): value for name, value in values.items()}}

    def with_inputs(self, inputs: tuple[str, ...]) -> Self:
        """Copy that takes other outputs of every row. Raises MethodError if the method compares rows with the text."""
        if not self.any_inputs:
            raise MethodError(f"{self.name} takes its own inputs alone: use labelling-network or linear-probe-preproj")
        other = copy.copy(self)
        other.inputs = inputs  # type: ignore[misc] # of this object, in the place of its class's
        return other

    @property
    def of_task(self) -> frozenset[str]:
        """Names of hyperparameters whose values in the fitted classifier follow from the task, and are not these."""
        return frozenset()

    def suited(self, task: Task) -> Self:
        """This method with the defaults that a task asks for, in place of those that nobody gave; mostly as it is."""
        return self

    def prepare(self, task: Task) -> Any:
        """Work that no hyperparameter changes, done once for a task; handed to all methods below."""
        return task

    def head(self, prepared: Any, parameters: dict[str, Tensor]) -> Head:
        """The classifier's head for given parameters; differentiable in them."""
        if self.mixing is None:
            raise MethodError(f"{type(self).__name__} defines neither head nor terms")
        first, second = self.terms(prepared, parameters)
        return Sum((first, second), (1.0, getattr(self, self.mixing)))

    def training_head(self, prepared: Any, parameters: dict[str, Tensor]) -> Head:
        """The head that training sees, where it is not the one that predicts."""
        return self.head(prepared, parameters)

    def terms(self, prepared: Any, parameters: dict[str, Tensor]) -> tuple[Head, Head]:
        """The two heads A and B where the logits are `A + weight * B`."""
        raise MethodError(f"{type(self).__name__} has a mixing and defines no terms")

    def leave_one_out(self, prepared: Any) -> tuple[Tensor, Tensor]:
        """Logits A and B (rows, classes) of each support image, as if that image were not in the support.

        Only for a task that `check_left_out` lets pass.
        """
        raise NotImplementedError

    def left_out_logits(self, prepared: Any) -> Tensor:
        """`A + weight * B` of `leave_one_out`: (rows, classes)."""
        first, second = self.leave_one_out(prepared)
        return first + (float(self.values[self.mixing]) if self.mixing else 1.0) * second

    def check_left_out(self, task: Task) -> None:
        """Raise MethodError unless `leave_one_out` has a closed form, here and for this support."""
        raise MethodError(f"{self.name} has no leave-one-image-out form: use --select val or fixed")

    def fit(self, task: Task, seed: int = 0, progress: Progress = no_progress) -> Classifier:
        """Fit with the present hyperparameters; `fit_selected` chooses them first.

        seed: of the start values and of the batch order of a trained method. progress: gets the fraction done.
        """
        self.check(task)
        method = self.suited(task)
        return method.fit_prepared(task, method.prepare(task), seed, progress)

    def fit_prepared(self, task: Task, prepared: Any, seed: int, progress: Progress = no_progress) -> Classifier:
        """Fit as it is, with what `prepare` made of the task. Raises MethodError if a training diverges."""
        parameters, = train([Run(self, task, prepared, seed)], progress)
        require_finite(self, parameters)
        return self.classifier(task, prepared, parameters)

    def update(self, state: dict[str, Tensor], task: Task, seed: int = 0) -> tuple[Classifier, dict[str, Tensor]]:
        """Learn classes that arrive, without the rows of earlier ones; by default from the rows of this session alone.

        state: what the last session gave, empty at the first. task: the text of all classes seen so far, those of
            earlier sessions first and in the same order, and the support rows of this session.
        A method that keeps more than its classifier writes this anew: what it keeps is the second thing it gives.
        """
        return self.fit(task, seed), {}

    def classifier(self, task: Task, prepared: Any, parameters: dict[str, Tensor]) -> Classifier:
        """Wrap the head of fitted parameters."""
        with torch.no_grad():
            head = self.head(prepared, parameters)
        width = task.width(self.inputs)
        if plugin_heads(head) or is_plugin(type(self)):
            require_sound(head, self._some_rows(task, width), task.classes)
        return Classifier(head, task.text.class_names, width, full_name(type(self)), dict(self.values),
                          inputs=self.inputs, parameters=self.kept(prepared, parameters) if self.transfers else {})

    def _some_rows(self, task: Task, width: int) -> Tensor:
        """Rows (n, width) to try a head on: of the support, or random ones where there are too few in memory."""
        if len(task.support) > 1 and not isinstance(task.support, Stream):
            return self.rows_of(task.support)
        return unit(torch.randn(4, width, generator=torch.Generator().manual_seed(0))).to(task.text.embedding)

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
        if self.wants_tower and task.tower is None:
            raise MethodError(f"{self.name} needs the encoder's text tower and the task has none: write it into the "
                              "store with `onceclip text STORE --tower`")
        in_training = self.solver == "own" or (self.solver == "gradient" and self.plain_loss)
        if task.support.weight is not None and not (self.weighs and (in_training or not self.trained)):
            raise MethodError(f"{self.name} cannot weigh its support rows, and these have weights: take a source "
                              "without weights (weighted=false), or gda, tip-adapter, clip-adapter, zs-lp or taskres")
        if self.needs_bank and task.bank is None:
            raise MethodError(f"{self.name} looks things up in a bank of other images and the task has none: add "
                              "--bank STORE, a store of the same encoder")
        if self.needs_bank == "caption" and task.bank is not None and task.bank.caption is None:
            raise MethodError(f"{self.name} needs a caption of every image of the bank and it has none: "
                              "`onceclip text BANK --captions FILE` embeds them")
        for rows in (task.support, task.val):
            if rows is not None and self.inputs != (EMBEDDING,):
                rows.input(self.inputs)  # complains if an output is missing
        kinds = {each.dtype for each in (task.text.embedding, *(rows.embedding for rows in (task.support, task.val) if
                                                                not (rows is None or isinstance(rows, Stream))))}
        if len(kinds) > 1 or not kinds <= {torch.float32, torch.float64}:
            raise MethodError(f"text and rows are of {' and '.join(sorted(map(str, kinds)))}: give all of them as "
                              "float32, such as with .float(), or all as float64")


def zero_shot_head(task: Task) -> Linear:
    """Zero-shot logits `s x . w_c + b`, the first term of most methods."""
    return Linear(task.zero_shot_weights, _bias(task))


def class_head(task: Task, vectors: Tensor) -> Linear:
    """The head of other class vectors (classes, dim) than those of the text: `s x . v_c + b`."""
    return Linear(task.logit_scale * vectors, _bias(task))


def _bias(task: Task) -> Tensor | None:
    return task.text.embedding.new_full((task.classes,), task.logit_bias) if task.logit_bias else None


def share_setting(share: float, by_images: bool = False) -> dict[str, Hyperparameter]:
    """The hyperparameter of a `Shared` method, with this default, which may be that of one image per class."""
    more = " (by default the more, the more images a class has: this is of one)" if by_images else ""
    return {"share": Hyperparameter(share, "how much of training counts: 0 is zero-shot, 1 the trained head alone"
                                    f"{more}", high=1.0, retrain=False)}


class Shared(Method):
    """A method, mostly a trained one, whose logits are mixed with those of zero-shot: `z + share (t - z)`.

    A subclass writes `training_head`, which makes t and which alone training sees; so another share asks for no other
    training. What its `prepare` gives is the task, has it as `task`, or is a tuple that begins with it. Few images make
    a training forget what the encoder knows; a part of it gains more than the whole. Where `by_images`, the default
    share is that of one image per class, and of n images its odds are n^2 times as high.

    Source: Robust Fine-tuning of Zero-shot Models (Wortsman et al., CVPR 2022), of logits in place of weights.
    """

    mixing = "share"
    by_images: ClassVar[bool] = False

    @property
    def of_task(self) -> frozenset[str]:
        return frozenset({"share"} - self.given if self.by_images else ())

    def suited(self, task: Task) -> Self:
        if not self.of_task:
            return self
        count = torch.bincount(task.support.label, weights=task.support.weight)
        if not (count > 0).any():
            return self
        images = 1 / float((1 / count[count > 0].double()).mean())  # the harmonic mean: what few images say is unsure
        share = float(self.hyperparameters[self.mixing].default)
        return self.with_values(share=images**2 * share / (images**2 * share + 1 - share))

    def terms(self, prepared: Any, parameters: dict[str, Tensor]) -> tuple[Head, Head]:
        zero_shot, trained = self._both(prepared, parameters)
        return zero_shot, Sum((trained, zero_shot), (1.0, -1.0))

    def head(self, prepared: Any, parameters: dict[str, Tensor]) -> Head:
        return mixed(*self._both(prepared, parameters), self.share)

    def _both(self, prepared: Any, parameters: dict[str, Tensor]) -> tuple[Head, Head]:
        task = prepared[0] if isinstance(prepared, tuple) else getattr(prepared, "task", prepared)
        return zero_shot_head(task), self.training_head(prepared, parameters)


def require_images(method: Method, task: Task) -> None:
    """Raise MethodError if a method that reads images without labels has none, not even of the support."""
    if not len(task.support) and (task.unlabelled is None or not len(task.unlabelled)):
        raise MethodError(f"{method.name} needs images without labels and the task has none: use a store with a train "
                          "split, or --method zero-shot")


def require_two_images(task: Task) -> None:
    """Raise MethodError if a class has a single support image, so that leaving it out leaves the class without any.

    Rows with weights, or of guessed labels, say nothing of how well a class is known, so they are refused too.
    """
    if task.support.weight is not None:
        raise MethodError("leave-one-image-out takes all support rows alike and these have weights: use --select fixed")
    if (torch.bincount(task.support.label, minlength=task.classes) == 1).any():
        raise MethodError("leave-one-image-out leaves a class of one image without any: use 2 shots or more, or "
                          "--select val")
