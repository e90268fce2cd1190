"""A strategy of inference on the rows of a store: what it may see is read, and what was done is recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters import Classifier, MethodError
from onceclip.adapters.cpu import threads_for
from onceclip.adapters.inference import Inference, Inferred
from onceclip.adapters.inference.anomaly import anomaly_score, normal_class
from onceclip.adapters.inference.base import INFERENCE, TRAIN
from onceclip.adapters.plugin import full_name
from onceclip.adapters.training.loop import no_progress
from onceclip.pipeline.evaluation.batches import Batches, order_hash, orders_for, permutation
from onceclip.pipeline.evaluation.evaluate import Evaluation, columns_of, left_by, logits_of
from onceclip.pipeline.evaluation.metrics import DETECTION, SCORES, Marks, Tally, auroc, average_precision
from onceclip.pipeline.evaluation.queries import (
    OUTPUTS,
    keys_hash,
    normal_name,
    normal_queries,
    queries_from,
    require_several,
    several_queries,
    support_of,
    task_for,
)
from onceclip.pipeline.evaluation.statistics import compare, mean_and_spread, row_interval
from onceclip.pipeline.tasks.draws import NO_ROWS, tied
from onceclip.pipeline.tasks.tasks import draw_unlabelled
from onceclip.stores import Store

_AT_ONCE = 4096  # rows that are scored at a time


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
                rows = draw_unlabelled(store, NO_ROWS, 1, tied(store, "val", "test")).rows
                unlabelled = queries_from(classifier, store, rows) if len(rows) else None
            fitted = {"store": store.fingerprint, "split": "train", "n": len(rows),
                      "keys": keys_hash(store.column("key")[rows])}
            if strategy.wants_normal:
                fitted["class"] = normal_name(strategy, classifier)
        with torch.no_grad(), threads_for(_work(classifier, len(unlabelled or ()))):
            task, text = task_for(classifier, store, strategy.wants_tower,
                                  support_of(classifier, store) if strategy.wants_support else NO_ROWS)
            prepared = strategy.prepare(classifier, task, unlabelled)
        return cls(strategy, classifier, store, prepared, fitted, text)

    def infer(self, rows: np.ndarray) -> Inferred:
        """Read rows of the store. rows: (n,) positions, in the order of a stream.

        Rows with views or patches are read a few at a time.
        """
        strategy, classifier = self.strategy, self.classifier
        with torch.no_grad(), threads_for(_work(classifier, len(rows))):
            if strategy.sees not in OUTPUTS:
                return strategy.answer(classifier, queries_from(classifier, self.store, rows), self.prepared)
            logits, done = torch.empty(len(rows), len(classifier.class_names), dtype=classifier.head.dtype), 0
            abnormal = []
            for queries in several_queries(classifier, self.store, rows, strategy.sees):
                found = strategy.answer(classifier, queries, self.prepared)
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
        strategy, keys, further = self.strategy, self.store.column("key")[rows], {}
        if strategy.sees in OUTPUTS:
            output = self.store.outputs[OUTPUTS[strategy.sees]]
            further["output"] = {"number": output.shape[0], **output.spec}
        support = {"support": self.classifier.provenance["support"]["fingerprint"]} if strategy.wants_support else {}
        return {"name": full_name(type(strategy)), "hyperparameters": dict(strategy.values), "sees": strategy.sees,
                "transductive": strategy.transductive, "prior": strategy.prior, "fitted_on": strategy.fitted_on,
                "fit": self.fitted, **support, "text": self.text, "diagnostics": dict(diagnostics),
                "query": {"store": self.store.fingerprint, "split": split, "n": len(rows), "keys": keys_hash(keys),
                          **further}, **({"on": before} if before else {})}


@dataclass(frozen=True)
class Read:
    """A classifier that read a split of a store by a strategy.

    evaluation: with the strategy; of batches, all their rows one after the other; of orders, the first. values: scores
    as JSON values, with `inference`, which says what was done and what the classifier reaches alone. classifier: what
    the strategy left behind, or None.
    """

    evaluation: Evaluation
    values: dict[str, Any]
    classifier: Classifier | None = None


def read(alone: Evaluation, strategy: Inference, batches: Batches | None = None, orders: Sequence[int] | None = None,
         progress: Callable[[float], None] = no_progress, marks: Marks | None = None) -> Read:
    """Read the rows that a classifier was scored on by a strategy: all together, in batches, or as a stream in orders.

    alone: of the classifier by itself. orders: seeds of the orders of a stream, as of `orders_for`. progress: is told
        the fraction that is done. marks: which pixels of the rows are abnormal, for a strategy that says where in an
        image; of rows that are read all together.
    Raises MethodError if the strategy cannot work with the classifier or the store.
    """
    if strategy.sees in OUTPUTS:
        require_several(alone.store, strategy.sees, alone.split, strategy.name)
    if batches is not None:
        return _read_batches(alone, strategy, batches, progress)
    if seeds := orders_for(strategy, orders, batches=False):
        return _read_orders(alone, strategy, seeds, progress)
    begun = time.perf_counter()
    session = Session.begin(_with_progress(strategy, progress), alone.classifier, alone.store)
    inferred = session.infer(alone.rows)
    evaluation = _scored(alone, [inferred.logits], [np.arange(len(alone.rows))], begun)
    record, left = session.record(alone.split, alone.rows, inferred.diagnostics), inferred.classifier
    if left is not None:
        left = replace(left, provenance={**left.provenance, INFERENCE: record})
    values, beside = evaluation.as_values(), _beside(alone)
    detection = _detection(alone, strategy, inferred.logits)
    if detection:
        values, beside = {**values, **detection[0]}, {**beside, **detection[1]}
    if marks is not None:
        if detection is None or inferred.abnormal is None:
            raise MethodError(f"{strategy.name} with these hyperparameters does not say which patches are abnormal: "
                              "change them, or leave --masks out")
        values |= marks.scores(inferred.abnormal.numpy())
    values[INFERENCE] = {**record, "alone": beside, "difference": compare(evaluation.right, alone.right, alone.unit)}
    return Read(evaluation, values, left)


def _read_batches(alone: Evaluation, strategy: Inference, batches: Batches,
                  progress: Callable[[float], None]) -> Read:
    """The same, one batch at a time: accuracies are means over the batches, with Student's intervals over them."""
    begun, session = time.perf_counter(), Session.begin(strategy, alone.classifier, alone.store)
    dealt = batches.deal(alone.label)

    def logits() -> Iterator[Tensor]:
        for number, places in enumerate(dealt, 1):
            yield session.infer(alone.rows[places]).logits
            progress(number / len(dealt))

    evaluation = _scored(alone, logits(), dealt, begun)
    ends = np.cumsum([len(places) for places in dealt])[:-1]
    accuracies = np.array([right.mean() for right in np.split(evaluation.right, ends)])
    others = np.array([alone.right[places].mean() for places in dealt])
    own, beside = mean_and_spread(accuracies), mean_and_spread(others)
    record = {**session.record(alone.split, evaluation.rows, {}),
              "batches": {**batches.as_values(), "dealt": len(dealt)}, "spread": own["spread"],
              "alone": {**beside, "accuracy": beside["mean"]},
              "difference": mean_and_spread(accuracies - others, -1.0)}
    return Read(evaluation, {**evaluation.as_values(), "accuracy": own["mean"], "interval": own["interval"],
                             INFERENCE: record})


