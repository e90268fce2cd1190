"""How a strategy of inference reads rows of a store, embeddings, or images, of which it makes views or patches."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
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
from onceclip.pipeline.decoding.views import Views, crops_of
from onceclip.pipeline.encoders import Encoder
from onceclip.pipeline.encoders.images import Encoded
from onceclip.pipeline.encoders.opening import require_encoder
from onceclip.pipeline.errors import PredictionError
from onceclip.pipeline.evaluation.inference import Session
from onceclip.pipeline.evaluation.queries import OUTPUTS, names_alone, require_several
from onceclip.pipeline.extraction.outputs import TOKEN, VIEW
from onceclip.pipeline.prediction.encoding import WITHOUT_TOKENS, encode_records
from onceclip.pipeline.sources import Record
from onceclip.pipeline.tasks.tasks import logit_numbers
from onceclip.stores import Store
from onceclip.stores.schema import SPLITS

DEFAULT_VIEWS = Views(number=64)
_MOST = 1024  # views that an adapter's file may ask for


def logits_of_store(classifier: Classifier, store: Store, rows: np.ndarray, strategy: Inference) -> Tensor:
    """The logits (n, classes) that a strategy gives rows of a store; their order is that of a stream.

    Raises StoreIncomplete if the store lacks what it reads, MethodError if it cannot work with the store.
    """
    if strategy.sees in OUTPUTS:
        for number in np.unique(store.column("split")[rows]).tolist():
            require_several(store, strategy.sees, SPLITS[number] if number >= 0 else "all", strategy.name)
    return Session.begin(strategy, classifier, store).infer(rows).logits.float()


def logits_of_rows(classifier: Classifier, rows: np.ndarray | Tensor, strategy: Inference) -> Tensor:
    """The logits that a strategy which reads a set or a stream gives raw embeddings (rows, dim).

    Raises PredictionError for a strategy that reads something else of an image.
    """
    if strategy.sees in OUTPUTS:
        raise PredictionError(f"{strategy.name} reads {strategy.sees} of images, and these are embeddings: give "
                              "images, or a store that has them")
    values = rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))
    return _infer(classifier, strategy, queries_of(classifier, values), _task(classifier, classifier.encoder))


def logits_of_images(classifier: Classifier, images: Sequence[Record], encoder: Encoder, strategy: Inference,
                     views: int | None = None) -> Generator[tuple[Encoded, Tensor], None, None]:
    """Encode images, and give every piece with the logits of its good ones; their order is that of a stream.

    Views and patches are read as they come, a set and a stream when all images are encoded.
    views: how many are made of an image; None for the given crops, else those of the adapter's record, else 64.
    Raises StoreMismatch if the adapter belongs to another encoder, PredictionError for a strategy that needs a store.
    """
    tokens = require_encoder(classifier, encoder, WITHOUT_TOKENS)
    _require_images_suffice(classifier, strategy)
    outputs: Sequence[str] = tuple(dict.fromkeys((EMBEDDING, *classifier.inputs)))
    made: Views | None = None
    if strategy.sees == "views":
        made = replace(views_for(classifier, images, views), with_plain=True)
    elif strategy.sees == "patches":
        outputs, tokens = (EMBEDDING, TOKEN), str(_recorded(classifier, TOKEN).get("tokens", "value"))
    task, nothing = _task(classifier, encoder.info), torch.empty(0, len(classifier.class_names))
    waiting: list[Encoded] = []
    found: list[Queries] = []  # of what waits
    with closing(encode_records(images, encoder, outputs, tokens, made)) as pieces:
        for piece in pieces:
            queries = [_queries(classifier, strategy, piece)] if len(piece.good) else []
            if strategy.sees in OUTPUTS:
                yield piece, _infer(classifier, strategy, queries[0], task) if queries else nothing
            else:
                waiting.append(replace(piece, values={}))
                found += queries
    logits = _infer(classifier, strategy, _joined(found), task) if found else nothing
    yield from zip(waiting, logits.split([len(piece.good) for piece in waiting]), strict=True)


def _require_images_suffice(classifier: Classifier, strategy: Inference) -> None:
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
