"""Scoring fitted classifiers on a split of a store, on base and new classes, and on several stores."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters import Classifier, SetRule, method_class, set_rule
from onceclip.adapters.cpu import threads_for
from onceclip.adapters.heads.batched import batched_logits
from onceclip.adapters.inference.base import INFERENCE
from onceclip.adapters.selection.automatic import AVERAGES
from onceclip.adapters.selection.calibration import KINDS
from onceclip.adapters.training.loop import no_progress
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.evaluation.metrics import SCORES, SetTally, Tally
from onceclip.pipeline.evaluation.statistics import row_interval, units_of
from onceclip.pipeline.tasks.draws import ALL, BASE, NEW, names_of
from onceclip.pipeline.tasks.tasks import check_encoder, for_text, inputs_of
from onceclip.pipeline.words import counts, listing
from onceclip.stores import Store, StoreMismatch
from onceclip.stores.schema import SPLITS

LEFT_BY = "left_by"  # among the scores of a classifier that a strategy left behind: the record of that
NEW_SCORES = ("class_set", "accuracy_new", "harmonic_mean", "n_test_new", "classes_new")


@dataclass(frozen=True)
class Evaluation:
    """One classifier on the labelled rows of one split.

    rows: (n,) positions in the store. label, predicted: (n,) positions in `candidates`, the names of the classes that
    were scored among; predicted is empty where it was not kept. seconds: how long it took. sets: what was counted of
    prediction sets.
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

    def scores(self) -> dict[str, Any]:
        """The scores, and of what, as JSON values; of a classifier that a strategy left behind, of which."""
        left, tally, store = left_by(self.classifier), self.tally, self.store
        return {**tally.scores(), **tally.calibrated_scores(), "split": self.split, "n": tally.rows,
                "classes": int((tally.count > 0).sum()), "among": tally.classes, "method": self.classifier.method,
                "store": store.path, "store_fingerprint": store.fingerprint, "encoder": store.encoder["name"],
                "details": tally.details(), "seconds": self.seconds, **({LEFT_BY: left} if left else {})}

    def counted_sets(self) -> dict[str, Any]:
        """What was counted of prediction sets, as JSON values."""
        return {"sets": [each.as_values() for each in self.sets], "calibrated_on": self.classifier.calibrated_on}

    def as_values(self) -> dict[str, Any]:
        """The scores with intervals, classes and confusions, as JSON values; what each is, docs/evaluation.md says."""
        unit, names = self.unit, self.candidates
        wrong = self.tally.wrong.counted()
        return {
            **self.scores(),
            "interval": list(row_interval(self.right, unit)),
            "n_groups": None if unit is None else int(unit.max()) + 1,
            "per_class": self._per_class(wrong),
            **(self.counted_sets() if self.sets else {}),
            "confusions": [[names[true], names[predicted], number] for true, predicted, number in wrong.tolist()],
        }

    def _per_class(self, wrong: np.ndarray) -> list[dict[str, Any]]:
        """Rows, recognised rows, recall and precision of every class. wrong: (pairs, 3), as of `WrongPairs.counted`.

        Recall is None for a class without rows, precision for one never predicted.
        """
        count, right = self.tally.count.tolist(), self.tally.right.tolist()
        mistaken = np.bincount(wrong[:, 1], wrong[:, 2], len(self.candidates)).astype(np.int64).tolist()
        return [{"class": name, "n": rows, "right": good, "recall": good / rows if rows else None,
                 "precision": good / (good + bad) if good + bad else None}
                for name, rows, good, bad in zip(self.candidates, count, right, mistaken, strict=True)]


def evaluate(classifier: Classifier, store: Store, split: str = "test",
             classes: str | Sequence[str] = ALL) -> dict[str, Any]:
    """Score a classifier on the labelled rows of one split: accuracy with its interval, NLL, ECE, counts and more.

    Arguments and failures as for `score`.

    Example:
        >>> scores = onceclip.evaluate(onceclip.adapters.ZeroShot().fit(task), store, split="test")
        >>> scores["n"], 0 <= scores["accuracy"] <= 1
        (48, True)
    """
    return score(classifier, store, split, classes).as_values()