def _read_orders(alone: Evaluation, strategy: Inference, seeds: Sequence[int],
                 progress: Callable[[float], None]) -> Read:
    """The same as a stream, anew in each order, without memory of another; scores are means over the orders.

    What is said of single classes and pairs is the first order's. The ends of intervals are means over the orders, too;
    `spread` is the standard deviation of the accuracies, p the largest of the orders'.
    """
    record: dict[str, Any] = {}
    found: list[Evaluation] = []
    orders: list[dict[str, Any]] = []

    def tell(number: int, done: float) -> None:
        progress((number + done) / len(seeds))

    for number, seed in enumerate(seeds):
        begun, order = time.perf_counter(), permutation(seed, len(alone.rows))
        session = Session.begin(_with_progress(strategy, partial(tell, number)), alone.classifier, alone.store)
        inferred = session.infer(alone.rows[order])
        scored = _scored(alone, [inferred.logits], [order], begun)
        found.append(replace(scored, rows=alone.rows, label=alone.label, predicted=scored.predicted[np.argsort(order)]))
        record = record or session.record(alone.split, alone.rows, inferred.diagnostics)
        orders.append({"seed": seed, "permutation": order_hash(order), "accuracy": float(found[-1].right.mean())})
    progress(1.0)
    tallies = [each.tally.scores() for each in found]
    compared = [compare(each.right, alone.right, alone.unit) for each in found]
    accuracies = [each["accuracy"] for each in orders]
    difference = {**compared[0], "difference": fmean(each["difference"] for each in compared),
                  "difference_interval": _mean_ends([each["difference_interval"] for each in compared]),
                  "p": max(each["p"] for each in compared)}
    values = {**found[0].as_values(),
              **{name: None if tallies[0][name] is None else fmean(each[name] or 0.0 for each in tallies)
                 for name in SCORES},
              "interval": _mean_ends([row_interval(each.right, each.unit) for each in found]),
              INFERENCE: {**record, "alone": _beside(alone), "orders": orders, "difference": difference,
                          "spread": stdev(accuracies) if len(accuracies) > 1 else None}}
    return Read(found[0], values)


