"""Labels that are likely wrong: what classifiers say that were fitted without an image, beside its label."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from torch import Tensor

from onceclip.adapters import Classifier
from onceclip.adapters.methods import stored_method_class
from onceclip.adapters.selection.automatic import AVERAGES
from onceclip.adapters.text import RULES
from onceclip.pipeline.errors import PredictionError
from onceclip.pipeline.extraction.splits import ties_of
from onceclip.pipeline.prediction.label_next import Suggestion
from onceclip.pipeline.tasks.draws import Draw
from onceclip.pipeline.tasks.tasks import check_encoder, inputs_of, task_of
from onceclip.stores import Store, TextSet
from onceclip.stores.identity import digest

FOLDS = 5
IN_PLACE = "gda"  # of an average of methods, of which none can be fitted anew alone


def label_errors(classifier: Classifier, store: Store, most: int = 100,
                 progress: Callable[[float], None] = lambda fraction: None) -> list[Suggestion]:
    """Find labelled images whose label is likely wrong, in all splits, the likeliest first.

    The adapter's method with its hyperparameters is fitted five times, each time without a fifth of the images, on
    which its probabilities are then compared with the labels; equal pictures and groups stay together. An image is
    suspect if the probability of another class reaches the mean that images labelled as that class have, and its own
    class is not the likeliest of those that reach theirs (confident learning).

    most: how many at most. progress: gets the fraction done.
    Raises StoreMismatch for another encoder, PredictionError if there are too few labelled images.
    Source: Confident Learning (Northcutt et al., JAIR 2021), with classes pruned by the margin of an image.
    """
    check_encoder(classifier, store)
    rows, label = store.rows(), store.column("label")[store.rows()]
    if len(rows) < 2 * FOLDS:
        raise PredictionError(f"{store.path} has {len(rows)} labelled images: to leave a fifth of them out takes "
                              f"{2 * FOLDS} or more")
    fold = _folds(store, rows, label)
    fitted = []
    for number in range(FOLDS):
        fitted.append(_fitted(classifier, store, rows[fold != number]))
        progress((number + 1) / (FOLDS + 1))
    classes = len(store.classes)
    total, count = np.zeros(classes), np.bincount(label, minlength=classes)
    for places, probability in _left_out(fitted, store, rows, fold):
        np.add.at(total, label[places], probability[np.arange(len(places)), label[places]])
    reached = np.where(count > 0, total / np.maximum(count, 1), np.inf)
    found, key = [], store.column("key")
    for places, probability in _left_out(fitted, store, rows, fold):
        own, here = label[places], np.arange(len(places))
        confident = np.where(probability >= reached, probability, -1.0)
        meant = confident.argmax(axis=1)
        for each in np.flatnonzero((confident[here, meant] >= 0) & (meant != own)).tolist():
            row = int(rows[places[each]])
            given = float(probability[each, own[each]])
            if probability[each, meant[each]] > given:
                found.append(Suggestion(str(key[row]), row, store.classes[meant[each]],
                                        float(probability[each, meant[each]]), store.classes[own[each]], given,
                                        store.classes[own[each]]))
    progress(1.0)
    return sorted(found, key=lambda each: (-each.margin, each.key))[:most]


def _left_out(fitted: list[Classifier], store: Store, rows: np.ndarray,
              fold: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places in `rows`, and the probabilities of the classifier that was fitted without them: (n, classes)."""
    for number, classifier in enumerate(fitted):
        places, done = np.flatnonzero(fold == number), 0
        for values in inputs_of(classifier, store, rows[places]):
            found: Tensor = classifier.probabilities(values)
            yield places[done:done + len(found)], found.numpy()
            done += len(found)


def _fitted(classifier: Classifier, store: Store, rows: np.ndarray) -> Classifier:
    """The adapter's method, with its hyperparameters, fitted on some rows of a store."""
    averaged = classifier.method in AVERAGES
    kind = stored_method_class(IN_PLACE if averaged else classifier.method, "the adapter")
    if kind.needs_bank:
        raise PredictionError(f"{kind.name} learns from images of a bank, and labels of a store's own images are "
                              "looked at here: give an adapter of another method, such as gda")
    known = kind.stored_values({} if averaged else classifier.hyperparameters)
    method = kind(**{name: value for name, value in known.items() if name in kind.hyperparameters})
    made = classifier.provenance.get("text") or {}
    name = str(made.get("name", "default"))
    words = (store.text(name) if name in store.texts or kind.needs_text else
             TextSet.of_names(store.classes, store.dim, store.encoder["fingerprint"]))
    draw = Draw(rows, tuple(map(str, store.column("key")[rows])))
    task = task_of(store, words.of_classes(store.classes), made.get("class_weights", RULES[0]), draw,
                   outputs=kind.inputs)
    return replace(method.fit(task, seed=1), temperature=1.0 if averaged else classifier.temperature)


def _folds(store: Store, rows: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The fold of every row: what is tied by content or group is in one, and each class is spread over all."""
    content = [each.tobytes() for each in store.column("digest")[rows]]
    known = any(any(each) for each in content[:1])
    names = content if known else [str(row).encode() for row in rows.tolist()]  # imported arrays have no digests
    tied = ties_of(names, store.column("group")[rows].tolist())
    members: dict[int, list[int]] = {}
    for place, number in enumerate(tied.tolist()):
        members.setdefault(number, []).append(place)
    counts = np.zeros((label.max() + 1, FOLDS), np.int64)
    fold = np.zeros(len(rows), np.int64)
    keys = store.column("key")[rows]
    for places in sorted(members.values(), key=lambda each: digest(min(str(keys[place]) for place in each).encode())):
        number = int(counts[label[places]].sum(axis=0).argmin())
        fold[places] = number
        counts[:, number] += np.bincount(label[places], minlength=len(counts))
    return fold
