"""The text tower of a store: weights of the encoder's text model, and the tokens of what prompts are made of."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from onceclip.adapters.tower import TextTower
from onceclip.pipeline.encoders.text_towers import written_tower
from onceclip.pipeline.errors import EncoderError, PromptError
from onceclip.pipeline.prompts.embedding import NAME
from onceclip.pipeline.prompts.prompts import DEFAULT_TEMPLATES, class_phrases
from onceclip.stores import Store, StoredTower, StoreWriter, open_store, write_lock

if TYPE_CHECKING:
    from onceclip.pipeline.encoders import Encoder

_TRIED = 8  # sentences that encoder and tower both embed
_APART = {"fp32": 1e-4}  # of an embedding's length; more where the encoder computes in half precision
_HALF = 0.03


def add_tower(path: str, encoder: Encoder, words: Sequence[str] = ()) -> dict[str, Any]:
    """Write the text tower of a store's encoder into the store, unless it is there already.

    words: phrases that prompts may begin with, beside those of the store's templates.
    Gives what was done, as JSON values.
    Raises EncoderError if the tower cannot be written down, PromptError for words or names that it cannot hold,
    StoreMismatch for another encoder.
    """
    begun = time.perf_counter()
    with write_lock(path):
        writer = StoreWriter.open(path, open_store(path).encoder)
        store = writer.store
        if not store.encoder.get("imported"):
            store.require_encoder(encoder.info["fingerprint"], f"the text tower ({encoder.info['name']})")
        if encoder.dim != store.dim:
            raise PromptError(f"{path} has {store.dim} dimensions, {encoder.info['name']} gives {encoder.dim}: name "
                              "the encoder that made the images")
        present = store.tower().spec["phrases"] if store.tower_attributes else {}
        tower = make_tower(store, encoder, [*present, *words])
        written = store.tower_attributes.get("fingerprint") != tower.fingerprint
        if written:
            writer.put_tower(tower)
    size = sum(array.nbytes for array in tower.arrays.values())
    return {"store": path, "fingerprint": tower.fingerprint, "written": written, "bytes": size,
            "classes": len(tower.spec["names"]), "tokens": len(tower.arrays["tokens"]),
            "phrases": list(tower.spec["phrases"]), "seconds": time.perf_counter() - begun}


def make_tower(store: Store, encoder: Encoder, words: Sequence[str] = ()) -> StoredTower:
    """The text tower of a store's encoder; arguments and failures as of `add_tower`."""
    if not encoder.has_text:
        raise EncoderError(f"{encoder.info['name']} embeds images only: it has no text tower")
    tensors, spec = written_tower(encoder.model, encoder.info["name"])
    tokens = Tokens.of(encoder, spec["pool"])
    names = _spoken(store)
    tails = {name: tokens.inner(f"{phrase}.") for name, phrase in names.items()}
    stems = {name: tokens.inner(phrase) for name, phrase in names.items()}
    phrases = {each: tokens.inner(each) for each in dict.fromkeys(_phrases(store, words)) if tokens.inner(each)}
    spec |= {"start": tokens.start, "end": tokens.end, "fill": tokens.fill, "names": tails, "phrases": phrases,
             "stems": {name: len(stem) if tails[name][:len(stem)] == stem else len(tails[name])
                       for name, stem in stems.items()}}
    kept = sorted({*tokens.start, *tokens.end, tokens.fill, *(each for ids in (*tails.values(), *phrases.values())
                                                             for each in ids)})
    tensors |= {"tokens": tensors["tokens"][kept], "token_ids": torch.tensor(kept)}
    tower = TextTower.checked(tensors, spec)
    _try(tower, tokens, encoder, names)
    arrays = {name: _narrowest(value.numpy()) for name, value in tensors.items()}
    return StoredTower(arrays, spec, store.encoder["fingerprint"])


