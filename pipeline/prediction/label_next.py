"""Which images to label next: those that an adapter is least sure of, no two of one kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters import Classifier
from onceclip.adapters.ops import unit
from onceclip.pipeline.decoding.decoders import Decoders
from onceclip.pipeline.encoders import Encoder
from onceclip.pipeline.encoders.images import EncoderThreads, encode
from onceclip.pipeline.errors import PredictionError
from onceclip.pipeline.prediction.predict import require_encoder, rows_of
from onceclip.pipeline.sources import Record
from onceclip.pipeline.tasks.tasks import check_encoder, inputs_of
from onceclip.stores import Store

_POOL = 10  # least sure images per image that is wanted, among which clusters are looked for
_ROUNDS = 20  # of k-means
_SEED = 1


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
    tokens = require_encoder(classifier, encoder)
    contents = enumerate(image.content for image in images)
    with Decoders(len(images)) as decoders, EncoderThreads(encoder) as threads, closing(
            encode(decoders, threads, contents, len(images), outputs=classifier.inputs, tokens=tokens)) as batches:
        for batch in batches:
            rows = batch.rows[batch.good]
            if len(rows):
                yield [images[row].key for row in rows], rows, rows_of(classifier, batch)


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
    vectors = torch.empty(0, classifier.dim)
    for keys, rows, values in pieces:
        found, taken = _least_sure(classifier, keys, rows, values)
        pool, vectors = [*pool, *found], torch.cat([vectors, taken])
        order = sorted(range(len(pool)), key=lambda place: (pool[place].margin, pool[place].key))[:_POOL * number]
        pool, vectors = [pool[place] for place in order], vectors[order]
    if not pool:
        raise PredictionError("there is no image to choose from: give a folder or a store with images that can be read")
    if len(pool) <= number:
        return pool
    margin = torch.tensor([each.margin for each in pool])
    cluster = _clusters(unit(vectors), 1.0 - margin + 1e-3, number)
    first = list(dict.fromkeys(cluster.tolist()))  # the pool is in order: the first of a cluster is its least sure
    chosen = [int((cluster == each).nonzero()[0]) for each in first]
    others = [place for place in range(len(pool)) if place not in set(chosen)]
    return [pool[place] for place in sorted([*chosen, *others[:number - len(chosen)]])]


def _least_sure(classifier: Classifier, keys: Sequence[str], rows: np.ndarray,
                values: np.ndarray | Tensor) -> tuple[list[Suggestion], Tensor]:
    top, place = classifier.probabilities(values).topk(2, dim=1)
    names = classifier.class_names
    found = [Suggestion(key, int(row), names[first], high, names[second], low) for key, row, (high, low),
             (first, second) in zip(keys, rows, top.tolist(), place.tolist(), strict=True)]
    return found, torch.as_tensor(values).float()


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
