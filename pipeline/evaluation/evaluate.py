"""Scoring fitted classifiers on a split of a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters import Classifier, SetRule, set_rule
from onceclip.adapters.cpu import threads_for
from onceclip.adapters.heads.batched import batched_logits
from onceclip.adapters.inference.base import INFERENCE
from onceclip.adapters.selection.calibration import KINDS
from onceclip.adapters.training.loop import no_progress
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.evaluation.intervals import row_interval, units_of
from onceclip.pipeline.evaluation.metrics import SetTally, Tally
from onceclip.pipeline.tasks.classes import names_of
from onceclip.pipeline.tasks.tasks import check_encoder, inputs_of
from onceclip.pipeline.words import listing
from onceclip.stores import Store, StoreMismatch

LEFT_BY = "left_by"  # among the scores of a classifier that a strategy left behind: the record of that


@dataclass(frozen=True)
class Evaluation:
    """One classifier on the labelled rows of one split.

    rows: (n,) positions in the store. label, predicted: (n,) positions in `candidates`, the names of the classes that
    were scored among. seconds: how long it took. sets: what was counted of prediction sets.
    """

    classifier: Classifier
    store: Store
    split: str
    rows: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    candidates: tuple[str, ...]
    tally: Tally
    seconds: float
    sets: tuple[SetTally, ...] = ()

    @property
    def right(self) -> np.ndarray:
        """Which rows were recognised: (n,) bool."""
        return self.predicted == self.label

    @property
    def unit(self) -> np.ndarray | None:
        """The group of each row as a number: (n,) int64, or None where rows have no groups."""
        return units_of(self.store.column("group")[self.rows])

    def as_values(self) -> dict[str, Any]:
        """All scores as JSON values; what each is, docs/evaluation.md says."""
        unit, names = self.unit, self.candidates
        wrong = self.tally.wrong.counted()
        return {
            **scores_of(self.classifier, self.store, self.split, self.tally, self.seconds),
            "interval": list(row_interval(self.right, unit)),
            "n_groups": None if unit is None else int(unit.max()) + 1,
            "per_class": per_class(names, self.tally.count.numpy(), self.tally.right.numpy(), wrong),
            **({"sets": [each.as_values() for each in self.sets], "calibrated_on": self.classifier.calibrated_on}
               if self.sets else {}),
            "confusions": [[names[true], names[predicted], number] for true, predicted, number in wrong.tolist()],
        }


def evaluate(classifier: Classifier, store: Store, split: str = "test", classes: Sequence[str] | None = None,
             among: Sequence[str] | None = None) -> dict[str, Any]:
    """Score a classifier on the labelled rows of one split: accuracy with its interval, NLL, ECE, counts and more.

    Arguments and failures as for `score`.

    Example:
        >>> scores = onceclip.evaluate(onceclip.adapters.ZeroShot().fit(task), store, split="test")
        >>> scores["n"], 0 <= scores["accuracy"] <= 1
        (48, True)
    """
    return score(classifier, store, split, classes, among).as_values()


def score(classifier: Classifier, store: Store, split: str = "test", classes: Sequence[str] | None = None,
          among: Sequence[str] | None = None, progress: Callable[[float], None] = no_progress,
          rules: Sequence[SetRule] = ()) -> Evaluation:
    """Score a classifier on the labelled rows of one split of a store, in one pass.

    classes: names of classes of the store; rows of others are left out. among: names of classes of the classifier
        that compete for a row, all of them by default. progress: is told the fraction of the rows that is done.
        rules: of prediction sets that are counted, which are of all classes.
    Classes are joined by name; the store may have fewer.
    Raises StoreMismatch if another encoder made the store, or it has classes that are not among them; TaskError if
    there is no labelled row, or the classifier was fitted on the store's test rows, which are to be scored.
    """
    begun = time.perf_counter()
    require_unseen(classifier, store, split)
    candidates = classifier.class_names if among is None else tuple(among)
    rows, label = _labelled(classifier, store, split, classes, candidates)
    if not len(rows):
        there = ", ".join(f"{name} {len(store.rows(name)):,}" for name in ("train", "val", "test"))
        of = "" if classes is None else f" of {listing(classes)}"
        raise TaskError(f"{store.path} has no labelled {split} image{of} (labelled images: {there}): evaluate on "
                        "another --split or store")
    _require_known(store, candidates, classifier.class_names)
    columns = columns_of(classifier, candidates)
    tally, predicted, done = Tally(len(candidates), temperature_of(classifier)), [], 0
    sets = tuple(map(SetTally, rules))
    keys = store.column("key")[rows] if sets else rows
    for (logits,) in logits_of([classifier], store, rows):
        behind = done + len(logits)
        chosen = logits if columns is None else logits[:, columns]
        for each in sets:
            each.add(logits, label[done:behind], keys[done:behind])
        predicted.append(tally.add(chosen, label[done:behind]).numpy().astype(np.int32))
        done = behind
        progress(done / len(rows))
    return Evaluation(classifier, store, split, rows, label.numpy(), np.concatenate(predicted), candidates, tally,
                      time.perf_counter() - begun, sets)


def require_unseen(classifier: Classifier, store: Store, split: str) -> None:
    """Raise TaskError for a classifier that was fitted on the rows that are to be scored."""
    made = classifier.provenance
    if split == "test" and made.get("store") == store.fingerprint and "test" in made.get("refit", {}).get("splits", ()):
        raise TaskError(f"the adapter was fitted on the test images of {store.path} (--refit all), so that they cannot "
                        "say how good it is: evaluate on another store")


def columns_of(classifier: Classifier, candidates: Sequence[str]) -> Tensor | None:
    """Which of a classifier's logits compete; None where all do, in their order."""
    if tuple(candidates) == classifier.class_names:
        return None
    place = {name: number for number, name in enumerate(classifier.class_names)}
    return torch.tensor([place[name] for name in candidates])


