"""The one interface of every inference strategy: how a fitted classifier reads rows, without their labels.

A strategy is one file with one subclass of `Inference` (or of `Inductive`), named in `INFERENCES`. It works on every
fitted classifier, because it takes from it two things alone:

- `log_scores`: the classifier's logits, in the precision of its head. Where a formula has the probabilities of
  zero-shot, `softmax(s x . w_c)`, their softmax stands; of a zero-shot classifier it is the same. A temperature, which
  a calibrated classifier has for the probabilities that it reports, is left out: with it no paper's zero-shot numbers
  would be met. Where a formula has cosines with class vectors, `similarities` are made of the logits.
- `prototypes`: unit class vectors w_c beside which images lie. They are the text's of the task; where that has no
  prompts, those of a linear head without a bias, which is one vector per class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.cpu import threads_for
from onceclip.adapters.errors import MethodError
from onceclip.adapters.heads import Head, Linear, Sum
from onceclip.adapters.heads.batched import elements_at_once
from onceclip.adapters.heads.linear import as_linear
from onceclip.adapters.ops import unit
from onceclip.adapters.plugin import full_name
from onceclip.adapters.task import Task
from onceclip.adapters.training.loop import Progress, no_progress
from onceclip.adapters.training.trainable import Configurable, Hyperparameter

SEES = ("set", "views", "stream", "patches")
QUERY, TRAIN = "query", "train"
INFERENCE = "inference"  # among the values of a classifier that a strategy left behind: the strategy's name


@dataclass(frozen=True)
class Queries:
    """Rows that a classifier is to read; never their labels.

    embedding: (n, dim), unit image vectors: the whole set, a batch of it, or a stream in its order.
    inputs: (n, width), what the head takes of the same rows where that is not the embedding, else None.
    views: (n, views, dim), unit; the plain image first, or None.
    patches: (n, patches, dim), unit, or None.

    Of views and patches, which are read one by one, the caller passes as many rows at a time as memory allows.
    """

    embedding: Tensor
    inputs: Tensor | None = None
    views: Tensor | None = None
    patches: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embedding)

    def of(self, rows: Tensor) -> Queries:
        """Some of the rows, in the order of positions (m,) int64."""
        return Queries(*(None if each is None else each[rows]  # type: ignore[arg-type]
                         for each in (self.embedding, self.inputs, self.views, self.patches)))


@dataclass(frozen=True)
class Inferred:
    """What a strategy made of the queries.

    logits: (n, classes), one row per query in their order, whose softmax are its probabilities.
    classifier: one that reads rows one by one, which the strategy leaves behind, or None.
    diagnostics: JSON values for the result row, such as a number of steps.
    abnormal: (n, patches), how abnormal each patch is, of strategies that say where in an image, or None.
    """

    logits: Tensor
    classifier: Classifier | None = None
    diagnostics: dict[str, Any] = field(default_factory=dict)
    abnormal: Tensor | None = None


class Inference(Configurable, ABC):
    """A way to read rows with a classifier that is fitted already.

    name, summary, source, equation: what `onceclip methods` prints. hyperparameters: its settings; see `Configurable`.
    sees: what it looks at: "set" (all rows together), "views" or "patches" (of each row by itself), or "stream" (rows
        in an order, each with a memory of those before it).
    prior: what it assumes of how frequent the classes are: "uniform", "none", "estimated" or "given".
    wants_normal: whether the train rows that it prepares with are those of the normal class alone, with their patches.
    leaves_classifier: whether it leaves one behind that reads rows one by one, and can be saved.
    wants_tower: whether it encodes prompts anew, with the text tower of a store.
    progress: is told the fraction done by strategies that take long; the caller may set it.

    It keeps nothing between calls.
    """

    summary: ClassVar[str] = ""
    equation: ClassVar[str] = ""
    sees: ClassVar[str] = "set"
    wants_normal: ClassVar[bool] = False
    wants_tower: ClassVar[bool] = False
    prior: str = "none"
    leaves_classifier: ClassVar[bool] = False
    progress: Progress = staticmethod(no_progress)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = cls.__name__
        if cls.sees not in SEES:
            raise MethodError(f"{cls.__name__}.sees is {cls.sees!r}: give one of {', '.join(SEES)}")

    @property
    def fitted_on(self) -> str:
        """Whose rows, without labels, it fits a classifier on: "train", "query", or "nothing"."""
        return "nothing"

    @property
    def wants_support(self) -> bool:
        """Whether its task has to have the labelled rows that the classifier was fitted on."""
        return False

    @property
    def transductive(self) -> bool:
        """Whether the answer for a row depends on other query rows."""
        return self.sees in ("set", "stream")

    def prepare(self, classifier: Classifier, task: Task, unlabelled: Queries | None = None) -> Any:
        """Work that no query changes, done once; handed to `infer`.

        unlabelled: train rows without labels, if there are any.
        """
        return task

    @abstractmethod
    def infer(self, classifier: Classifier, queries: Queries, prepared: Any) -> Inferred:
        """Read the queries. prepared: what `prepare` gave, mostly the task.

        Raises MethodError for queries or a classifier that it cannot work with.
        """

    def run(self, classifier: Classifier, queries: Queries, task: Task, unlabelled: Queries | None = None) -> Inferred:
        """Prepare and infer in one call.

        Example:
            >>> from onceclip.adapters.inference import INFERENCES, queries_of
            >>> zero_shot = onceclip.adapters.ZeroShot().fit(task)
            >>> INFERENCES["dn"](fit_on="query").run(zero_shot, queries_of(zero_shot, embeddings), task).logits.shape
            torch.Size([5, 4])
        """
        with torch.no_grad(), threads_for(len(queries) * classifier.dim * max(classifier.head.width, classifier.dim)):
            return self.answer(classifier, queries, self.prepare(classifier, task, unlabelled))

    def answer(self, classifier: Classifier, queries: Queries, prepared: Any) -> Inferred:
        """What `infer` gives. Raises MethodError if that is no Inferred with logits (n, classes)."""
        found, shape = self.infer(classifier, queries, prepared), (len(queries), len(classifier.class_names))
        if not isinstance(found, Inferred) or found.logits.shape != shape:
            what = f"logits of shape {tuple(found.logits.shape)}" if isinstance(found, Inferred) else (
                f"a {type(found).__name__}")
            raise MethodError(f"infer of {self.name} gives {what}: give Inferred(logits) with logits of shape {shape}")
        return found


def fit_setting(default: str = TRAIN) -> dict[str, Hyperparameter]:
    """The hyperparameter of an `Inductive` strategy, with this default."""
    return {"fit_on": Hyperparameter(default, "rows without labels that it is fitted on: those of the train split, or "
                                     "the queries themselves, which makes it transductive", choices=(TRAIN, QUERY))}


class Inductive(Inference):
    """A strategy that fits a classifier on rows without labels, which then reads each row by itself.

    Its hyperparameters have those of `fit_setting`. Fitted on train rows it can be saved and trusted like any adapter.
    """

    leaves_classifier = True

    @property
    def fitted_on(self) -> str:
        return str(self.fit_on)

    @property
    def transductive(self) -> bool:
        return self.fitted_on == QUERY

    @abstractmethod
    def fit(self, classifier: Classifier, rows: Queries, task: Task) -> Classifier:
        """The classifier that the rows ask for; mostly made by `extended`."""

    def prepare(self, classifier: Classifier, task: Task, unlabelled: Queries | None = None) -> Classifier | Task:
        if self.fitted_on == QUERY:
            return task
        if unlabelled is None or not len(unlabelled):
            raise MethodError(f"{self.name} is fitted on train rows without labels, and there are none: use a store "
                              "with a train split, or fit_on=query")
        return self.fit(classifier, unlabelled, task)

    def infer(self, classifier: Classifier, queries: Queries, prepared: Classifier | Task) -> Inferred:
        fitted = prepared if isinstance(prepared, Classifier) else self.fit(classifier, queries, prepared)
        return Inferred(log_scores(fitted, queries), fitted)


class Joint(Inductive):
    """A strategy whose answers for the rows that it is fitted on together are more than what is left behind of them.

    A subclass writes `solve` in place of `fit`. replaces: whether its head stands in place of the classifier's own.
    Else a hyperparameter `text_weight`, where there is one, multiplies the classifier's logits beside it.
    """

    replaces: ClassVar[bool] = False

    @abstractmethod
    def solve(self, classifier: Classifier, queries: Queries, task: Task) -> tuple[Tensor, Head, dict[str, Any]]:
        """Logits (n, classes) of the rows, the head that is left behind of them, and diagnostics."""

    def fit(self, classifier: Classifier, rows: Queries, task: Task) -> Classifier:
        require_embeddings(self, classifier, rows)
        return self._left_behind(classifier, self.solve(classifier, rows, task)[1])

    def infer(self, classifier: Classifier, queries: Queries, prepared: Classifier | Task) -> Inferred:
        if isinstance(prepared, Classifier):
            return super().infer(classifier, queries, prepared)
        logits, head, diagnostics = self.solve(classifier, queries, prepared)
        return Inferred(logits, self._left_behind(classifier, head) if queries.inputs is None else None, diagnostics)

    def _left_behind(self, classifier: Classifier, head: Head) -> Classifier:
        if self.replaces:
            return replaced(self, classifier, head)
        return extended(self, classifier, head, float(self.values.get("text_weight", 1.0)))


def queries_of(classifier: Classifier, embedding: Tensor, inputs: Tensor | None = None) -> Queries:
    """Queries of raw embeddings (n, dim). inputs: (n, width), raw, where the classifier takes other outputs.

    Raises MethodError for rows that the classifier does not take, or that hold NaN or infinity.
    """
    if inputs is None:
        return Queries(classifier.prepared(embedding))
    return Queries(unit(embedding.to(classifier.head.dtype)), classifier.prepared(inputs))


def log_scores(classifier: Classifier, queries: Queries) -> Tensor:
    """Logits (n, classes), in the precision of the head: log-probabilities but for a constant per row.

    They are new: a strategy may change them in place.
    """
    head, rows = classifier.head, queries.embedding if queries.inputs is None else queries.inputs
    step = max(1, elements_at_once(rows.device.type) // max(head.width, rows.shape[1]))
    first = head(rows[:step])
    if len(rows) <= step:
        return first.clone()
    logits = first.new_empty(len(rows), first.shape[1])
    logits[:step] = first
    for start in range(step, len(rows), step):
        logits[start:start + step] = head(rows[start:start + step])
    return logits


def prototypes(classifier: Classifier, task: Task) -> Tensor:
    """Unit class vectors w_c (classes, dim), in the precision of the head and in the order of its classes.

    Raises MethodError where neither the task's text nor the head has any.
    """
    if len(task.text.embedding):
        return unit(task.text.class_weights).to(classifier.head.dtype)
    linear = as_linear(classifier.head)
    if linear is not None and linear.weight.shape[-1] == task.dim and (
            linear.bias is None or bool((linear.bias == linear.bias[0]).all())):
        return unit(linear.weight)
    raise MethodError("this strategy needs class vectors of the text, and neither the task nor the head of "
                      f"{classifier.method} has any: name a store with a text set of these classes")


def similarities(classifier: Classifier, queries: Queries, task: Task) -> Tensor:
    """What stands for the cosines of rows and class vectors: (n, classes).

    Logits leave open a constant per row: here it is such that the mean over the classes is that of the cosines, and
    differences between classes are those of the logits over the scale. Of a zero-shot classifier they are the cosines.
    """
    scores = log_scores(classifier, queries).div_(task.logit_scale)
    mean = queries.embedding @ prototypes(classifier, task).mean(dim=0)
    return scores.add_((mean - scores.mean(dim=1)).unsqueeze(1))


def extended(strategy: Inference, classifier: Classifier, head: Head, weight: float = 1.0) -> Classifier:
    """The classifier of logits `weight log_scores + head`: linear where both are.

    It has no temperature, and is marked as made by the strategy, so that it serves no other classes.
    """
    both: Head = Sum((classifier.head, head), (weight, 1.0))
    return replaced(strategy, classifier, as_linear(both) or both)


def require_embeddings(strategy: Inference, classifier: Classifier, queries: Queries) -> None:
    """Raise MethodError for a classifier of other outputs, on which no head of embeddings can be put."""
    if queries.inputs is not None:
        raise MethodError(f"{strategy.name} fits an adapter on embeddings, and {classifier.method} takes "
                          f"{', '.join(classifier.inputs)}: use an adapter of embeddings")


def with_bias(strategy: Inference, classifier: Classifier, bias: Tensor) -> Classifier:
    """The classifier of logits `log_scores + bias`. bias: (classes,)."""
    return extended(strategy, classifier, Linear(bias.new_zeros(len(bias), classifier.dim), bias))


def replaced(strategy: Inference, classifier: Classifier, head: Head) -> Classifier:
    """The classifier of another head in place of its own, marked as made by the strategy."""
    record = {"name": full_name(type(strategy)), "hyperparameters": dict(strategy.values), "prior": strategy.prior,
              "fitted_on": strategy.fitted_on}
    return replace(classifier, head=head, hyperparameters={**classifier.hyperparameters, INFERENCE: record["name"]},
                   provenance={**classifier.provenance, INFERENCE: record}, parameters={}, temperature=1.0,
                   calibrated_on="", conformity={})


