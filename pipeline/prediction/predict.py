"""Labels for images or for a store, from a saved adapter; in order, and with no more in memory than is at work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters import Classifier, SetRule
from onceclip.pipeline.decoding.decoders import Decoders
from onceclip.pipeline.encoders import Encoder, EncoderSpec
from onceclip.pipeline.encoders.images import Encoded, EncoderThreads, encode
from onceclip.pipeline.encoders.opening import recorded_encoder
from onceclip.pipeline.errors import PredictionError
from onceclip.pipeline.extraction.outputs import TOKEN
from onceclip.pipeline.sources import Record
from onceclip.pipeline.tasks.tasks import check_encoder, inputs_of
from onceclip.stores import Store, StoreMismatch
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


def predict_store(classifier: Classifier, store: Store, split: str | None = None, top_k: int = 1,
                  min_probability: float = 0.0) -> Iterator[Prediction]:
    """Label the rows of a split, or of all, in stored order; bad images are among them.

    min_probability: of an answer that is sure enough.
    Raises StoreMismatch if another encoder made the store.
    """
    check_encoder(classifier, store)
    stored, key, reason = store.rows(split, labelled=False), store.column("key"), store.column("reason")
    answers = (answer for values in inputs_of(classifier, store, stored)
               for answer in _answers(classifier, values, top_k, min_probability))
    good = np.zeros(len(key), dtype=bool)
    good[stored] = True
    for row in rows_to_label(store, split):
        yield (replace(next(answers), key=str(key[row])) if good[row]
               else Prediction(str(key[row]), reason=str(reason[row]), state=BAD_IMAGE))


def rows_to_label(store: Store, split: str | None = None) -> np.ndarray:
    """Positions of the images of a split, or of all, stored ones and bad ones: (n,) int64."""
    bad = store.column("state") == BAD
    if split is not None:
        bad &= store.column("split") == SPLITS.index(split)
    return np.union1d(store.rows(split, labelled=False), np.flatnonzero(bad))


def predict_rows(classifier: Classifier, rows: np.ndarray | Tensor, top_k: int = 1,
                 min_probability: float = 0.0) -> Iterator[Prediction]:
    """Label raw embeddings (rows, dim); the key of each is its number."""
    answers = (answer for start in range(0, len(rows), PIECE_ROWS)
               for answer in _answers(classifier, rows[start:start + PIECE_ROWS], top_k, min_probability))
    return (replace(answer, key=str(number)) for number, answer in enumerate(answers))


def predict_images(classifier: Classifier, images: Sequence[Record], encoder: Encoder, top_k: int = 1,
                   min_probability: float = 0.0) -> Iterator[Prediction]:
    """Label images in the order given; `list_inputs` lists those of files and folders.

    min_probability: of an answer that is sure enough.
    Raises StoreMismatch if the adapter belongs to another encoder, PredictionError or EncoderError if it takes what
    cannot be had of images.
    """
    tokens = require_encoder(classifier, encoder)
    contents = enumerate(image.content for image in images)
    with Decoders(len(images)) as decoders, EncoderThreads(encoder) as threads, closing(
            encode(decoders, threads, contents, len(images), outputs=classifier.inputs, tokens=tokens)) as pieces:
        for piece in pieces:
            answers = _answers(classifier, rows_of(classifier, piece), top_k, min_probability)
            for place, (row, reason) in enumerate(zip(piece.rows, piece.reasons, strict=True)):
                name = images[row].key
                yield without_answer(name, piece, place) if reason else replace(next(answers), key=name)


def without_answer(name: str, piece: Encoded, place: int) -> Prediction:
    """What is said of an image without an embedding. place: within the piece."""
    return Prediction(name, reason=piece.reasons[place],
                      state=INTERRUPTED if place in piece.interrupted else BAD_IMAGE)


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


def encoder_of(classifier: Classifier, given: EncoderSpec | Encoder | None = None, device: str = "auto") -> Encoder:
    """Load the encoder of an adapter; `given` is a loaded one, or says which where the adapter cannot.

    Raises SourceError if the adapter's embeddings were imported and nothing says which encoder made them,
    PredictionError for an adapter of several encoders.
    """
    others = dict.fromkeys(each.partition("/")[0] for each in classifier.inputs if "/" in each)
    if others:
        raise PredictionError(f"the adapter reads embeddings of {len(others) + 1} encoders, and images are encoded by "
                              "one: extract a store of the images with each, and give the store with "
                              + " ".join(f"--join {name}=STORE" for name in others))
    if isinstance(given, Encoder):
        return given
    return recorded_encoder(classifier.encoder, "the adapter", given, device,
                            ", or predict on a store")


def require_encoder(classifier: Classifier, encoder: Encoder) -> str:
    """Raise unless the encoder is the adapter's; which patch tokens the adapter takes."""
    mine, adapters = encoder.info["fingerprint"], classifier.encoder
    kind = classifier.provenance.get("outputs", {}).get(TOKEN, {}).get("tokens", "")
    if TOKEN in classifier.inputs and not kind:
        raise PredictionError(f"the adapter ({classifier.method}) takes patch tokens and does not say which: predict "
                              "on a store that has them, or fit it again on one that `onceclip extract` made")
    if adapters.get("imported"):
        width = sum(int(np.prod(shape)) for shape in
                    encoder.output_shapes(classifier.inputs, kind or "last").values())
        if width != classifier.dim:
            raise StoreMismatch(f"the adapter takes {classifier.dim} dimensions, {encoder.info['name']} gives "
                                f"{width}: name the encoder that made the imported features")
    elif adapters.get("fingerprint") not in (None, mine):
        raise StoreMismatch(f"the adapter was fitted on embeddings of {adapters['name']} ({adapters['fingerprint']}), "
                            f"this encoder is {encoder.info['name']} ({mine}): name the right one with --model and "
                            "--pretrained")
    return kind or "last"


def rows_of(classifier: Classifier, piece: Encoded) -> np.ndarray:
    """What a classifier takes of the good images of a piece, (good, width)."""
    if not len(piece.good):
        return np.empty((0, classifier.dim), np.float32)
    return np.concatenate([piece.values[name].reshape(len(piece.good), -1) for name in classifier.inputs], axis=1)


def _answers(classifier: Classifier, values: Tensor | np.ndarray, top_k: int,
             min_probability: float) -> Iterator[Prediction]:
    """Answers for raw rows, still without a name. The first class is the one that `Classifier.predict` names."""
    return answers_of(classifier.class_names, classifier.logits(values), top_k, min_probability, classifier.temperature)


def answers_of(names: Sequence[str], logits: Tensor, top_k: int, min_probability: float,
               temperature: float = 1.0) -> Iterator[Prediction]:
    """Answers of logits (rows, classes) for the names of the classes, still without a key."""
    probability = (logits / temperature).softmax(dim=1)
    best = logits.argmax(dim=1, keepdim=True)
    others = logits.scatter(1, best, -torch.inf).topk(min(top_k, logits.shape[1]) - 1, dim=1).indices
    order = torch.cat([best, others], dim=1)
    for place, shares, row in zip(order.tolist(), probability.gather(1, order).tolist(), logits.numpy(), strict=True):
        top = [(names[index], share) for index, share in zip(place, shares, strict=True)]
        name, share = top[0]
        yield (Prediction("", top, row) if share >= min_probability else
               Prediction("", top, row, f"most likely {name} ({share:.4f})", UNSURE))