def score(classifier: Classifier, store: Store, split: str = "test", classes: str | Sequence[str] = ALL,
          text: str | None = None, only_its_classes: bool = False, coverage: float | None = None,
          progress: Callable[[float], None] = no_progress) -> Evaluation:
    """Score a classifier on the labelled rows of one split of a store, in one pass.

    classes: "all", "base", "new", or names of classes whose rows are scored; a classifier that lacks some of them is
        carried over to them. text: name of a text set whose classes compete, for a method that transfers to them.
        only_its_classes: the scored classes alone compete, and not all that the classifier knows. coverage: of
        prediction sets that are counted; None for none. progress: is told the fraction of the rows that is done.
    Classes are joined by name; the store may have fewer.
    Raises StoreMismatch if another encoder made the store, or it has classes that are not among them; MethodError if
    the method does not transfer; TaskError if there is no labelled row, or the classifier was fitted, by a refit, on
    the store's val or test rows that are to be scored.
    """
    names = None if classes == ALL else names_of(store, classes)
    if text or set(names or ()) - set(classifier.class_names):
        classifier = for_text(classifier, store, text or "default", names)
    among = (names or store.classes) if only_its_classes else None
    if coverage is not None and among is not None:
        raise TaskError("prediction sets are of all classes that the adapter knows: leave --only-its-classes or "
                        "--coverage out")
    rules = () if coverage is None else [[set_rule(classifier, coverage, kind) for kind in KINDS]]
    require_unseen(classifier, store, split)
    found, = score_together([classifier], store, split, names, among, True, rules, progress)
    if not len(found.rows):
        there = counts({name: len(store.rows(name)) for name in SPLITS})
        of = "" if names is None else f" of {listing(names)}"
        raise TaskError(f"{store.path} has no labelled {split} image{of} (labelled images: {there}): evaluate on "
                        "another --split or store")
    return found


def score_together(classifiers: Sequence[Classifier], store: Store, split: str = "test",
                   classes: Sequence[str] | None = None, among: Sequence[str] | None = None, keep: bool = False,
                   rules: Sequence[Sequence[SetRule]] = (),
                   progress: Callable[[float], None] = no_progress) -> list[Evaluation]:
    """Score classifiers of the same classes and inputs in one pass over the rows; what they share is computed once.

    classes: names of classes of the store; rows of others are left out. among: names of classes of the classifiers
        that compete for a row, all of them by default. keep: what each takes every row for. rules: of prediction sets
        that are counted, for each classifier; they are of all classes. progress: as for `score`.
    The scores are None where there is no labelled row.
    Raises StoreMismatch if another encoder made the store, or rows are of classes that do not compete.
    """
    begun, first = time.perf_counter(), classifiers[0]
    for classifier in classifiers:
        check_encoder(classifier, store)
    candidates = first.class_names if among is None else tuple(among)
    rows, label = _labelled(store, split, classes, candidates)
    _require_known(store, candidates, first.class_names)
    columns = columns_of(first, candidates)
    tallies = [Tally(len(candidates), temperature_of(each)) for each in classifiers]
    sets = [tuple(map(SetTally, own)) for own in rules or [()] * len(classifiers)]
    keys = store.column("key")[rows] if any(sets) else rows
    predicted = [np.empty(len(rows) if keep else 0, np.min_scalar_type(len(candidates))) for _ in classifiers]
    done = 0
    for pieces in logits_of(classifiers, store, rows):
        for tally, counted, answers, logits in zip(tallies, sets, predicted, pieces, strict=True):
            own = slice(done, done + len(logits))
            for each in counted:
                each.add(logits, label[own], keys[own])
            best = tally.add(logits if columns is None else logits[:, columns], label[own])
            if keep:
                answers[own] = best.numpy()
        done = own.stop
        progress(done / len(rows))
    seconds = (time.perf_counter() - begun) / len(classifiers)
    return [Evaluation(classifier, store, split, rows, label.numpy(), answers, candidates, tally, seconds, counted)
            for classifier, answers, tally, counted in zip(classifiers, predicted, tallies, sets, strict=True)]


def require_unseen(classifier: Classifier, store: Store, split: str) -> None:
    """Raise TaskError for a classifier that was fitted, by a refit, on the val or test rows that are to be scored."""
    made = classifier.provenance
    if split != "train" and made.get("store") == store.fingerprint and split in made.get("refit", {}).get("splits", ()):
        raise TaskError(f"the adapter was fitted on the {split} images of {store.path} (--refit), so that they cannot "
                        "say how good it is: evaluate on another store or --split")


def columns_of(classifier: Classifier, candidates: Sequence[str]) -> Tensor | None:
    """Which of a classifier's logits compete; None where all do, in their order."""
    if tuple(candidates) == classifier.class_names:
        return None
    place = {name: number for number, name in enumerate(classifier.class_names)}
    return torch.tensor([place[name] for name in candidates])


