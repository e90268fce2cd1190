"""Labels for images, a store or embeddings, from a classifier; in order, and with no more in memory than is at work."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from onceclip.adapters import Classifier, SetRule
from onceclip.adapters.inference import Inference
from onceclip.pipeline.decoding.preparation import EIGHT_BIT
from onceclip.pipeline.encoders import Encoder, EncoderSpec
from onceclip.pipeline.encoders.images import Encoded
from onceclip.pipeline.encoders.spec import clip_of
from onceclip.pipeline.errors import ArgumentError, PredictionError
from onceclip.pipeline.files import Pixels, eight_bit
from onceclip.pipeline.prediction.encoding import encoder_of, rows_of_images
from onceclip.pipeline.prediction.inference import logits_of_images, logits_of_rows, logits_of_store
from onceclip.pipeline.prediction.inputs import list_inputs, store_among
from onceclip.pipeline.sources import DEFAULTS, Record, SourceOptions
from onceclip.pipeline.tasks.encoders import joined_store, require_store
from onceclip.pipeline.tasks.tasks import check_encoder, inputs_of
from onceclip.stores import Store
from onceclip.stores.schema import BAD, SPLITS
from onceclip.stores.store import PIECE_ROWS

OK, UNSURE, BAD_IMAGE, INTERRUPTED = "ok", "unsure", "bad", "interrupted"


@dataclass(frozen=True)
class Prediction:
    """One image's answer.

    key: of the image, mostly its path. top: (class, probability) pairs, the most likely first; empty for a bad image.
    logits: (classes,), None for a bad image. state: "ok", "unsure" where even the most likely class is not likely
    enough, "bad", or "interrupted" where this machine could not read or decode it, which says nothing of the image.
    reason: why it is not "ok". set: the classes of a prediction set, the most likely first; None
    where none was asked for, empty for a bad image.
    """

    key: str
    top: list[tuple[str, float]] = field(default_factory=list)
    logits: np.ndarray | None = None
    reason: str = ""
    state: str = OK
    set: tuple[str, ...] | None = None

    @property
    def class_name(self) -> str | None:
        """The most likely class; None unless the state is "ok"."""
        return self.top[0][0] if self.state == OK else None

    @property
    def probability(self) -> float | None:
        """Of the most likely class; None for a bad image."""
        return self.top[0][1] if self.top else None


@dataclass(frozen=True)
class Answers:
    """Predictions on their way. count: of the images. remarks: what a user should know of the inputs."""

    count: int
    remarks: list[str]
    predictions: Iterator[Prediction]


def answers(classifier: Classifier, inputs: Any, split: str | None = None, top_k: int = 1, min_probability: float = 0.0,
            options: SourceOptions = DEFAULTS, encoder: EncoderSpec | Encoder | None = None, device: str = "auto",
            strategy: Inference | None = None, views: int | None = None, join: Sequence[str] = ()) -> Answers:
    """List what is to be labelled; the encoder is loaded, and images are read, as the predictions are asked for.

    inputs: one or several of images, folders and other sources by their paths, Pillow images and arrays of pixels
        (uint8, height x width x 3); or a store, open or by its path; or raw embeddings (rows, dim). encoder: where it
        is, or a loaded one. strategy: of inference, by which the classifier reads them. views: that it has made of each
        image, None for what `views_for` says. join: NAME=STORE of other encoders' stores of the store's images.
    Raises PredictionError for what is none of these, SourceError if a source cannot be listed.
    """
    if views is not None and (strategy is None or strategy.sees != "views"):
        raise ArgumentError("--views is for a strategy that reads views of images: add --inference mta, say")
    if isinstance(inputs, Tensor) or (isinstance(inputs, np.ndarray) and inputs.dtype != np.uint8):
        require_store(join, None)
        _require_store_split(split)
        _require_images(options, "embeddings have")
        return Answers(len(inputs), [], predict_rows(classifier, inputs, top_k, min_probability, strategy))
    given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    if not given:
        raise PredictionError("nothing to label: give images, a folder or a store")
    paths = [os.fspath(each) for each in given if isinstance(each, str | Path) and os.fspath(each)]
    store = given[0] if len(given) == 1 and isinstance(given[0], Store) else store_among(paths) if paths else None
    require_store(join, store)
    if store:
        store = joined_store(store, join, classifier)
        _require_images(options, "a store has")
        if views is not None:
            raise ArgumentError("--views is for images: a store has its own, as extract --views made them")
        return Answers(len(rows_to_label(store, split)), [],
                       predict_store(classifier, store, split, top_k, min_probability, strategy))
    _require_store_split(split)
    options = replace(options, clip=clip_of(classifier.encoder))
    if len(paths) == len(given):
        listing = list_inputs(paths, options)
        records, remarks = listing.records, listing.remarks
    else:
        records, remarks = [each for number, one in enumerate(given) for each in _records(one, number, options)], []

    def when_asked() -> Iterator[Prediction]:
        opened = encoder_of(classifier, encoder, device)
        yield from predict_images(classifier, records, opened, top_k, min_probability, strategy, views)

    return Answers(len(records), remarks, when_asked())


def _require_store_split(split: str | None) -> None:
    """Raise ArgumentError for a split of what is no store."""
    if split is not None:
        raise ArgumentError("--split is for a store: leave it out, or give a store")


def _require_images(options: SourceOptions, what: str) -> None:
    """Raise ArgumentError for options of images where there are none."""
    if options != DEFAULTS:
        raise ArgumentError(f"--root, --every and --frames are for images and videos, which {what} none of: leave them "
                            "out")


def _records(given: Any, number: int, options: SourceOptions) -> Sequence[Record]:
    if isinstance(given, str | Path):
        return list_inputs([given], options).records
    what = type(given).__name__
    if isinstance(given, Image.Image):
        what, image = f"a Pillow image of mode {given.mode}", eight_bit(given)
        given = np.asarray(image.convert("RGB")) if image.mode in EIGHT_BIT else None
    if (isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.ndim in (2, 3)
            and given.shape[2:] in ((), (3,))):
        return [Record(str(number), Pixels(given))]
    raise PredictionError(f"cannot label {what} (input {number}): give paths of images, a folder or a "
                          "store, Pillow images, uint8 arrays (height, width, 3) or embeddings (rows, dim)")


def predict_store(classifier: Classifier, store: Store, split: str | None = None, top_k: int = 1,
                  min_probability: float = 0.0, strategy: Inference | None = None) -> Iterator[Prediction]:
    """Label the rows of a split, or of all, in stored order; bad images are among them.

    min_probability: of an answer that is sure enough. strategy: of inference, by which the classifier reads them.
    Raises StoreMismatch if another encoder made the store, MethodError if the strategy cannot work with it.
    """
    check_encoder(classifier, store)
    stored, key, reason = store.rows(split, labelled=False), store.column("key"), store.column("reason")
    pieces: Iterable[Tensor] = map(classifier.logits, inputs_of(classifier, store, stored))
    if strategy:
        pieces = [logits_of_store(classifier, store, stored, strategy)] if len(stored) else []
    found = _predictions(classifier, map(str, key[stored]), pieces, top_k, min_probability, strategy)
    good = np.zeros(len(key), dtype=bool)
    good[stored] = True
    for row in rows_to_label(store, split).tolist():
        yield next(found) if good[row] else Prediction(str(key[row]), reason=str(reason[row]), state=BAD_IMAGE)


def rows_to_label(store: Store, split: str | None = None) -> np.ndarray:
    """Positions of the images of a split, or of all, stored ones and bad ones: (n,) int64."""
    bad = store.column("state") == BAD
    if split is not None:
        bad &= store.column("split") == SPLITS.index(split)
    return np.union1d(store.rows(split, labelled=False), np.flatnonzero(bad))


def predict_rows(classifier: Classifier, rows: np.ndarray | Tensor, top_k: int = 1, min_probability: float = 0.0,
                 strategy: Inference | None = None) -> Iterator[Prediction]:
    """Label raw embeddings (rows, dim); the key of each is its number. strategy: one that reads a set or a stream."""
    pieces: Iterable[Tensor] = (classifier.logits(rows[start:start + PIECE_ROWS])
                                for start in range(0, len(rows), PIECE_ROWS))
    if strategy:
        pieces = [logits_of_rows(classifier, rows, strategy)]
    return _predictions(classifier, map(str, count()), pieces, top_k, min_probability, strategy)


def predict_images(classifier: Classifier, images: Sequence[Record], encoder: Encoder, top_k: int = 1,
                   min_probability: float = 0.0, strategy: Inference | None = None,
                   views: int | None = None) -> Iterator[Prediction]:
    """Label images in the order given; `list_inputs` lists those of files and folders.

    min_probability: of an answer that is sure enough. strategy, views: as of `answers`.
    Raises StoreMismatch if the adapter belongs to another encoder, PredictionError or EncoderError if it or the
    strategy takes what cannot be had of images.
    """
    with closing(logits_of_images(classifier, images, encoder, strategy, views) if strategy
                 else _logits_of_images(classifier, images, encoder)) as pieces:
        for piece, logits in pieces:
            keys = [images[row].key for row in piece.rows]
            good = (key for key, reason in zip(keys, piece.reasons, strict=True) if not reason)
            found = _predictions(classifier, good, [logits], top_k, min_probability, strategy)
            for place, (key, reason) in enumerate(zip(keys, piece.reasons, strict=True)):
                state = INTERRUPTED if place in piece.interrupted else BAD_IMAGE
                yield Prediction(key, reason=reason, state=state) if reason else next(found)


def _logits_of_images(classifier: Classifier, images: Sequence[Record],
                      encoder: Encoder) -> Generator[tuple[Encoded, Tensor], None, None]:
    with closing(rows_of_images(classifier, images, encoder)) as pieces:
        for piece, values in pieces:
            yield piece, classifier.logits(values)


def _predictions(classifier: Classifier, keys: Iterator[str], pieces: Iterable[Tensor], top_k: int,
                 min_probability: float, strategy: Inference | None) -> Iterator[Prediction]:
    """Predictions of logits (rows, classes); the first class is the one of `Classifier.predict`.

    The temperature of a classifier is of its own logits, not of those that a strategy gives.
    """
    names, temperature = classifier.class_names, 1.0 if strategy else classifier.temperature
    for logits in pieces:
        probability = (logits / temperature).softmax(dim=1)
        best = logits.argmax(dim=1, keepdim=True)
        others = logits.scatter(1, best, -torch.inf).topk(min(top_k, logits.shape[1]) - 1, dim=1).indices
        order = torch.cat([best, others], dim=1)
        for place, shares, row in zip(order.tolist(), probability.gather(1, order).tolist(), logits.numpy(),
                                      strict=True):
            top = [(names[index], share) for index, share in zip(place, shares, strict=True)]
            name, share = top[0]
            yield (Prediction(next(keys), top, row) if share >= min_probability else
                   Prediction(next(keys), top, row, f"most likely {name} ({share:.4f})", UNSURE))


def with_sets(predictions: Iterable[Prediction], classifier: Classifier, rule: SetRule) -> Iterator[Prediction]:
    """Give each prediction its set."""
    for each in predictions:
        if each.logits is None:
            yield replace(each, set=())
            continue
        logits = torch.from_numpy(each.logits)
        inside = rule.members(logits[None], [each.key])[0]
        order = logits.argsort(descending=True, stable=True)
        yield replace(each, set=tuple(classifier.class_names[place] for place in order[inside[order]].tolist()))
