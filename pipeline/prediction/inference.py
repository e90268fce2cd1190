"""Labels by a strategy of inference: for rows of a store, or for images, of which it makes views or patches itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters import Classifier
from onceclip.adapters.inference import Inference, Queries, queries_of
from onceclip.adapters.inference.base import TRAIN
from onceclip.adapters.ops import unit
from onceclip.adapters.task import EMBEDDING, Task
from onceclip.pipeline.decoding.decoders import Decoders
from onceclip.pipeline.decoding.views import Views, crops_of
from onceclip.pipeline.encoders import Encoder
from onceclip.pipeline.encoders.images import Encoded, EncoderThreads, encode
from onceclip.pipeline.errors import PredictionError
from onceclip.pipeline.evaluation.inference import Session
from onceclip.pipeline.evaluation.queries import OUTPUTS, names_alone, require_several
from onceclip.pipeline.extraction.outputs import TOKEN, VIEW
from onceclip.pipeline.prediction.predict import (
    BAD_IMAGE,
    Prediction,
    answers_of,
    require_encoder,
    rows_to_label,
    without_answer,
)
from onceclip.pipeline.sources import Record
from onceclip.pipeline.tasks.tasks import check_encoder, logit_numbers
from onceclip.stores import Store
from onceclip.stores.schema import SPLITS

DEFAULT_VIEWS = Views(number=64)
_MOST = 1024  # views that an adapter's file may ask for


def infer_store(classifier: Classifier, store: Store, strategy: Inference, split: str | None = None, top_k: int = 1,
                min_probability: float = 0.0) -> Iterator[Prediction]:
    """Label the rows of a split, or of all, by a strategy, in stored order, which is the order of a stream.

    Raises StoreMismatch if another encoder made the store, MethodError if the strategy cannot work with it.
    """
    check_encoder(classifier, store)
    stored, key, reason = store.rows(split, labelled=False), store.column("key"), store.column("reason")
    if strategy.sees in OUTPUTS:
        for number in np.unique(store.column("split")[stored]).tolist():
            require_several(store, strategy.sees, SPLITS[number] if number >= 0 else "all", strategy.name)
    answers: Iterator[Prediction] = iter(())
    if len(stored):
        logits = Session.begin(strategy, classifier, store).infer(stored).logits
        answers = answers_of(classifier.class_names, logits.float(), top_k, min_probability)
    good = np.zeros(len(key), dtype=bool)
    good[stored] = True
    for row in rows_to_label(store, split):
        yield (replace(next(answers), key=str(key[row])) if good[row]
               else Prediction(str(key[row]), reason=str(reason[row]), state=BAD_IMAGE))


def infer_rows(classifier: Classifier, rows: np.ndarray | Tensor, strategy: Inference, top_k: int = 1,
               min_probability: float = 0.0) -> Iterator[Prediction]:
    """Label raw embeddings (rows, dim) by a strategy that reads a set or a stream; the key of each is its number.

    Raises PredictionError for a strategy that reads something else of an image.
    """
    if strategy.sees in OUTPUTS:
        raise PredictionError(f"{strategy.name} reads {strategy.sees} of images, and these are embeddings: give "
                              "images, or a store that has them")
    values = torch.as_tensor(rows) if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))
    logits = _infer(classifier, strategy, queries_of(classifier, values), _task(classifier, classifier.encoder))
    answers = answers_of(classifier.class_names, logits, top_k, min_probability)
    return (replace(answer, key=str(number)) for number, answer in enumerate(answers))


def infer_images(classifier: Classifier, images: Sequence[Record], encoder: Encoder, strategy: Inference,
                 views: int | None = None, top_k: int = 1, min_probability: float = 0.0) -> Iterator[Prediction]:
    """Label images by a strategy, in the order given, which is the order of a stream.

    Of views and patches each image is answered as it comes; a set and a stream are read when all are encoded.
    views: how many are made of an image; None for the given crops, else those of the adapter's record, else 64.
    Raises StoreMismatch if the adapter belongs to another encoder, PredictionError for a strategy that needs a store.
    """
    kind = require_encoder(classifier, encoder)
    if strategy.fitted_on == TRAIN:
        further = "" if "fit_on" not in strategy.hyperparameters else ", or say fit_on=query"
        raise PredictionError(f"{strategy.name} is fitted on train images, and images alone have none: predict on a "
                              f"store{further}")
    if strategy.wants_tower:
        raise PredictionError(f"{strategy.name} encodes prompts anew, and images alone have no text tower: predict on "
                              "a store that has one (text --tower)")
    if strategy.wants_support:
        raise PredictionError(f"{strategy.name} reads the labelled images that the adapter was fitted on, and has "
                              "none here: evaluate it on the store that they are in")
    if strategy.sees in OUTPUTS and classifier.inputs != (EMBEDDING,):
        raise PredictionError(f"{strategy.name} reads {strategy.sees}, which are embeddings, and the adapter takes "
                              f"{', '.join(classifier.inputs)}: use an adapter of embeddings alone")
    made = views_for(classifier, images, views) if strategy.sees == "views" else None
    outputs = (EMBEDDING, TOKEN) if strategy.sees == "patches" else (EMBEDDING,) if made else tuple(
        dict.fromkeys((EMBEDDING, *classifier.inputs)))
    if strategy.sees == "patches":
        kind = str(_recorded(classifier, TOKEN).get("tokens", "value"))
    contents = enumerate(image.content for image in images)
    task = _task(classifier, encoder.info)
    waiting: list[tuple[Encoded, Queries | None]] = []  # of a set or a stream
    with Decoders(len(images)) as decoders, EncoderThreads(encoder) as threads, closing(encode(
            decoders, threads, contents, len(images), outputs=outputs, tokens=kind,
            views=None if made is None else replace(made, with_plain=True))) as pieces:
        for piece in pieces:
            queries = _queries(classifier, strategy, piece) if len(piece.good) else None
            if strategy.sees not in OUTPUTS:
                waiting.append((replace(piece, values={}), queries))
                continue
            logits = None if queries is None else _infer(classifier, strategy, queries, task)
            yield from _named(classifier, images, piece, logits, top_k, min_probability)
    found = [queries for _, queries in waiting if queries is not None]
    logits = _infer(classifier, strategy, _joined(found), task) if found else None
    done = 0
    for piece, _ in waiting:
        mine = None if logits is None else logits[done:done + len(piece.good)]
        done += len(piece.good)
        yield from _named(classifier, images, piece, mine, top_k, min_probability)


def views_for(classifier: Classifier, images: Sequence[Record], number: int | None = None) -> Views:
    """How views of images are made: given crops, else as the adapter's record says, else DEFAULT_VIEWS.

    number: of the random views of an image, in place of what the record says.
    Raises PredictionError for a record that is damaged, or too few views.
    """
    boxes = {image.key: found for image in images if (found := getattr(image.content, "boxes", ()))}
    if boxes and number is None:
        return crops_of(boxes)
    try:
        made = Views.of(_recorded(classifier, VIEW)) or DEFAULT_VIEWS
        if made.number > _MOST:
            raise ValueError(f"{made.number:,} views of an image")
    except ValueError as error:
        raise PredictionError(f"the adapter's record of views cannot be followed: {error}; give --views N") from error
    if made.kind != DEFAULT_VIEWS.kind and (number is not None or made.boxes):
        made = DEFAULT_VIEWS
    if number is not None and number < 2:
        raise PredictionError(f"--views {number}: give 2 or more, the plain image among them")
    return made if number is None else replace(made, number=number)


def _recorded(classifier: Classifier, output: str) -> Mapping[str, Any]:
    """What the adapter's record says of an output, which is a file's word; empty for nothing."""
    outputs = classifier.provenance.get("outputs")
    spec = outputs.get(output) if isinstance(outputs, Mapping) else None
    return spec if isinstance(spec, Mapping) else {}


def _task(classifier: Classifier, encoder: Mapping[str, Any]) -> Task:
    return names_alone(classifier, int(encoder.get("dim") or classifier.dim), **logit_numbers(encoder))


def _infer(classifier: Classifier, strategy: Inference, queries: Queries, task: Task) -> Tensor:
    return strategy.run(classifier, queries, task).logits.float()


def _queries(classifier: Classifier, strategy: Inference, piece: Encoded) -> Queries:
    values = {name: torch.from_numpy(each).to(classifier.head.dtype) for name, each in piece.values.items()}
    if strategy.sees == "views":
        views = unit(values[EMBEDDING])
        return Queries(views[:, 0], views=views)
    if strategy.sees == "patches":
        return Queries(unit(values[EMBEDDING]), patches=unit(values[TOKEN]))
    own = classifier.inputs == (EMBEDDING,)
    inputs = None if own else torch.cat([values[name].flatten(1) for name in classifier.inputs], dim=1)
    return queries_of(classifier, values[EMBEDDING], inputs)


def _joined(found: Sequence[Queries]) -> Queries:
    inputs = [each.inputs for each in found if each.inputs is not None]
    return Queries(torch.cat([each.embedding for each in found]), torch.cat(inputs) if inputs else None)


def _named(classifier: Classifier, images: Sequence[Record], piece: Encoded, logits: Tensor | None, top_k: int,
           min_probability: float) -> Iterator[Prediction]:
    """The answers of a piece, bad images among them. logits: of the good ones."""
    answers = iter(()) if logits is None else answers_of(classifier.class_names, logits, top_k, min_probability)
    for place, (row, reason) in enumerate(zip(piece.rows, piece.reasons, strict=True)):
        name = images[row].key
        yield without_answer(name, piece, place) if reason else replace(next(answers), key=name)