def logits_of(classifiers: Sequence[Classifier], store: Store, rows: np.ndarray) -> Iterator[Iterator[Tensor]]:
    """Piece by piece of the rows, the logits of every classifier."""
    first, heads = classifiers[0], [classifier.head for classifier in classifiers]
    for values in inputs_of(first, store, rows):
        queries = first.prepared(values)
        with threads_for(len(queries) * queries.shape[1] * max(head.width for head in heads) * len(heads)):
            yield batched_logits(heads, queries)


def _labelled(store: Store, split: str, classes: Sequence[str] | None,
              candidates: Sequence[str]) -> tuple[np.ndarray, Tensor]:
    """Labelled rows of a split, and the position of the class of each among the candidates, joined by name."""
    rows = store.rows(split)
    labels = store.column("label")[rows]
    if classes is not None:
        scored = {*names_of(store, classes)}
        chosen = np.isin(labels, [number for number, name in enumerate(store.classes) if name in scored])
        rows, labels = rows[chosen], labels[chosen]
    place = {name: number for number, name in enumerate(candidates)}
    _require_known(store, [store.classes[number] for number in np.unique(labels)], place)
    join = np.array([place.get(name, -1) for name in store.classes], dtype=np.int64)
    return rows, torch.from_numpy(join[labels])


def _require_known(store: Store, names: Sequence[str], known: Collection[str]) -> None:
    there = {*known}
    unknown = [name for name in names if name not in there]
    if unknown:
        raise StoreMismatch(f"{store.path} has classes that the adapter does not know: {listing(unknown)}; it "
                            f"knows {listing(list(known))}: evaluate on a store with the adapter's class names, or on "
                            "some of its classes (--classes)")


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


def base_to_new(classifiers: Sequence[Classifier], store: Store, text: str = "default", keep: bool = False,
                rules: Sequence[Sequence[SetRule]] = ()) -> list[tuple[Evaluation, dict[str, Any]]]:
    """Score classifiers of one method, fitted on the base classes of a store, on its test split.

    Rows of base classes are scored among the base classes, those of new ones among the new ones. Beside the evaluation
    on the base stand NEW_SCORES, which are None for a method that does not serve other classes.
    keep, rules: as of `score_together`, of rows of base classes.

    Source: CoCoOp (Zhou et al., CVPR 2022), section 4.1.
    """
    known, new = names_of(store, BASE), names_of(store, NEW)
    found = score_together(classifiers, store, classes=known, keep=keep, rules=rules)
    nothing: dict[str, Any] = {**dict.fromkeys(NEW_SCORES), "class_set": BASE, "classes_new": len(new)}
    kind = None if classifiers[0].method in AVERAGES else method_class(classifiers[0].method)
    # Of a method that trains something, what it needs for other classes are the parameters that a classifier keeps.
    if kind is None or not kind.transfers or (kind.trained and not all(each.parameters for each in classifiers)):
        return [(each, nothing) for each in found]
    others = score_together([for_text(each, store, text, new) for each in classifiers], store, classes=new)
    accuracies = [(each.tally.scores()["accuracy"], other.tally.scores()["accuracy"])
                  for each, other in zip(found, others, strict=True)]
    return [(each, {**nothing, "accuracy_new": pair[1], "n_test_new": other.tally.rows,
                    "harmonic_mean": harmonic_mean(*pair)})
            for each, other, pair in zip(found, others, accuracies, strict=True)]


def harmonic_mean(first: float | None, second: float | None) -> float | None:
    """`2ab / (a + b)`, 0 where both are; None where one is missing."""
    if first is None or second is None:
        return None
    return 2 * first * second / (first + second) if first + second else 0.0


def shift(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare the scores of one classifier on several stores, as JSON values.

    scores: as `evaluate` gives them, the first of the store that the others are compared with.
    Gives `stores`, each but the first with the `difference` of its accuracy to the first's, and `mean_of_others`: the
    mean of each score over them, every store counted once; None where a store lacks the score.
    """
    first, *others = [dict(each) for each in scores]
    for each in others:
        each["difference"] = each["accuracy"] - first["accuracy"]
    return {"stores": [first, *others],
            "mean_of_others": {name: None if any(each[name] is None for each in others) else
                               fmean(each[name] for each in others) for name in (*SCORES, "difference")}}
