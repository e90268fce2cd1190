"""A strategy of inference on the rows of a store: what it may see is read, and what was done is recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters import Classifier, MethodError, Rows, Task, Text
from onceclip.adapters.cpu import threads_for
from onceclip.adapters.inference import Inference, Inferred, Queries
from onceclip.adapters.inference.base import INFERENCE, TRAIN
from onceclip.adapters.ops import unit
from onceclip.adapters.plugin import full_name
from onceclip.adapters.task import EMBEDDING
from onceclip.adapters.text import RULES
from onceclip.adapters.training.loop import no_progress
from onceclip.pipeline.evaluation.batches import Batches
from onceclip.pipeline.evaluation.evaluate import Evaluation, columns_of, left_by
from onceclip.pipeline.evaluation.intervals import compare, mean_and_spread
from onceclip.pipeline.evaluation.localization import Marks
from onceclip.pipeline.evaluation.metrics import Tally
from onceclip.pipeline.evaluation.several import (
    OUTPUTS,
    detection_of,
    normal_name,
    normal_queries,
    output_spec,
    require_several,
    several_queries,
)
from onceclip.pipeline.tasks.draws import Draw
from onceclip.pipeline.tasks.tasks import draw_unlabelled, inputs_of, logit_numbers, task_of
from onceclip.pipeline.tasks.ties import tied, ties_of
from onceclip.stores import Store
from onceclip.stores.identity import digest

_AT_ONCE = 4096  # rows that are scored at a time
NOTHING = Draw(np.zeros(0, dtype=np.int64), ())


@dataclass(frozen=True)
class Session:
    """A strategy that is prepared to read rows of a store with a classifier.

    prepared: what its `prepare` gave. fitted: JSON values that say which train rows it was fitted on, or None.
    text: fingerprint of the text set whose prompts it could see, or None.
    """

    strategy: Inference
    classifier: Classifier
    store: Store
    prepared: Any
    fitted: dict[str, Any] | None
    text: str | None

    @classmethod
    def begin(cls, strategy: Inference, classifier: Classifier, store: Store) -> Session:
        """Read the text and, for a strategy that is fitted on them, train rows without their labels.

        Raises MethodError if the strategy lacks something, and what reading raises.
        """
        unlabelled, fitted = None, None
        if strategy.fitted_on == TRAIN:
            if strategy.wants_normal:
                unlabelled, rows = normal_queries(strategy, classifier, store)
            else:
                rows = draw_unlabelled(store, NOTHING, 1).rows
                unlabelled = queries_from(classifier, store, rows) if len(rows) else None
            fitted = {"store": store.fingerprint, "split": "train", "n": len(rows),
                      "keys": keys_hash(store.column("key")[rows])}
            if strategy.wants_normal:
                fitted["class"] = normal_name(strategy, classifier)
        with torch.no_grad(), threads_for(_work(classifier, len(unlabelled or ()))):
            task, text = task_for(classifier, store, strategy.wants_tower,
                                  support_of(classifier, store) if strategy.wants_support else NOTHING)
            prepared = strategy.prepare(classifier, task, unlabelled)
        return cls(strategy, classifier, store, prepared, fitted, text)

    def infer(self, rows: np.ndarray) -> Inferred:
        """Read rows of the store. rows: (n,) positions, in the order of a stream.

        Rows with views or patches are read a few at a time.
        """
        strategy, classifier = self.strategy, self.classifier
        with torch.no_grad(), threads_for(_work(classifier, len(rows))):
            if strategy.sees not in OUTPUTS:
                return strategy.infer(classifier, queries_from(classifier, self.store, rows), self.prepared)
            logits, done = torch.empty(len(rows), len(classifier.class_names), dtype=classifier.head.dtype), 0
            abnormal = []
            for queries in several_queries(classifier, self.store, rows, strategy.sees):
                found = strategy.infer(classifier, queries, self.prepared)
                logits[done:done + len(queries)] = found.logits
                if found.abnormal is not None:
                    abnormal.append(found.abnormal.float())
                done += len(queries)
                strategy.progress(done / len(rows))
            return Inferred(logits, abnormal=torch.cat(abnormal) if abnormal else None)

    def record(self, split: str, rows: np.ndarray, diagnostics: Mapping[str, Any]) -> dict[str, Any]:
        """What was done, as JSON values, for a result row and for what is saved.

        `on` is the record of the strategy that left the classifier behind, if one did.
        """
        before = left_by(self.classifier)
        strategy, keys = self.strategy, self.store.column("key")[rows]
        output = {"output": output_spec(self.store, strategy.sees)} if strategy.sees in OUTPUTS else {}
        support = {"support": self.classifier.provenance["support"]["fingerprint"]} if strategy.wants_support else {}
        return {"name": full_name(type(strategy)), "hyperparameters": dict(strategy.values), "sees": strategy.sees,
                "transductive": strategy.transductive, "prior": strategy.prior, "fitted_on": strategy.fitted_on,
                "fit": self.fitted, **support, "text": self.text, "diagnostics": dict(diagnostics),
                "query": {"store": self.store.fingerprint, "split": split, "n": len(rows), "keys": keys_hash(keys),
                          **output}, **({"on": before} if before else {})}


@dataclass(frozen=True)
class Read:
    """A classifier that read a split of a store by a strategy, and alone.

    evaluation: with the strategy; of batches, all their rows one after the other. alone: the classifier by itself, on
    the rows of the split. record: what was done, as JSON values. classifier: what the strategy left behind, or None.
    accuracies: of each batch, with the strategy and alone: two of (batches,), or None where the split was one set.
    detection: how well images of the normal class are told from others, with the strategy and alone, or None.
    """

    evaluation: Evaluation
    alone: Evaluation
    record: dict[str, Any]
    classifier: Classifier | None = None
    accuracies: tuple[np.ndarray, np.ndarray] | None = None
    detection: tuple[dict[str, Any], dict[str, Any]] | None = None

    def as_values(self) -> dict[str, Any]:
        """The scores of the evaluation, with `inference`, which has those of the classifier alone beside them.

        Of batches, `accuracy` is the mean over the batches, and its interval Student's over them.
        """
        values, alone = self.evaluation.as_values(), self.alone.as_values()
        beside: dict[str, Any] = {name: alone[name] for name in ("accuracy", "interval", "macro_recall", "nll", "ece")}
        if self.detection:
            values, beside = {**values, **self.detection[0]}, {**beside, **self.detection[1]}
        if self.accuracies is None:
            return {**values, INFERENCE: {**self.record, "alone": beside, "difference": compare(
                self.evaluation.right, self.alone.right, self.alone.unit)}}
        own, others = (mean_and_spread(each) for each in self.accuracies)
        record = {**self.record, "spread": own["spread"], "alone": {**others, "accuracy": others["mean"]},
                  "difference": mean_and_spread(self.accuracies[0] - self.accuracies[1], -1.0)}
        return {**values, "accuracy": own["mean"], "interval": own["interval"], INFERENCE: record}


def read(alone: Evaluation, strategy: Inference, batches: Batches | None = None,
         progress: Callable[[float], None] = no_progress, marks: Marks | None = None) -> Read:
    """Read the rows that a classifier was scored on by a strategy, all together or in batches.

    alone: of the classifier by itself. progress: is told the fraction that is done. marks: which pixels of the rows
        are abnormal, for a strategy that says where in an image; of rows that are read all together.
    Raises MethodError if the strategy cannot work with the classifier or the store.
    """
    begun, classifier, store = time.perf_counter(), alone.classifier, alone.store
    if strategy.sees in OUTPUTS:
        require_several(store, strategy.sees, alone.split, strategy.name)
    if batches is None:
        strategy = told(strategy, progress)
    session = Session.begin(strategy, classifier, store)
    columns = columns_of(classifier, alone.candidates)
    dealt = [np.arange(len(alone.rows))] if batches is None else batches.deal(alone.label)
    tally, predicted, accuracies = Tally(len(alone.candidates)), [], []
    for number, places in enumerate(dealt):
        inferred = session.infer(alone.rows[places])
        label = torch.from_numpy(alone.label[places])
        found = score_logits(tally, inferred.logits, label, columns)
        predicted.append(found)
        accuracies.append((float((found == alone.label[places]).mean()), float(alone.right[places].mean())))
        if batches is not None:
            progress((number + 1) / len(dealt))
    places = np.concatenate(dealt)
    rows = alone.rows[places]
    diagnostics = inferred.diagnostics if batches is None else {}
    record = session.record(alone.split, rows, diagnostics)
    evaluation = replace(alone, rows=rows, label=alone.label[places], predicted=np.concatenate(predicted), tally=tally,
                         seconds=time.perf_counter() - begun)
    if batches is not None:
        record["batches"] = {**batches.as_values(), "dealt": len(dealt)}
        own, others = np.array(accuracies).T
        return Read(evaluation, alone, record, accuracies=(own, others))
    left = inferred.classifier
    if left is not None:
        left = replace(left, provenance={**left.provenance, INFERENCE: record})
    detection = detection_of(alone, strategy, inferred.logits)
    if marks is not None:
        if detection is None or inferred.abnormal is None:
            raise MethodError(f"{strategy.name} with these hyperparameters does not say which patches are abnormal: "
                              "change them, or leave --masks out")
        detection = {**detection[0], **marks.scores(inferred.abnormal.numpy())}, detection[1]
    return Read(evaluation, alone, record, left, detection=detection)


def score_logits(tally: Tally, logits: Tensor, label: Tensor, columns: Tensor | None) -> np.ndarray:
    """Count logits (n, classes) in, piece by piece, and give the predicted classes (n,).

    columns: of the classes that compete, or None for all.
    """
    found = []
    for piece, own in zip(logits.split(_AT_ONCE), label.split(_AT_ONCE), strict=True):
        chosen = piece if columns is None else piece[:, columns]
        found.append(tally.add(chosen.float(), own).numpy().astype(np.int32))
    return np.concatenate(found)


def told(strategy: Inference, progress: Callable[[float], None]) -> Inference:
    """A copy of a strategy that tells the fraction done."""
    copy = strategy.with_values()
    copy.progress = progress
    return copy


def support_of(classifier: Classifier, store: Store) -> Draw:
    """The labelled rows that a classifier was fitted on, as its record has them; none where it was fitted without any.

    Raises MethodError if the store is not that which it was fitted on, with all its labels.
    """
    made, label = classifier.provenance, store.column("label")
    support = made.get("support") or {}
    rows, listed = store.rows("train"), support.get("keys")
    rows = rows[label[rows] < len(classifier.class_names)]
    if not listed or not len(rows):
        return NOTHING
    keys = store.column("key")[rows]
    kept = np.isin(keys, listed) if listed != "all" else ~np.logical_or(
        *ties_of(store, rows, tied(store, store.rows("test")) | tied(store, store.rows("val"))))
    found = Draw(rows[kept], tuple(keys[kept].tolist()))
    if (support.get("fingerprint"), made.get("store")) == (found.fingerprint, store.fingerprint):
        return found
    raise MethodError("the labelled images that the adapter was fitted on, and all their labels, are read from the "
                      f"store that it was fitted on, and those of {store.path} are others: name that store")


def task_for(classifier: Classifier, store: Store, tower: bool = False, support: Draw = NOTHING
             ) -> tuple[Task, str | None]:
    """A task without labelled rows but those given, and the fingerprint of its text set or None.

    It has the text of a classifier's classes, and the encoder's numbers, as far as the store has them.
    The text set is that which the classifier was fitted with, else the default one. Where the store has none for all
    of its classes, the text is names alone. tower: add the encoder's text tower.
    """
    made = classifier.provenance.get("text") or {}
    name = made["name"] if made.get("name") in store.texts else "default"
    if name in store.texts:
        words = store.text(name)
        if set(classifier.class_names) <= set(words.classes):
            return task_of(store, words.of_classes(classifier.class_names), made.get("class_weights", RULES[0]),
                           support, tower=tower), words.fingerprint
    return names_alone(classifier, store.dim, **logit_numbers(store.encoder)), None


def names_alone(classifier: Classifier, dim: int, **numbers: Any) -> Task:
    """A task of class names without any prompt. numbers: of the encoder's logits."""
    nothing = torch.zeros(0, dim)
    index = torch.zeros(0, dtype=torch.int64)
    return Task(Text(nothing, index, classifier.class_names), Rows(nothing, index), **numbers)


