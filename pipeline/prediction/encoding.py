"""The encoder that an adapter or a store belongs to, and images and sentences as it embeds them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters import Classifier
from onceclip.pipeline.decoding.decoders import Decoders
from onceclip.pipeline.decoding.views import Views
from onceclip.pipeline.encoders import Encoder, EncoderSpec
from onceclip.pipeline.encoders.images import EMBEDDING, Encoded, EncoderThreads, encode
from onceclip.pipeline.encoders.opening import recorded_encoder, require_encoder
from onceclip.pipeline.encoders.sentences import encode_sentences
from onceclip.pipeline.encoders.spec import clip_of
from onceclip.pipeline.errors import PredictionError, RetrievalError
from onceclip.pipeline.prediction.inputs import list_inputs
from onceclip.pipeline.sources import Record, SourceOptions
from onceclip.stores import Store

WITHOUT_TOKENS = "predict on a store that has them, or fit it again on one that `onceclip extract` made"


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
    return recorded_encoder(classifier.encoder, "the adapter", given, device, ", or predict on a store")


def encoder_for(store: Store, given: EncoderSpec | None = None, device: str = "auto") -> Encoder:
    """Load the encoder of a store; `given` says where it is, if the store cannot.

    Raises StoreMismatch if it is another one, RetrievalError if its embeddings are of another width.
    """
    encoder = recorded_encoder(store.encoder, store.path, given, device)
    if not store.encoder.get("imported"):
        store.require_encoder(encoder.info["fingerprint"], f"the query's encoder ({encoder.info['name']})")
    elif encoder.dim != store.dim:
        raise RetrievalError(f"{store.path} has {store.dim} dimensions, {encoder.info['name']} gives {encoder.dim}: "
                             "name the encoder that made the images")
    return encoder


def encode_records(images: Sequence[Record], encoder: Encoder, outputs: Sequence[str] = (EMBEDDING,),
                   tokens: str = "last", views: Views | None = None) -> Generator[Encoded, None, None]:
    """Read and encode images in their order; `rows` are their numbers. outputs, tokens, views: as of `encode`."""
    contents = enumerate(image.content for image in images)
    with Decoders(len(images)) as decoders, EncoderThreads(encoder) as threads, closing(
            encode(decoders, threads, contents, len(images), outputs=outputs, tokens=tokens, views=views)) as pieces:
        yield from pieces


def rows_of_images(classifier: Classifier, images: Sequence[Record],
                   encoder: Encoder) -> Generator[tuple[Encoded, np.ndarray], None, None]:
    """Encode images, and give with every piece what the classifier takes of its good ones, (good, width).

    Raises StoreMismatch if the adapter belongs to another encoder, PredictionError or EncoderError if it takes what
    cannot be had of images.
    """
    tokens = require_encoder(classifier, encoder, WITHOUT_TOKENS)
    with closing(encode_records(images, encoder, classifier.inputs, tokens)) as pieces:
        for piece in pieces:
            values = np.empty((0, classifier.dim), np.float32)
            if good := len(piece.good):
                values = np.concatenate([piece.values[name].reshape(good, -1) for name in classifier.inputs], axis=1)
            yield piece, values


def query_embedding(store: Store, sentence: str | None, image: str | None, encoder: EncoderSpec | None = None,
                    device: str = "auto") -> Tensor:
    """The raw embedding (dim,) of a sentence, or of an image file.

    encoder: where it is, if the store cannot say.
    Raises RetrievalError if the image cannot be read, StoreMismatch if the encoder is not the store's.
    """
    options = SourceOptions(clip=clip_of(store.encoder))
    records = list_inputs([image], options).records if image is not None else []
    if image is not None and len(records) != 1:
        raise RetrievalError(f"{image} is no single image: give the file of one")
    if sentence is not None and not sentence.strip():
        raise RetrievalError("the query is empty: write what to look for, such as \"a red car\"")
    opened = encoder_for(store, encoder, device)
    if sentence is not None:
        return torch.from_numpy(encode_sentences(opened, [sentence]).embedding[0])
    piece, = encode_records(records, opened)
    if piece.reasons[0]:
        raise RetrievalError(f"{image} cannot be used: {piece.reasons[0]}")
    return torch.from_numpy(piece.values[EMBEDDING][0])
