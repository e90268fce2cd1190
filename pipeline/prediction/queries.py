"""What a person asks for, a sentence or an image file, as an embedding of a store's encoder."""

from __future__ import annotations

from contextlib import closing

import torch
from torch import Tensor

from onceclip.pipeline.decoding.decoders import Decoders
from onceclip.pipeline.encoders import EncoderSpec
from onceclip.pipeline.encoders.encoder import Encoder
from onceclip.pipeline.encoders.images import EMBEDDING, EncoderThreads, encode
from onceclip.pipeline.encoders.opening import recorded_encoder
from onceclip.pipeline.encoders.sentences import encode_sentences
from onceclip.pipeline.encoders.spec import clip_of
from onceclip.pipeline.errors import RetrievalError
from onceclip.pipeline.prediction.inputs import list_inputs
from onceclip.pipeline.sources import SourceOptions
from onceclip.stores import Store


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
    with Decoders(1) as decoders, EncoderThreads(opened) as threads, closing(
            encode(decoders, threads, [(0, records[0].content)], 1)) as pieces:
        piece = next(pieces)
    if piece.reasons[0]:
        raise RetrievalError(f"{image} cannot be used: {piece.reasons[0]}")
    return torch.from_numpy(piece.values[EMBEDDING][0])


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
