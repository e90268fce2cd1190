"""Sentences into raw embeddings: equal ones once, like lengths together, and none cut without a word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from onceclip.pipeline.encoders.encoder import Encoder
from onceclip.pipeline.errors import EncoderError

BATCH = 256
_ROUNDING = 0.02  # of an embedding's length; what another context does to a model that is not causal is far more
_ONE_AT_A_TIME = Lock()  # the context of a model is shortened in place


@dataclass(frozen=True)
class Encoded:
    """What became of some sentences.

    embedding: (sentences, dim) float32, raw, in the order given. distinct: number of different ones.
    cut: those that are longer than the encoder's context, of which only the beginning was embedded.
    """

    embedding: np.ndarray
    distinct: int
    cut: tuple[str, ...]


def encode_sentences(encoder: Encoder, sentences: Sequence[str], truncate: bool = False,
                     progress: bool = False) -> Encoded:
    """Embed sentences.

    A causal text model never looks ahead, so what follows the end of a sentence is not computed where the model
    allows it: class prompts mostly fill a seventh of CLIP's context.

    truncate: cut a sentence that is longer than the encoder's context instead of refusing it.
    progress: show a bar on a terminal.
    Raises EncoderError for a sentence that is too long, or whose embedding is not finite.
    """
    distinct = list(dict.fromkeys(sentences))
    if not distinct:
        return Encoded(np.empty((0, encoder.dim), np.float32), 0, ())
    embedding = np.empty((len(distinct), encoder.dim), np.float32)
    cut: list[str] = []
    with _ONE_AT_A_TIME, tqdm(total=len(distinct), desc="prompts", unit="prompt", delay=1, leave=False,
                              disable=None if progress else True) as bar:
        if encoder.tokenizer is None:  # the model takes sentences themselves
            for start in range(0, len(distinct), BATCH):
                embedding[start:start + BATCH] = encoder.encode_tokens(distinct[start:start + BATCH])
                bar.update(BATCH)
        else:
            tokens, cut = _tokenize(encoder, distinct, truncate)
            for batch, vectors in _in_order_of_length(encoder, tokens):
                embedding[batch] = vectors
                bar.update(len(batch))
    lost = np.flatnonzero(~np.isfinite(embedding).all(axis=1))
    if len(lost):
        raise EncoderError(f"{encoder.info['name']} gives no finite embedding for {distinct[lost[0]]!r} in "
                           f"{encoder.info.get('precision')}: use --precision fp32")
    place = {sentence: index for index, sentence in enumerate(distinct)}
    return Encoded(embedding[[place[sentence] for sentence in sentences]], len(distinct), tuple(cut))


def _tokenize(encoder: Encoder, sentences: Sequence[str], truncate: bool) -> tuple[Tensor, list[str]]:
    """Token ids (sentences, context), and the sentences that do not fit in."""
    tokenizer: Any = encoder.tokenizer
    tokens = torch.cat([tokenizer(list(sentences[start:start + BATCH])) for start in range(0, len(sentences), BATCH)])
    cut = _too_long(tokenizer, sentences, tokens)
    if cut and not truncate:
        more = f" (and {len(cut) - 1} more)" if len(cut) > 1 else ""
        raise EncoderError(f"a prompt is longer than the {tokens.shape[1]} tokens that {encoder.info['name']} reads: "
                           f"shorten it, or let `onceclip text --truncate` cut it: {cut[0]!r}{more}")
    return tokens, cut


def _in_order_of_length(encoder: Encoder, tokens: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Embed the rows of tokens (sentences, context), short ones first: positions and embeddings, batch by batch."""
    length = _lengths(tokens)
    order = torch.argsort(length, stable=True)
    tower = _short_context(encoder, tokens[order[:2]], int(length[order[:2]].max()))
    for batch in order.split(BATCH):
        yield batch.numpy(), _encode(encoder, tokens[batch], tower, int(length[batch].max()))


def _too_long(tokenizer: Any, sentences: Sequence[str], tokens: Tensor) -> list[str]:
    """Sentences of which a longer context would hold more; tokenizers cut them without a word."""
    context = tokens.shape[1]
    if getattr(tokenizer, "context_length", None) is None:
        return []
    fill = int(tokenizer([""], context_length=2 * context)[0].mode().values)
    ends_in_fill = (tokens[:, -2:] == fill).all(dim=1)  # two, because some models fill with the mark of the end
    full = torch.nonzero(~ends_in_fill)[:, 0].tolist()
    if not full:
        return []
    wide = tokenizer([sentences[index] for index in full], context_length=2 * context)
    return [sentences[index] for index, row in zip(full, wide, strict=True)
            if row[row != fill].tolist() != tokens[index][tokens[index] != fill].tolist()]


def _lengths(tokens: Tensor) -> Tensor:
    """Number of places (sentences,) up to the last one that differs from the row's end, and one of the end."""
    context = tokens.shape[1]
    inside = tokens != tokens[:, -1:]
    place = torch.arange(1, context + 1)
    return (torch.where(inside, place, 0).amax(dim=1) + 1).clamp(max=context)


def _encode(encoder: Encoder, tokens: Tensor, tower: Any, length: int) -> np.ndarray:
    if tower is None:
        return encoder.encode_tokens(tokens)
    with _context(tower, length):
        return encoder.encode_tokens(tokens[:, :length])


def _short_context(encoder: Encoder, tokens: Tensor, length: int) -> Any:
    """The module whose context can be shortened, or None where that would change what these sentences give."""
    tower = _causal(encoder, tokens.shape[1])
    if tower is not None:
        whole, short = (_encode(encoder, tokens, each, length) for each in (None, tower))
        if (np.linalg.norm(whole - short, axis=1) <= _ROUNDING * np.linalg.norm(whole, axis=1)).all():
            return tower
    return None


def _causal(encoder: Encoder, context: int) -> Any:
    """The module that holds the positions and the causal mask of a text model, or None if it has no such mask."""
    model = getattr(encoder, "model", None)
    for module in (model, getattr(model, "text", None)):
        position, mask = getattr(module, "positional_embedding", None), getattr(module, "attn_mask", None)
        if (isinstance(position, Tensor) and isinstance(mask, Tensor) and mask.shape == (context, context)
                and len(position) == context):
            ahead = torch.ones_like(mask, dtype=torch.bool).triu(1)
            if torch.isneginf(mask[ahead]).all() and not mask[~ahead].any():
                return module
    return None


@contextmanager
def _context(module: Any, length: int) -> Iterator[None]:
    """Give a causal text model a context of `length` places for a while."""
    position, mask = module.positional_embedding, module.attn_mask
    module.positional_embedding = torch.nn.Parameter(position[:length], requires_grad=False)
    module.attn_mask = mask[:length, :length]
    try:
        yield
    finally:
        module.positional_embedding, module.attn_mask = position, mask
