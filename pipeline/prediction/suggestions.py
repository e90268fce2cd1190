"""Images that a person should look at: to label them next, or because their label is likely wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters import Classifier
from onceclip.adapters.methods import METHODS, stored_method_class
from onceclip.adapters.methods.gda import GDA
from onceclip.adapters.ops import unit
from onceclip.adapters.selection.automatic import AVERAGES
from onceclip.adapters.text import RULES
from onceclip.pipeline.encoders import Encoder
from onceclip.pipeline.errors import PredictionError
from onceclip.pipeline.extraction.splits import ties_of
from onceclip.pipeline.prediction.encoding import rows_of_images
from onceclip.pipeline.sources import Record
from onceclip.pipeline.tasks.draws import Draw
from onceclip.pipeline.tasks.tasks import check_encoder, inputs_of, task_of
from onceclip.pipeline.words import MOST_LABELS
from onceclip.stores import Store, TextSet
from onceclip.stores.identity import digest

_POOL = 10  # least sure images per image that is wanted, among which clusters are looked for
_ROUNDS = 20  # of k-means
_SEED = 1
_FOLDS = 5


@dataclass(frozen=True)
class Suggestion:
    """An image to look at.

    key, row: which; the row is that of a store, or the number of an image of a source. predicted, second: the most
    likely classes, or of a label that may be wrong the class that is meant and the one next to it; probability and
    other: theirs. label: what the image is labelled as; empty for none. picture, why: as of `Mistake`.
    """

    key: str
    row: int
    predicted: str
    probability: float
    second: str
    other: float
    label: str = ""
    picture: str = ""
    why: str = ""

    @property
    def margin(self) -> float:
        """By how much the most likely class is ahead; below zero by how much the label is behind."""
        return self.probability - self.other


Piece = tuple[list[str], np.ndarray, np.ndarray | Tensor]  # keys, rows, what the classifier takes of each


def pieces_of_store(classifier: Classifier, store: Store) -> Iterator[Piece]:
    """The unlabelled rows of a store.

    Raises StoreMismatch for another encoder, PredictionError if all images have a label.
    """
    check_encoder(classifier, store)
    rows = np.setdiff1d(store.rows(labelled=False), store.rows())
    if not len(rows):
        raise PredictionError(f"every image of {store.path} has a label: give a folder, or a store made with "
                              "`onceclip extract --unlabelled`; --label-errors looks for labels that are wrong")
    keys, done = store.column("key"), 0
    for values in inputs_of(classifier, store, rows):
        here = rows[done:done + len(values)]
        done += len(here)
        yield [str(keys[row]) for row in here], here, values


def pieces_of_images(classifier: Classifier, images: Sequence[Record], encoder: Encoder) -> Iterator[Piece]:
    """Images that are encoded now; those that cannot be read are left out.

    Raises StoreMismatch if the adapter belongs to another encoder.
    """
    with closing(rows_of_images(classifier, images, encoder)) as batches:
        for batch, values in batches:
            rows = batch.rows[batch.good]
            if len(rows):
                yield [images[row].key for row in rows], rows, values


def label_next(classifier: Classifier, pieces: Iterator[Piece], number: int) -> list[Suggestion]:
    """Choose images to label: those with the smallest margin between the two most likely classes, spread over clusters.

    Of ten times as many images with the smallest margins, k-means on unit rows makes `number` clusters, in which an
    image counts the more the smaller its margin is; the one with the smallest margin of each cluster is taken. Least
    sure first; equal ones by key. The pool alone is held in memory.

    pieces: all images there are. number: how many to choose; all of them if there are no more.
    Raises PredictionError if there is no image.
    Source: Diverse mini-batch Active Learning (Zhdanov, 2019), whose clusters take the image next to the centre.
    """
    pool: list[Suggestion] = []
    names = classifier.class_names
    vectors = torch.empty(0, classifier.dim)
    for keys, rows, values in pieces:
        probability, index = classifier.probabilities(values).topk(2, dim=1)
        pool += [Suggestion(key, int(row), names[first], high, names[second], low) for key, row, (high, low),
                 (first, second) in zip(keys, rows, probability.tolist(), index.tolist(), strict=True)]
        vectors = torch.cat([vectors, torch.as_tensor(values).float()])
        order = sorted(range(len(pool)), key=lambda place: (pool[place].margin, pool[place].key))[:_POOL * number]
        pool, vectors = [pool[place] for place in order], vectors[order]
    if not pool:
        raise PredictionError("there is no image to choose from: give a folder or a store with images that can be read")
    if len(pool) <= number:
        return pool
    margin = torch.tensor([each.margin for each in pool])
    cluster = _clusters(unit(vectors), 1.0 - margin + 1e-3, number)
    chosen = np.unique(cluster, return_index=True)[1].tolist()  # the pool is in order: the least sure of each
    others = np.setdiff1d(np.arange(len(pool)), chosen)[:number - len(chosen)].tolist()
    return [pool[place] for place in sorted([*chosen, *others])]


def _clusters(rows: Tensor, weight: Tensor, number: int) -> Tensor:
    """Weighted k-means of unit rows (rows, dim), begun by k-means++ of a fixed seed: the cluster of each, (rows,)."""
    random = torch.Generator().manual_seed(_SEED)
    centre = [int(weight.argmax())]
    distance = (rows - rows[centre[0]]).square().sum(dim=1)
    while len(centre) < number:
        share = distance * weight
        if not share.sum() > 0:  # all that is left equals a centre
            break
        centre.append(int(torch.multinomial(share, 1, generator=random)))
        distance = torch.minimum(distance, (rows - rows[centre[-1]]).square().sum(dim=1))
    means = rows[centre]
    for _ in range(_ROUNDS):
        cluster = torch.cdist(rows, means).argmin(dim=1)
        total = torch.zeros_like(means).index_add(0, cluster, rows * weight.unsqueeze(1))
        size = torch.zeros(len(means)).index_add(0, cluster, weight)
        moved = torch.where(size.unsqueeze(1) > 0, total / size.clamp(min=1e-12).unsqueeze(1), means)
        if torch.allclose(moved, means, atol=1e-6):
            break
        means = moved
    return cluster


def label_errors(classifier: Classifier, store: Store, most: int = MOST_LABELS,
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
    if len(rows) < 2 * _FOLDS:
        raise PredictionError(f"{store.path} has {len(rows)} labelled images: to leave a fifth of them out takes "
                              f"{2 * _FOLDS} or more")
    fold = _folds(store, rows, label)
    if not fold.any():
        raise PredictionError(f"all labelled images of {store.path} are of one group: to leave some out, which the "
                              "others judge, takes two groups or more")
    fitted = []
    for number in range(_FOLDS):
        fitted.append(_fitted(classifier, store, rows[fold != number]))
        progress((number + 1) / (_FOLDS + 1))
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
        given, best = probability[here, own], probability[here, meant]
        for each in np.flatnonzero((confident[here, meant] >= 0) & (meant != own) & (best > given)).tolist():
            row, name = int(rows[places[each]]), store.classes[own[each]]
            found.append(Suggestion(str(key[row]), row, store.classes[meant[each]], float(best[each]), name,
                                    float(given[each]), name))
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
    made = classifier.provenance.get("text") or {}
    name = str(made.get("name", "default"))
    averaged = classifier.method in AVERAGES
    if averaged:
        classifier = _judge(classifier, name in store.texts)
    kind = stored_method_class(classifier.method, "the adapter")
    if kind.needs_bank:
        raise PredictionError(f"{kind.name} learns from images of a bank, and labels of a store's own images are "
                              "looked at here: give an adapter of another method, such as gda")
    known = kind.stored_values(classifier.hyperparameters)
    method = kind(**{name: value for name, value in known.items() if name in kind.hyperparameters})
    if not averaged and classifier.inputs != kind.inputs:
        method = method.with_inputs(classifier.inputs)
    words = (store.text(name) if name in store.texts or kind.needs_text else
             TextSet.of_names(store.classes, store.dim, store.encoder["fingerprint"]))
    draw = Draw(rows, tuple(map(str, store.column("key")[rows])))
    task = task_of(store, words.of_classes(store.classes), made.get("class_weights", RULES[0]), draw,
                   outputs=method.inputs, tower=kind.wants_tower)
    return replace(method.fit(task, seed=1), temperature=classifier.temperature)


def _judge(classifier: Classifier, text: bool) -> Classifier:
    """One method of an average, with the hyperparameters and the temperature that were chosen for it.

    It is gda where it has part, since training learns wrong labels too, else the method with the most weight. text:
    whether the store has the prompts, without which linear-probe stands for an average that says no weights.
    """
    values = classifier.hyperparameters
    weights = {name: value for name in METHODS if isinstance(value := values.get(f"{name} weight"), float)}
    method = GDA.name if GDA.name in weights else max(weights, key=lambda name: weights[name],
                                                default=GDA.name if text else "linear-probe")
    own = {name.removeprefix(f"{method} "): value for name, value in values.items() if name.startswith(f"{method} ")}
    return replace(classifier, method=method, hyperparameters=own, temperature=float(own.get("temperature", 1.0)))


def _folds(store: Store, rows: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The fold of every row: what is tied by content or group is in one, and each class is spread over all."""
    content = [each.tobytes() for each in store.column("digest")[rows]]
    if not any(content[0]):  # imported arrays have no digests
        content = [str(row).encode() for row in rows.tolist()]
    tied = ties_of(content, store.column("group")[rows].tolist())
    members: dict[int, list[int]] = {}
    for place, number in enumerate(tied.tolist()):
        members.setdefault(number, []).append(place)
    counts, images = np.zeros((label.max() + 1, _FOLDS), np.int64), np.bincount(label)
    fold = np.zeros(len(rows), np.int64)
    keys = store.column("key")[rows]
    for places in sorted(members.values(), key=lambda each: digest(min(str(keys[place]) for place in each).encode())):
        # Else the first folds would get all images of classes that have fewer than there are folds.
        size = counts.sum(axis=0) if (images[label[places]] < _FOLDS).any() else np.zeros(_FOLDS)
        number = int(np.lexsort((size, counts[label[places]].sum(axis=0)))[0])
        fold[places] = number
        counts[:, number] += np.bincount(label[places], minlength=len(counts))
    return fold
