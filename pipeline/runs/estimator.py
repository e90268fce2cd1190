"""The methods as a scikit-learn estimator, on embeddings that are arrays."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from onceclip.adapters import Classifier, Method, MethodError, Rows, Task, Text, fit_selected, method_class
from onceclip.adapters.classifier import to_device
from onceclip.adapters.ops import unit
from onceclip.adapters.selection.calibration import calibrated
from onceclip.adapters.selection.selection import default_policy, remarks_on
from onceclip.adapters.task import EMBEDDING
from onceclip.pipeline.errors import DeviceError, EstimatorError
from onceclip.pipeline.tasks.tasks import logit_numbers
from onceclip.pipeline.words import class_remarks
from onceclip.pipeline.workers.devices import CPU, training_device
from onceclip.stores import Store, open_store

_SELECT = ("fixed", "val", "loo")
_RECODED = ("inside of VotingClassifier, StackingClassifier or BaggingClassifier, which replace labels by 0, 1, 2 ... "
            "in sorted order, name them by these numbers")


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """Any method of onceclip as a scikit-learn classifier of raw embeddings.

    method: its name, as `onceclip methods` lists them, MODULE:CLASS of your own, or the class.
    text: what the prompts of each class embed to, a mapping from label to raw embeddings (dim,) or (prompts, dim), or
        an array (classes, dim) or (classes, prompts, dim) whose order `class_names` tells; labels that are not in `y`
        are left out. None: the class means of the training rows take the place of prompts, so that `zero-shot` is the
        nearest class mean.
    class_names: the label of each entry of a text that is an array.
    params: hyperparameters by name; the others have their defaults. seed: of the training and of the rows held out.
    select: "fixed"; "val", which chooses the hyperparameters that `params` leaves open on a `validation_fraction` of
        each class and then fits on all rows; "loo", on each row as if it were not there; or None for "loo" where the
        method can, there is a text and every class has four rows, else "fixed".
    logit_scale, logit_bias: the encoder's. encoder: its record in a store, kept in what `classifier_.save` writes.
    device: that trains it, "cpu", "cuda", "cuda:1", or "auto" for a GPU where there is one.

    classes_ (classes,): the labels, sorted. n_features_in_: dim. classifier_: the `Classifier`, which can be saved.
    select_: how hyperparameters were chosen. remarks_: what to know of it, such as that they are defaults.

    Example:
        >>> rows = store.rows("train")
        >>> labels = [store.classes[number] for number in store.column("label")[rows]]
        >>> estimator = onceclip.FewShotClassifier.from_store(store, "gda", params={"alpha": 2.0})
        >>> estimator.fit(store.embeddings(rows), labels).predict_proba(embeddings).shape
        (5, 4)
    """

    def __init__(self, method: str | type[Method] = "tip-adapter", *, text: Mapping[Hashable, Any] | Any | None = None,
                 class_names: Sequence[Hashable] | None = None, params: Mapping[str, Any] | None = None,
                 select: str | None = None, validation_fraction: float = 0.2, seed: int = 1, logit_scale: float = 100.0,
                 logit_bias: float = 0.0, encoder: Mapping[str, Any] | None = None, device: str = CPU) -> None:
        self.method = method
        self.text = text
        self.class_names = class_names
        self.params = params
        self.select = select
        self.validation_fraction = validation_fraction
        self.seed = seed
        self.logit_scale = logit_scale
        self.logit_bias = logit_bias
        self.encoder = encoder
        self.device = device

    @classmethod
    def from_store(cls, store: str | Path | Store, method: str | type[Method] = "tip-adapter", text: str = "default",
                   **others: Any) -> Self:
        """An estimator with the text set, the logit scale and the encoder of a store; labels are its class names."""
        store = store if isinstance(store, Store) else open_store(store)
        words = store.text(text).of_classes(store.classes)
        embedding = words.embedding.astype(np.float32)
        return cls(method, text={name: embedding[words.class_index == number]
                                 for number, name in enumerate(words.classes)},
                   **{**logit_numbers(store.encoder), "encoder": store.encoder, **others})

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803 - scikit-learn's name
        """Fit on raw embeddings (rows, dim) and labels (rows,) of any sortable type.

        Raises EstimatorError, a ValueError, if the text does not match the labels or the method needs more than
        embeddings. Warns of classes whose text is the same.
        """
        rows, y = validate_data(self, X, y, dtype="numeric")
        check_classification_targets(y)
        self.classes_, label = np.unique(column_or_1d(y, warn=True), return_inverse=True)
        if len(self.classes_) < 2:
            raise EstimatorError("a classifier needs two classes, and y has 1 class: give labelled rows of another one")
        if self.select not in (None, *_SELECT):
            raise EstimatorError(f"no selection {self.select!r}: there are: {', '.join(_SELECT)}")
        if not isinstance(self.seed, int | np.integer) or self.seed < 0:
            raise EstimatorError(f"seed {self.seed!r}: give a whole number from 0 up, with which a fit can be repeated")
        if not 0 < self.validation_fraction < 1:
            raise EstimatorError(f"validation_fraction {self.validation_fraction}: give a part of each class's rows, "
                                 "such as 0.2")
        if self.select == "loo" and self.text is None:
            raise EstimatorError("select='loo' needs a text: without one, each row is part of its class's mean")
        try:
            self.classifier_ = self._fitted(_rows(rows), torch.from_numpy(label.astype(np.int64)))
        except (MethodError, DeviceError) as error:
            raise EstimatorError(str(error)) from error
        return self

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        """Logits (rows, classes) of raw embeddings (rows, dim); of two classes their difference (rows,)."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Probabilities (rows, classes) of raw embeddings (rows, dim): the softmax of logits over temperature."""
        logits = torch.from_numpy(self._logits(X)) / self.classifier_.temperature
        return logits.softmax(dim=1).numpy()

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The most likely label (rows,) of each raw embedding (rows, dim)."""
        best = self._logits(X).argmax(axis=1)
        return self.classes_[best]

    def _logits(self, X: Any) -> np.ndarray:  # noqa: N803
        check_is_fitted(self)
        return self.classifier_.logits(_rows(validate_data(self, X, reset=False, dtype="numeric"))).double().numpy()

    def _fitted(self, rows: torch.Tensor, label: torch.Tensor) -> Classifier:
        method = method_class(self.method)(**dict(self.params or {}))
        if method.inputs != (EMBEDDING,):
            raise EstimatorError(f"{method.name} needs {method.needs}, and an estimator has embeddings alone: use "
                                 "`onceclip fit` on a store, or another method")
        if self.select == "val":
            held = _held_out(label.numpy(), self.validation_fraction, self.seed)
            task = self._task(Rows(rows[~held], label[~held]), Rows(rows[held], label[held]))
        else:
            task = self._task(Rows(rows, label))
        frozen = frozenset(self.params or ())
        self.select_ = self.select or ("fixed" if self.text is None else default_policy(method, task))
        self.remarks_ = [] if self.select == "fixed" else remarks_on(method, task, self.select_, frozen)
        where = training_device(self.device)
        found, = to_device([fit_selected(method, task.to(where), self.select_, frozen, self.seed).classifier], CPU)
        if self.text is not None or self.select == "val":  # else no row is unknown to its class's mean
            found = calibrated(found, method, task)
        if self.select == "val":
            again, = to_device([method.with_values(**found.hyperparameters)
                            .fit(self._task(Rows(rows, label)).to(where), self.seed)], CPU)
            found = replace(found, head=again.head, parameters=again.parameters)
        return replace(found, provenance={} if self.encoder is None else {"encoder": dict(self.encoder)})

    def _task(self, support: Rows, val: Rows | None = None) -> Task:
        prompts = self._prompts() if self.text is not None else _means(support, len(self.classes_))
        index = [torch.full((len(each),), number) for number, each in enumerate(prompts)]
        names = tuple(str(each) for each in self.classes_.tolist())
        return Task(Text(torch.cat(prompts), torch.cat(index), names), support, val,
                    logit_scale=float(self.logit_scale), logit_bias=float(self.logit_bias))

    def _prompts(self) -> list[torch.Tensor]:
        """The prompts (prompts, dim) of each class."""
        text: Any = self.text
        if not hasattr(text, "__len__"):
            raise EstimatorError(f"text is a {type(text).__name__}: give a mapping from label to embeddings, or make "
                                 "the estimator with FewShotClassifier.from_store")
        if not isinstance(text, Mapping):
            if self.class_names is None or len(self.class_names) != len(text):
                raise EstimatorError(f"text has {len(text)} entries: say with class_names which label each of them is "
                                     "of, or give a mapping from label to embeddings")
            text = dict(zip(self.class_names, text, strict=True))
        text = {key.item() if isinstance(key, np.generic) else key: value for key, value in text.items()}
        labels = self.classes_.tolist()
        missing = [each for each in labels if each not in text]
        if missing:
            raise EstimatorError(f"text has no entry for {', '.join(map(repr, missing[:8]))}; it has "
                                 f"{', '.join(map(repr, list(text)[:8]))}: name its entries as y names the classes; "
                                 f"{_RECODED}")
        if labels == list(range(len(labels))) and len(text) > 2 * len(labels) and all(
                isinstance(key, int) for key in text):
            raise EstimatorError(f"y has the classes 0 to {labels[-1]}, and text has {len(text)} whole numbers, which "
                                 f"may mean other classes: leave out of text what is not in y; {_RECODED}")
        prompts = [torch.from_numpy(np.atleast_2d(np.array(text[each], np.float32))) for each in labels]
        if any(each.ndim != 2 or each.shape[1] != self.n_features_in_ for each in prompts):
            raise EstimatorError(f"X has {self.n_features_in_} features, and text embeddings have shapes such as "
                                 f"{tuple(prompts[0].shape)}: both must come from one encoder")
        said = {str(name): each.numpy().tobytes() for name, each in zip(labels, prompts, strict=True)}
        for remark in class_remarks(said):
            warnings.warn(remark, stacklevel=4)
        return prompts


def _rows(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(values, np.float32))  # a copy, because torch warns of arrays that are read-only


def _means(support: Rows, classes: int) -> list[torch.Tensor]:
    """The mean of the unit rows of each class, (1, dim), as raw embeddings in the place of prompts."""
    return [unit(support.embedding)[support.label == number].mean(dim=0, keepdim=True) for number in range(classes)]


def _held_out(label: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Whether each row is held out (rows,) bool: a fraction of each class, at least one row of those that have two."""
    random, held = np.random.default_rng(seed), np.zeros(len(label), bool)
    for number in range(label.max() + 1):
        rows = np.flatnonzero(label == number)
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        held[random.permutation(rows)[:count]] = True
    return held
