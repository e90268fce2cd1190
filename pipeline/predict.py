"""Labels for images, folders or stores, from a saved adapter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters import Classifier
from onceclip.pipeline.decoders import Decoders
from onceclip.pipeline.encode import EMBEDDING, encode
from onceclip.pipeline.encoders import Encoder, EncoderSpec
from onceclip.pipeline.evaluate import check_encoder
from onceclip.pipeline.lanes import Lanes
from onceclip.pipeline.recorded_encoder import recorded_encoder
from onceclip.pipeline.sources import Content, LocalFile
from onceclip.pipeline.sources.folder import list_images
from onceclip.stores import Store, StoreMismatch
from onceclip.stores.keys import encode_key


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
    files = list(_files(paths))
    images = enumerate(content for _, content in files)
    with Decoders(len(files)) as decoders, Lanes(encoder) as lanes, closing(
            encode(decoders, lanes, images, len(files))) as pieces:
        for piece in pieces:
            names = [files[row][0] for row in piece.rows]
            logits = classifier.logits(piece.values[EMBEDDING]) if len(piece.good) else torch.empty(0)
            good = _answers(classifier, [names[place] for place in piece.good], logits, top_k)
            for name, reason in zip(names, piece.reasons, strict=True):
                yield Prediction(name, reason=reason) if reason else next(good)


def encoder_of(classifier: Classifier, given: EncoderSpec | None = None, device: str = "auto") -> Encoder:
    """Load the encoder that an adapter was fitted with; `given` says which where the adapter cannot.

    Raises SourceError if the adapter's embeddings were imported and nothing says which encoder made them.
    """
    return recorded_encoder(classifier.provenance.get("encoder", {}), "the adapter", given, device,
                            ", or predict on a store")


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