def evaluate_together(classifiers: Sequence[Classifier], store: Store, split: str = "test",
                      classes: Sequence[str] | None = None, keep: bool = False,
                      coverage: float | None = None) -> list[dict[str, Any]]:
    """Score classifiers of the same classes and inputs in one pass over the rows; what they share is computed once.

    classes: as for `score`. keep: add `predicted`, what each takes every row for: (n,) positions of its classes.
    coverage: add `sets`, what is counted of prediction sets, and `calibrated_on`; none of a classifier without scores.
    The scores are None where there is no labelled row.
    """
    begun, first = time.perf_counter(), classifiers[0]
    rows, label = _labelled(first, store, split, classes, first.class_names)
    for classifier in classifiers[1:]:
        check_encoder(classifier, store)
    tallies, done = [Tally(len(first.class_names), temperature_of(each)) for each in classifiers], 0
    predicted: list[list[np.ndarray]] = [[] for _ in classifiers]
    sets = [[] if coverage is None or not each.conformity else
            [SetTally(set_rule(each, coverage, kind)) for kind in KINDS] for each in classifiers]
    keys = store.column("key")[rows] if any(sets) else rows
    for pieces in logits_of(classifiers, store, rows):
        for tally, kept, counted, logits in zip(tallies, predicted, sets, pieces, strict=True):
            for each in counted:
                each.add(logits, label[done:done + len(logits)], keys[done:done + len(logits)])
            answers = tally.add(logits, label[done:done + len(logits)])
            if keep:
                kept.append(answers.numpy().astype(np.min_scalar_type(len(first.class_names))))
        done += len(logits)
    seconds = (time.perf_counter() - begun) / len(classifiers)
    found = [{**scores_of(classifier, store, split, tally, seconds),
              **({} if coverage is None else {"sets": [each.as_values() for each in counted],
                                              "calibrated_on": classifier.calibrated_on})}
             for classifier, tally, counted in zip(classifiers, tallies, sets, strict=True)]
    return [{**scores, "predicted": np.concatenate(kept) if kept else np.zeros(0, np.uint8)} if keep else scores
            for scores, kept in zip(found, predicted, strict=True)]


