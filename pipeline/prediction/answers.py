"""From whatever is to be labelled to its predictions, one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from onceclip.adapters import Classifier
from onceclip.adapters.inference import Inference
from onceclip.pipeline.encoders import Encoder, EncoderSpec
from onceclip.pipeline.encoders.spec import clip_of
from onceclip.pipeline.errors import ArgumentError, PredictionError
from onceclip.pipeline.files import Pixels
from onceclip.pipeline.prediction.inference import infer_images, infer_rows, infer_store
from onceclip.pipeline.prediction.inputs import list_inputs, store_among
from onceclip.pipeline.prediction.predict import (
    Prediction,
    encoder_of,
    predict_images,
    predict_rows,
    predict_store,
    rows_to_label,
)
from onceclip.pipeline.sources import DEFAULTS, Record, SourceOptions
from onceclip.pipeline.tasks.encoders import joined_store, require_store
from onceclip.stores import Store


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
        return Answers(len(inputs), [], infer_rows(classifier, inputs, strategy, top_k, min_probability) if strategy
                       else predict_rows(classifier, inputs, top_k, min_probability))
    given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    if not given:
        raise PredictionError("nothing to label: give images, a folder or a store")
    paths = [os.fspath(each) for each in given if isinstance(each, str | Path) and os.fspath(each)]
    store = given[0] if len(given) == 1 and isinstance(given[0], Store) else store_among(paths) if paths else None
    require_store(join, store)
    if store:
        store = joined_store(store, join, classifier)
        if views is not None:
            raise ArgumentError("--views is for images: a store has its own, as extract --views made them")
        return Answers(len(rows_to_label(store, split)), [],
                       infer_store(classifier, store, strategy, split, top_k, min_probability) if strategy
                       else predict_store(classifier, store, split, top_k, min_probability))
    if split is not None:
        raise ArgumentError("--split is for a store: leave it out, or give a store")
    remarks: list[str] = []
    options = replace(options, clip=clip_of(classifier.encoder))
    if len(paths) == len(given):
        listing = list_inputs(paths, options)
        records, remarks = listing.records, listing.remarks
    else:
        records = [record for number, each in enumerate(given) for record in _records(each, number, options)]
    return Answers(len(records), remarks, _of_images(classifier, records, top_k, min_probability, encoder, device,
                                                     strategy, views))


def _records(given: Any, number: int, options: SourceOptions) -> Sequence[Record]:
    if isinstance(given, str | Path):
        return list_inputs([given], options).records
    if isinstance(given, Image.Image):
        given = np.asarray(given.convert("RGB"))
    if (isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.ndim in (2, 3)
            and given.shape[2:] in ((), (3,))):
        return [Record(str(number), Pixels(given))]
    raise PredictionError(f"cannot label {type(given).__name__} (input {number}): give paths of images, a folder or a "
                          "store, Pillow images, uint8 arrays (height, width, 3) or embeddings (rows, dim)")


def _of_images(classifier: Classifier, records: Sequence[Record], top_k: int, min_probability: float,
               encoder: EncoderSpec | Encoder | None, device: str, strategy: Inference | None,
               views: int | None) -> Iterator[Prediction]:
    """Load the encoder when the first prediction is asked for."""
    opened = encoder_of(classifier, encoder, device)
    yield from (infer_images(classifier, records, opened, strategy, views, top_k, min_probability) if strategy
                else predict_images(classifier, records, opened, top_k, min_probability))
