"""Scores between all texts and all items, of which never more than a block is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.errors import unknown
from onceclip.adapters.ops import unit
from onceclip.adapters.training.loop import Progress, no_progress
from onceclip.pipeline.errors import RetrievalError
from onceclip.pipeline.retrieval.items import WIDE, Frames, Items, pieces, read_frames
from onceclip.stores import Store

COMCLIP = "comclip"
RERANKS: dict[str, float | None] = {"max": 0.5, COMCLIP: None}  # by name, with the default weight, if it has one
TEXT_TO_ITEM, ITEM_TO_TEXT = "text_to_item", "item_to_text"
DIRECTIONS = (TEXT_TO_ITEM, ITEM_TO_TEXT)


@dataclass(frozen=True)
class Pooling:
    """A pooling. vectors: gives one vector per item (items, dim) that texts are multiplied with; or, where an item's
    vector hangs on the text, scores gives (texts, items) from unit texts (texts, dim). value: the number that `scores`
    takes, if it takes one.
    """

    vectors: Callable[[Frames], Tensor] | None = None
    scores: Callable[[Tensor, Frames, float], Tensor] | None = None
    value: float | None = None


def mean(frames: Frames) -> Tensor:
    """The direction of the mean of unit rows: (items, dim). Source: CLIP4Clip (Luo et al., 2022), meanP."""
    return unit(frames.mean(unit(frames.raw)))


def raw_mean(frames: Frames) -> Tensor:
    """The direction of the mean of raw rows: (items, dim)."""
    return unit(frames.mean(frames.raw))


def fitclip(frames: Frames) -> Tensor:
    """The mean of unit rows as it is, so that the score is the mean of the rows' cosines: (items, dim).

    Source: FitCLIP (Castro and Caba Heilbron, 2022).
    """
    return frames.mean(unit(frames.raw))


def hitchhiker(text: Tensor, frames: Frames, temperature: float = 0.1) -> Tensor:
    """Cosine of a text with the raw rows' mean, weighted by the softmax of the text's own cosines with them.

    The length of that mean is had from products of rows, so that nothing of (texts, items, dim) is made.
    text: (texts, dim) unit. Gives (texts, items).
    Source: A CLIP-Hitchhiker's Guide to Long Video Retrieval (Bain et al., 2022).
    """
    cosines, there = _padded(text @ unit(frames.raw).T, frames)
    weights = (cosines / temperature).masked_fill(~there, -torch.inf).softmax(dim=-1)  # (texts, items, frames)
    raw, _ = rows_by_item(frames)
    length = torch.einsum("tif,ifg,tig->ti", weights, raw @ raw.transpose(1, 2), weights).clamp_min(0).sqrt()
    return (weights * cosines * raw.norm(dim=-1)).sum(dim=-1) / length.clamp_min(1e-12)


def maximum(text: Tensor, frames: Frames, _: float = 0.0) -> Tensor:
    """The highest cosine of a text with any row of an item: (texts, items). Source: CLIPRerank; FOR."""
    cosines, there = _padded(text @ unit(frames.raw).T, frames)
    return cosines.masked_fill(~there, -torch.inf).amax(dim=-1)


def _places(frames: Frames) -> tuple[Tensor, Tensor]:
    """Row numbers by item (items, most rows), and which of them are there."""
    sizes = frames.pointer.diff()
    step = torch.arange(int(sizes.max()))
    there = step < sizes[:, None]
    return (frames.pointer[:-1, None] + step).masked_fill(~there, 0), there


def _padded(values: Tensor, frames: Frames) -> tuple[Tensor, Tensor]:
    """Something of every row (texts, rows) by item (texts, items, most rows), 0 where there is none, and which are."""
    places, there = _places(frames)
    if there.all():  # the rows of all items in their order
        return values.view(len(values), *places.shape), there
    return values[:, places].masked_fill(~there, 0), there


def rows_by_item(frames: Frames) -> tuple[Tensor, Tensor]:
    """Rows by item, (items, most rows, dim), zeros where there is none; and which are there, (items, most rows)."""
    places, there = _places(frames)
    return frames.raw[places].masked_fill(~there[..., None], 0), there


POOLINGS = {"mean": Pooling(mean), "raw-mean": Pooling(raw_mean), "fitclip": Pooling(fitclip),
            "hitchhiker": Pooling(scores=hitchhiker, value=0.1), "max": Pooling(scores=maximum)}


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
        for start, stop in pieces(items.pointer):
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
        rows = max(1, WIDE // (4 * max(1, len(text))))  # several matrices of this size are at work at once
        return torch.cat([self._with_frames(text, *each)
                          for each in pieces(self.frames.pointer.numpy(), rows, start, stop)], dim=1)

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