def logits_of(classifiers: Sequence[Classifier], store: Store, rows: np.ndarray) -> Iterator[Iterator[Tensor]]:
    """Piece by piece of the rows, the logits of every classifier."""
    first, heads = classifiers[0], [classifier.head for classifier in classifiers]
    for values in inputs_of(first, store, rows):
        queries = first.prepared(values)
        with threads_for(len(queries) * queries.shape[1] * max(head.width for head in heads) * len(heads)):
            yield batched_logits(heads, queries)


def _labelled(classifier: Classifier, store: Store, split: str, classes: Sequence[str] | None,
              candidates: Sequence[str]) -> tuple[np.ndarray, Tensor]:
    """Labelled rows of a split, and the position of the class of each among the candidates, joined by name."""
    check_encoder(classifier, store)
    rows = store.rows(split)
    labels = store.column("label")[rows]
    if classes is not None:
        chosen = np.isin(labels, [store.classes.index(name) for name in names_of(store, classes)])
        rows, labels = rows[chosen], labels[chosen]
    place = {name: number for number, name in enumerate(candidates)}
    _require_known(store, [store.classes[number] for number in np.unique(labels)], place)
    join = np.array([place.get(name, -1) for name in store.classes], dtype=np.int64)
    return rows, torch.from_numpy(join[labels])


def _require_known(store: Store, names: Sequence[str], place: Collection[str]) -> None:
    unknown = [name for name in names if name not in place]
    if unknown:
        raise StoreMismatch(f"{store.path} has classes that the adapter does not know: {listing(unknown)}; it "
                            f"knows {listing(list(place))}: evaluate on a store with the adapter's class names, or on "
                            "some of its classes (--classes)")


def per_class(names: Sequence[str], count: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> list[dict[str, Any]]:
    """Rows, recognised rows, recall and precision of every class.

    count, right: (classes,) rows of each class, and those of them that were recognised. wrong: (pairs, 3) of true
    class, predicted class and number. Recall is None for a class without rows, precision for one never predicted.
    """
    predicted = right + np.bincount(wrong[:, 1], wrong[:, 2], len(names)).astype(np.int64)
    return [{"class": name, "n": rows, "right": good, "recall": good / rows if rows else None,
             "precision": good / given if given else None}
            for name, rows, good, given in zip(names, count.tolist(), right.tolist(), predicted.tolist(), strict=True)]


def temperature_of(classifier: Classifier) -> float | None:
    """The temperature that was fitted for a classifier, or None."""
    return classifier.temperature if classifier.calibrated_on else None


def left_by(classifier: Classifier) -> dict[str, Any] | None:
    """The record of the strategy that left a classifier behind, if one did and the saved adapter has a whole record."""
    record = classifier.provenance.get(INFERENCE)
    return record if _is_record(record) else None


def _is_record(value: Any) -> bool:
    return (isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("fitted_on"), str)
            and isinstance(value.get("query", {}), dict) and ("on" not in value or _is_record(value["on"])))


def scores_of(classifier: Classifier, store: Store, split: str, tally: Tally, seconds: float) -> dict[str, Any]:
    """What a tally says, and of what, as JSON values; of a classifier that a strategy left behind, of which."""
    left = left_by(classifier)
    return {**tally.scores(), **tally.calibrated_scores(), "split": split, "n": tally.rows,
            "classes": int((tally.count > 0).sum()), "among": tally.classes, "method": classifier.method,
            "store": store.path, "store_fingerprint": store.fingerprint, "encoder": store.encoder["name"],
            "details": tally.details(), "seconds": seconds, **({LEFT_BY: left} if left else {})}