def _scored(alone: Evaluation, logits: Iterable[Tensor], places: Sequence[np.ndarray], begun: float) -> Evaluation:
    """The evaluation of logits (n, classes) of rows at places (n,) among those of another one, piece by piece."""
    columns, tally, predicted = columns_of(alone.classifier, alone.candidates), Tally(len(alone.candidates)), []
    for place, answers in zip(places, logits, strict=True):
        label = torch.from_numpy(alone.label[place])
        for own, piece in zip(label.split(_AT_ONCE), answers.split(_AT_ONCE), strict=True):
            chosen = piece if columns is None else piece[:, columns]
            predicted.append(tally.add(chosen.float(), own).numpy().astype(np.int32))
    order = np.concatenate(places)
    return replace(alone, rows=alone.rows[order], label=alone.label[order], predicted=np.concatenate(predicted),
                   tally=tally, seconds=time.perf_counter() - begun)


def _beside(alone: Evaluation) -> dict[str, Any]:
    """What the classifier reaches by itself, as it stands beside what it reaches with a strategy."""
    values = alone.as_values()
    return {name: values[name] for name in ("accuracy", "interval", "macro_recall", "nll", "ece")}


def _mean_ends(intervals: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(each[0] for each in intervals), fmean(each[1] for each in intervals)]


def _with_progress(strategy: Inference, progress: Callable[[float], None]) -> Inference:
    """A copy of a strategy that tells the fraction done."""
    copy = strategy.with_values()
    copy.progress = progress
    return copy


def _detection(alone: Evaluation, strategy: Inference,
               logits: Tensor) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Area under the ROC curve and average precision of abnormal images, with a strategy and alone, as JSON values.

    logits: (n, classes) of the classifier, of the rows of the evaluation. None for a strategy that knows of no normal
    class, or where that does not compete.
    """
    rows = normal_rows(alone, strategy)
    if rows is None:
        return None
    normal = normal_class(alone.classifier.class_names, strategy.values["normal"])

    def areas(pieces: Iterable[Tensor]) -> dict[str, Any]:
        score = torch.cat([anomaly_score(piece, normal) for piece in pieces]).double().numpy()
        return dict(zip(DETECTION, (auroc(score, ~rows), average_precision(score, ~rows)), strict=True))

    return areas(logits.split(_AT_ONCE)), areas(piece for (piece,) in logits_of(
        [alone.classifier], alone.store, alone.rows))


def normal_rows(alone: Evaluation, strategy: Inference) -> np.ndarray | None:
    """Which rows of an evaluation are of the normal class, (n,) bool; None as of `_detection`."""
    if "normal" not in strategy.values or (name := normal_name(strategy, alone.classifier)) not in alone.candidates:
        return None
    return alone.label == alone.candidates.index(name)


def _work(classifier: Classifier, rows: int) -> int:
    return rows * classifier.dim * max(classifier.head.width, classifier.dim)
