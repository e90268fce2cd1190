"""Scoring fitted classifiers on a split of a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters import Classifier
from onceclip.adapters.cpu import threads_for
from onceclip.adapters.heads.batched import batched_logits
from onceclip.adapters.training.loop import no_progress
from onceclip.pipeline.classes import names_of
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.evaluation import Evaluation, scores_of, temperature_of
from onceclip.pipeline.metrics import Tally
from onceclip.stores import Store, StoreMismatch
from onceclip.stores.reader import PIECE_ROWS


def evaluate(classifier: Classifier, store: Store, split: str = "test", classes: Sequence[str] | None = None,
             among: Sequence[str] | None = None) -> dict[str, Any]:
    """Score a classifier on the labelled rows of one split: accuracy with its interval, NLL, ECE, counts and more.

    Arguments and failures as for `score`.

    Example:
        >>> scores = onceclip.evaluate(onceclip.ZeroShot().fit(task), store, split="test")
        >>> scores["n"], 0 <= scores["accuracy"] <= 1
        (48, True)
    """
    return score(classifier, store, split, classes, among).as_values()


@dataclass(frozen=True)
class Judged:
    """What a classifier says of one piece of the rows. number: which piece. predicted: (rows of it,) int32."""

    number: int
    predicted: np.ndarray
    tally: Tally


@dataclass(frozen=True)
class Scoring:
    """A classifier, and the labelled rows that it is to be scored on, in pieces of `PIECE_ROWS`.

    rows: (n,) positions in the store. label: (n,) positions in `candidates`. columns: those of the classifier's logits
    that compete, None for all.
    """

    classifier: Classifier
    store: Store
    split: str
    candidates: tuple[str, ...]
    rows: np.ndarray
    label: Tensor
    columns: Tensor | None

    @classmethod
    def of(cls, classifier: Classifier, store: Store, split: str = "test", classes: Sequence[str] | None = None,
           among: Sequence[str] | None = None) -> Scoring:
        """Find the rows. Arguments and failures as for `score`."""
        candidates = classifier.class_names if among is None else tuple(among)
        rows, label = _labelled(classifier, store, split, classes, candidates)
        if not len(rows):
            there = ", ".join(f"{name} {len(store.rows(name)):,}" for name in ("train", "val", "test"))
            of = "" if classes is None else f" of {_listing(classes)}"
            raise TaskError(f"{store.path} has no labelled {split} image{of} (labelled images: {there}): evaluate on "
                            "another --split or store")
        columns = None
        if among is not None:
            place = {name: number for number, name in enumerate(classifier.class_names)}
            _require_known(store, candidates, place)
            columns = torch.tensor([place[name] for name in candidates])
        return cls(classifier, store, split, candidates, rows, label, columns)

    @property
    def pieces(self) -> int:
        """Number of pieces."""
        return -(-len(self.rows) // PIECE_ROWS)

    def judged(self, first: int = 0, stop: int | None = None) -> Iterator[Judged]:
        """What the classifier says, piece by piece, of all or of some pieces."""
        begun = first * PIECE_ROWS
        rows = self.rows[begun:None if stop is None else stop * PIECE_ROWS]
        for number, (logits,) in enumerate(_logits([self.classifier], self.store, rows), first):
            tally, behind = Tally(len(self.candidates), temperature_of(self.classifier)), begun + len(logits)
            chosen = logits if self.columns is None else logits[:, self.columns]
            predicted = tally.add(chosen, self.label[begun:behind]).numpy()
            yield Judged(number, predicted.astype(np.int32), tally)
            begun = behind


Judge = Callable[[Scoring], Iterable[Judged]]


def score(classifier: Classifier, store: Store, split: str = "test", classes: Sequence[str] | None = None,
          among: Sequence[str] | None = None, progress: Callable[[float], None] = no_progress,
          judge: Judge = Scoring.judged) -> Evaluation:
    """Score a classifier on the labelled rows of one split of a store, in one pass.

    classes: names of classes of the store; rows of others are left out. among: names of classes of the classifier
        that compete for a row, all of them by default. progress: is told the fraction of the rows that is done.
    judge: gives what the classifier says of every piece, in any order.
    Classes are joined by name; the store may have fewer.
    Raises StoreMismatch if another encoder made the store, or it has classes that are not among them; TaskError if
    there is no labelled row.
    """
    begun = time.perf_counter()
    scoring = Scoring.of(classifier, store, split, classes, among)
    tally, predicted = Tally(len(scoring.candidates), temperature_of(classifier)), []
    for each in _in_order(judge(scoring)):
        tally.join(each.tally)
        predicted.append(each.predicted)
        progress(len(predicted) / scoring.pieces)
    return Evaluation(classifier, store, split, scoring.rows, scoring.label.numpy(), np.concatenate(predicted),
                      scoring.candidates, tally, time.perf_counter() - begun)


def _in_order(judged: Iterable[Judged]) -> Iterator[Judged]:
    """By number: sums of floating-point numbers depend on their order."""
    early: dict[int, Judged] = {}
    following = 0
    for each in judged:
        early[each.number] = each
        while following in early:
            yield early.pop(following)
            following += 1


def evaluate_together(classifiers: Sequence[Classifier], store: Store, split: str = "test",
                      classes: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Score classifiers of the same classes and inputs in one pass over the rows; what they share is computed once.

    classes: as for `score`. The scores are None where there is no labelled row.
    """
    begun, first = time.perf_counter(), classifiers[0]
    rows, label = _labelled(first, store, split, classes, first.class_names)
    for classifier in classifiers[1:]:
        check_encoder(classifier, store)
    tallies, done = [Tally(len(first.class_names), temperature_of(each)) for each in classifiers], 0
    for pieces in _logits(classifiers, store, rows):
        for tally, logits in zip(tallies, pieces, strict=True):
            tally.add(logits, label[done:done + len(logits)])
        done += len(logits)
    seconds = (time.perf_counter() - begun) / len(classifiers)
    return [scores_of(classifier, store, split, tally, seconds)
            for classifier, tally in zip(classifiers, tallies, strict=True)]


