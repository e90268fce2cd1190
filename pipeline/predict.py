"""Labels for images, folders or stores, from a saved adapter."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters import Classifier
from onceclip.pipeline.encoder import Encoder, EncoderSpec, open_encoder
from onceclip.pipeline.errors import BadImage, SourceError
from onceclip.pipeline.evaluate import check_encoder
from onceclip.pipeline.images import decoding, prepare
from onceclip.pipeline.sources import Content, LocalFile, list_images
from onceclip.stores import Store, StoreMismatch
from onceclip.stores.keys import encode_key

_IMAGES = 64


@dataclass(frozen=True)
class Prediction:
    """One image's answer.

    image: key or path. top: (class, probability) pairs, the most likely first; empty for a bad image.
    logits: (classes,), None for a bad image. reason: why an image is bad, else empty.
    """

    image: str
    top: list[tuple[str, float]] = field(default_factory=list)
    logits: np.ndarray | None = None
    reason: str = ""


def predict_store(classifier: Classifier, store: Store, split: str | None = None,
                  top_k: int = 1) -> Iterator[Prediction]:
    """Label the stored rows of a split, or of all, in stored order."""
    check_encoder(classifier, store)
    for rows, embeddings in store.pieces(store.rows(split, labelled=False)):
        names = [str(key) for key in store.column("key")[rows]]
        yield from _answers(classifier, names, classifier.logits(embeddings), top_k)


def predict_images(classifier: Classifier, paths: Sequence[Path], encoder: Encoder,
                   top_k: int = 1) -> Iterator[Prediction]:
    """Label image files, in the order given; a folder stands for the images in it."""
    mine, adapters = encoder.info["fingerprint"], classifier.provenance.get("encoder", {})
    if adapters.get("imported"):
        if encoder.dim != classifier.dim:
            raise StoreMismatch(f"the adapter takes {classifier.dim} dimensions, {encoder.info['name']} gives "
                                f"{encoder.dim}: name the encoder that made the imported features")
    elif adapters.get("fingerprint") not in (None, mine):
        raise StoreMismatch(f"the adapter was fitted on embeddings of {adapters['name']} ({adapters['fingerprint']}), "
                            f"this encoder is {encoder.info['name']} ({mine}): name the right one with --model and "
                            "--pretrained")
    with decoding(), ThreadPoolExecutor(os.cpu_count()) as pool:
        files = _files(paths)
        while batch := list(islice(files, _IMAGES)):
            ready = list(pool.map(lambda item: _pixels(item[1], encoder), batch))
            pixels = [item for item in ready if isinstance(item, Tensor)]
            names = [name for (name, _), item in zip(batch, ready, strict=True) if isinstance(item, Tensor)]
            logits = classifier.logits(encoder.encode_images(torch.stack(pixels))) if pixels else torch.empty(0)
            good = _answers(classifier, names, logits, top_k)
            for (name, _), item in zip(batch, ready, strict=True):
                yield next(good) if isinstance(item, Tensor) else Prediction(name, reason=item)


def _pixels(content: Content, encoder: Encoder) -> Tensor | str:
    """An image for the encoder, or why there is none."""
    try:
        return prepare(content.read(), encoder.preprocess)
    except BadImage as error:
        return str(error)


def encoder_of(classifier: Classifier, given: EncoderSpec | None = None, device: str = "auto") -> Encoder:
    """Load the encoder that an adapter was fitted with; `given` says which where the adapter cannot.

    Raises SourceError if the adapter's embeddings were imported and nothing says which encoder made them.
    """
    info = classifier.provenance.get("encoder", {})
    if given is None:
        if info.get("imported") or "name" not in info or info["name"].startswith("local-dir:"):
            raise SourceError(f"the adapter does not say where its encoder ({info.get('name', 'unknown')}) is: name it "
                              "with --model (and --pretrained), or predict on a store")
        given = EncoderSpec(info["name"], info.get("pretrained"), device=device)
    return open_encoder(replace(given, precision=info.get("precision", given.precision)))


def _files(paths: Sequence[Path]) -> Iterator[tuple[str, Content]]:
    for path in paths:
        if path.is_dir():
            yield from ((record.key, record.content) for record in list_images(path))
        else:
            yield encode_key(str(path)), LocalFile(path)


def _answers(classifier: Classifier, names: Sequence[str], logits: Tensor, top_k: int) -> Iterator[Prediction]:
    if not names:
        return
    values, order = logits.softmax(dim=1).topk(min(top_k, logits.shape[1]), dim=1)
    for name, probability, place, row in zip(names, values.tolist(), order.tolist(), logits.numpy(), strict=True):
        top = [(classifier.class_names[index], value) for index, value in zip(place, probability, strict=True)]
        yield Prediction(name, top, row)


def write_logits(path: Path, predictions: Iterable[Prediction], classes: int) -> Iterator[Prediction]:
    """Pass predictions on and, when they end, write their logits (images, classes); a bad image's row is NaN."""
    rows = []
    for prediction in predictions:
        rows.append(np.full(classes, np.nan, np.float32) if prediction.logits is None else prediction.logits)
        yield prediction
    with path.open("wb") as file:  # np.save would add a suffix to a bare name
        np.save(file, np.array(rows, np.float32).reshape(len(rows), classes))


def as_values(prediction: Prediction) -> dict[str, Any]:
    """A prediction as JSON values."""
    if prediction.reason:
        return {"image": prediction.image, "state": "bad", "reason": prediction.reason}
    return {"image": prediction.image, "state": "ok", "class": prediction.top[0][0],
            "top": [{"class": name, "probability": value} for name, value in prediction.top]}
