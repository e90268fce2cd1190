"""Scores between all texts and all items, of which never more than a block is in memory; and normalized ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.errors import unknown
from onceclip.adapters.training.loop import Progress, no_progress
from onceclip.pipeline.errors import RetrievalError
from onceclip.pipeline.retrieval.items import WIDE, Frames, Items, pieces, read_frames
from onceclip.pipeline.retrieval.poolings import POOLINGS, maximum
from onceclip.stores import Store

COMCLIP = "comclip"
RERANKS: dict[str, float | None] = {"max": 0.5, COMCLIP: None}  # by name, with the default weight, if it has one
NORMALIZATIONS: dict[str, float | None] = {"qb": 20.0, "dual-softmax": 100.0}  # with their inverse temperatures
QUERY_BANK, DUAL_SOFTMAX = NORMALIZATIONS
TEXT_TO_ITEM, ITEM_TO_TEXT = "text_to_item", "item_to_text"
DIRECTIONS = (TEXT_TO_ITEM, ITEM_TO_TEXT)


@dataclass(frozen=True)
class Choice:
    """A pooling or other step by name, with its number where it has one."""

    name: str
    value: float | None = None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}:{self.value:g}"


MEAN = Choice("mean")


def choice_of(text: str, what: str, known: dict[str, float | None]) -> Choice:
    """The choice that `name` or `name:number` means. known: names with their default numbers, None for those without.

    Raises RetrievalError if there is no such name, or the number is none above 0.
    """
    name, colon, number = text.partition(":")
    if name not in known:
        raise RetrievalError(unknown(what, name, known))
    if not colon:
        return Choice(name, known[name])
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if known[name] is None or not 0 < value < float("inf"):
        raise RetrievalError(f"{what} {text!r}: " + (f"{name} takes no number" if known[name] is None else
                                                     f"give a number above 0, such as {name}:{known[name]:g}"))
    return Choice(name, value)


def pooling_of(text: str) -> Choice:
    """The pooling that a name means."""
    return choice_of(text, "pooling", {name: each.value for name, each in POOLINGS.items()})


def rerank_of(text: str) -> Choice:
    """The re-ranking that a name means."""
    return choice_of(text, "rerank", RERANKS)


def normalization_of(text: str) -> Choice:
    """The normalization that a name means."""
    return choice_of(text, "normalize", NORMALIZATIONS)


@dataclass(frozen=True)
class Gallery:
    """Items ready to be scored.

    vectors: (items, dim), where the pooling gives one per item. frames: all raw rows, where a score needs them. weight:
    of the best frame's cosine, which is added to the score (CLIPRerank).
    """

    pooling: Choice
    vectors: Tensor | None
    frames: Frames | None
    weight: float = 0.0

    @classmethod
    def of_frames(cls, frames: Frames, pooling: Choice, weight: float = 0.0) -> Gallery:
        """Of rows that are in memory."""
        made = POOLINGS[pooling.name]
        return cls(pooling, made.vectors(frames) if made.vectors else None,
                   frames if made.scores or weight else None, weight)

    @classmethod
    def of_store(cls, store: Store, items: Items, pooling: Choice, rerank: Choice | None = None,
                 vectors: Callable[[Frames], Tensor] | None = None,
                 progress: Progress = no_progress) -> Gallery:
        """Of items of a store, read in pieces. Rows stay in memory, in the stored type, only where scores need them.

        vectors: makes the items' vectors instead of the pooling, such as a trained head.
        """
        made = POOLINGS[pooling.name]
        weight = rerank.value or 0.0 if rerank else 0.0
        vectors = vectors or made.vectors
        keep = weight or vectors is None
        found, raw = [], []
        for start, stop in pieces(items):
            frames = read_frames(store, items, start, stop)
            if keep:
                raw.append(frames.raw)
            if vectors:
                found.append(vectors(frames.to(torch.float32)))
            progress(stop / len(items))
        return cls(pooling, torch.cat(found) if found else None,
                   Frames(torch.cat(raw), torch.from_numpy(items.pointer)) if keep else None, weight)

    def __len__(self) -> int:
        return len(self.vectors) if self.vectors is not None else len(self.frames or ())

    def scores(self, text: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Scores of unit texts (texts, dim) with consecutive items: (texts, items)."""
        stop = len(self) if stop is None else stop
        if self.frames is None:
            assert self.vectors is not None
            return text @ self.vectors[start:stop].T
        return torch.cat([self._with_frames(text, *each) for each in self._pieces(start, stop, len(text))], dim=1)

    def _pieces(self, start: int, stop: int, texts: int) -> Iterator[tuple[int, int]]:
        assert self.frames is not None
        pointer = self.frames.pointer
        most = max(1, WIDE // (4 * max(1, texts)))  # several matrices of this size are at work at once
        while start < stop:
            end = int(torch.searchsorted(pointer, pointer[start] + most, right=True)) - 1
            end = min(max(start + 1, end), stop)
            yield start, end
            start = end

    def _with_frames(self, text: Tensor, start: int, stop: int) -> Tensor:
        assert self.frames is not None
        part, made = self.frames.part(start, stop).to(text.dtype), POOLINGS[self.pooling.name]
        score = (text @ self.vectors[start:stop].T if self.vectors is not None else
                 made.scores(text, part, self.pooling.value or 0.0) if made.scores else None)
        assert score is not None
        return score + self.weight * maximum(text, part) if self.weight else score


@dataclass(frozen=True)
class Similarity:
    """All scores of texts (texts, dim), unit, with a gallery, seen from one side. direction: one of DIRECTIONS."""

    text: Tensor
    gallery: Gallery
    direction: str = TEXT_TO_ITEM

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and of candidates."""
        sides = len(self.text), len(self.gallery)
        return sides if self.direction == TEXT_TO_ITEM else sides[::-1]

    def rows(self, queries: slice) -> Tensor:
        """Scores of consecutive queries with all candidates: (queries, candidates)."""
        if self.direction == TEXT_TO_ITEM:
            return self.gallery.scores(self.text[queries])
        start, stop, _ = queries.indices(len(self.gallery))
        size = max(1, WIDE // (stop - start))
        return torch.cat([self.gallery.scores(text, start, stop) for text in self.text.split(size)]).T.contiguous()

    def blocks(self) -> Iterator[slice]:
        """Go through the queries so that a block of scores has at most WIDE entries."""
        queries, candidates = self.shape
        size = max(1, WIDE // candidates)
        return (slice(start, min(start + size, queries)) for start in range(0, queries, size))


@dataclass(frozen=True)
class Normalization:
    """Scores made comparable across candidates: hubs, which are near to every query, lose what they win by it.

    mass: (candidates,) log of the sum over queries of exp(scale * score). hubs: None for dual softmax, a score times
    the softmax of its candidate's scores over all queries, so that it has seen every query (transductive). For QB-Norm
    (candidates,) bool, the best candidate of a query of the bank: rows whose best candidate is a hub become the bank's
    softmax (dynamic inverted softmax). Other rows stay, so that scores are to be compared within a row alone.
    Sources: CAMoE (Cheng et al., 2021); Cross Modal Retrieval with Querybank Normalisation (Bogolin et al., CVPR 2022),
    with k = 1.
    """

    scale: float
    mass: Tensor
    hubs: Tensor | None

    def __call__(self, scores: Tensor) -> Tensor:
        """Normalize scores (queries, candidates); those given stay as they are."""
        softmax = (self.scale * scores - self.mass).exp()
        if self.hubs is None:
            return scores * softmax
        return torch.where(self.hubs[scores.argmax(dim=1)][:, None], softmax, scores)


def normalize_by(choice: Choice, bank: Similarity, progress: Progress = no_progress) -> Normalization:
    """Look at all queries of a bank, block by block; for dual softmax these are the queries that are ranked."""
    scale = choice.value or 0.0
    queries, candidates = bank.shape
    mass = torch.full((candidates,), -torch.inf, dtype=bank.text.dtype)
    hubs = torch.zeros(candidates, dtype=torch.bool)
    for where in bank.blocks():
        scores = bank.rows(where)
        hubs[scores.argmax(dim=1)] = True
        mass = torch.logaddexp(mass, (scale * scores).logsumexp(dim=0))
        progress(where.stop / queries)
    return Normalization(scale, mass, None if choice.name == DUAL_SOFTMAX else hubs)