def queries_from(classifier: Classifier, store: Store, rows: np.ndarray) -> Queries:
    """What a strategy sees of some rows of a store, read in pieces: never their labels.

    Raises MethodError for rows with NaN or infinity.
    """
    dtype = classifier.head.dtype
    embedding = torch.empty(len(rows), store.dim, dtype=dtype)
    own = classifier.inputs == (EMBEDDING,)
    inputs = None if own else torch.empty(len(rows), classifier.dim, dtype=dtype)
    done = 0
    if inputs is None:
        for values in inputs_of(classifier, store, rows):
            embedding[done:done + len(values)] = classifier.prepared(values)
            done += len(values)
        return Queries(embedding)
    for piece, values in store.pieces(rows):
        embedding[done:done + len(piece)] = unit(torch.from_numpy(values.astype(np.float32)).to(dtype))
        done += len(piece)
    done = 0
    for values in inputs_of(classifier, store, rows):
        inputs[done:done + len(values)] = classifier.prepared(values)
        done += len(values)
    return Queries(embedding, inputs)


def keys_hash(keys: Sequence[str] | np.ndarray) -> str:
    """Identity of keys in their order: 32 hexadecimal digits."""
    return digest("\n".join(map(str, keys)).encode()).hex()


def _work(classifier: Classifier, rows: int) -> int:
    return rows * classifier.dim * max(classifier.head.width, classifier.dim)