def _logits(classifiers: Sequence[Classifier], store: Store, rows: np.ndarray) -> Iterator[Iterator[Tensor]]:
    """Piece by piece of the rows, the logits of every classifier."""
    first, heads = classifiers[0], [classifier.head for classifier in classifiers]
    for values in inputs_of(first, store, rows):
        queries = first.prepared(values)
        with threads_for(len(queries) * queries.shape[1] * max(head.width for head in heads) * len(heads)):
            yield batched_logits(heads, queries)


def inputs_of(classifier: Classifier, store: Store, rows: np.ndarray) -> Iterator[Tensor | np.ndarray]:
    """What a classifier takes of some rows of a store, raw, piece by piece."""
    for piece, embeddings in store.pieces(rows):
        yield embeddings if len(classifier.inputs) == 1 and classifier.inputs[0] == "embedding" else np.concatenate(
            [(embeddings if name == "embedding" else store.embeddings(piece, name)).reshape(len(piece), -1)
             for name in classifier.inputs], axis=1)


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


def _require_known(store: Store, names: Sequence[str], place: dict[str, int]) -> None:
    unknown = [name for name in names if name not in place]
    if unknown:
        raise StoreMismatch(f"{store.path} has classes that the adapter does not know: {_listing(unknown)}; it "
                            f"knows {_listing(list(place))}: evaluate on a store with the adapter's class names, or on "
                            "some of its classes (--classes)")


def _listing(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def check_encoder(classifier: Classifier, store: Store) -> None:
    """Raise StoreMismatch unless classifier and store belong to one encoder."""
    encoder = classifier.provenance.get("encoder")
    if encoder is not None:
        store.require_encoder(encoder["fingerprint"], f"the adapter ({encoder['name']})")
    elif classifier.inputs == ("embedding",) and classifier.dim != store.dim:
        raise StoreMismatch(f"the adapter takes {classifier.dim} dimensions, {store.path} has {store.dim}: "
                            "use a store of the adapter's encoder")