@dataclass(frozen=True)
class Tokens:
    """How an encoder's tokenizer puts a sentence together: the ids that begin and end it, and what fills it up."""

    encoder: Encoder
    start: list[int]
    end: list[int]
    fill: int

    @classmethod
    def of(cls, encoder: Encoder, pool: str) -> Tokens:
        """Found out from two sentences of one word."""
        if encoder.tokenizer is None:
            raise EncoderError(f"{encoder.info['name']} takes sentences, not tokens: its text tower cannot be written "
                               "down")
        one, other = (row.tolist() for row in encoder.tokenizer(["a", "of"]))
        place = next((number for number, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), 0)
        fill, rest = one[-1], one[place + 1:]
        end = rest[:1]
        if pool != "end":
            while rest and rest[-1] == fill:
                rest.pop()
            end = rest
        return cls(encoder, one[:place], end, fill)

    def inner(self, sentence: str) -> list[int]:
        """The ids of a sentence without those that begin, end and fill it."""
        row = self.ids([sentence])[0].tolist()[len(self.start):]
        if self.end and self.end[0] in row:
            return row[:row.index(self.end[0])]
        while row and row[-1] == self.fill:
            row.pop()
        return row

    def ids(self, sentences: Sequence[str]) -> torch.Tensor:
        """Token ids (sentences, context)."""
        assert self.encoder.tokenizer is not None
        return self.encoder.tokenizer(list(sentences))


def _spoken(store: Store) -> dict[str, str]:
    """What prompts call each class of the store and of its text sets."""
    given = store.attributes["texts"].get(NAME, {}).get("source", {}).get("phrases", {})
    classes = [*store.classes, *(name for each in store.texts for name in store.text(each).classes)]
    return class_phrases(list(dict.fromkeys(classes)), {name: given[name] for name in classes if name in given})


def _phrases(store: Store, words: Sequence[str]) -> list[str]:
    """What prompts may begin with: what stands before the name in templates, and every word of it."""
    templates = [each for name in store.texts for each in store.text(name).source.get("templates", ())]
    fronts = [template.partition("{}")[0].strip() for template in (*DEFAULT_TEMPLATES, *templates)]
    whole = [each for each in (*fronts, *words) if each.strip()]
    return [*whole, *(word for each in whole for word in each.split())]


def _try(tower: TextTower, tokens: Tokens, encoder: Encoder, names: Mapping[str, str]) -> None:
    """Raise an error unless prompts are put together as the tokenizer does, and embedded as the encoder does."""
    front = DEFAULT_TEMPLATES[0].partition("{}")[0].strip()
    begun = [*tower.spec["start"], *tower.spec["phrases"][front]]
    for name, phrase in names.items():
        put = [*begun, *tower.spec["names"][name], *tower.spec["end"]]
        row = tokens.ids([f"{front} {phrase}."])[0].tolist()
        if len(put) > len(row):
            raise PromptError(f"\"{front} {phrase}.\" is longer than the {len(row)} tokens that "
                              f"{encoder.info['name']} reads: give the class {name!r} a shorter name with "
                              "--class-names of `onceclip extract`")
        if row[:len(put)] != put:
            raise EncoderError(f"the tokenizer of {encoder.info['name']} does not put \"{front} {phrase}.\" together "
                               "of its parts: its text tower cannot be written down")
    ids = tokens.ids([f"{front} {phrase}." for phrase in list(names.values())[:_TRIED]])
    with torch.no_grad():
        own, theirs = tower.encode_tokens(ids).numpy(), encoder.encode_tokens(ids)
    apart = np.linalg.norm(own - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    if not (apart <= _APART.get(str(encoder.info.get("precision")), _HALF)).all():
        raise EncoderError(f"the text tower of {encoder.info['name']} cannot be written down (what its weights give "
                           f"differs from its own embeddings by {apart.max():.2g} of their length)")


def _narrowest(array: np.ndarray) -> np.ndarray:
    """The array in float16 where that loses nothing, as of weights that were published so."""
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float16)
    return narrow if np.array_equal(narrow.astype(array.dtype), array) else array
