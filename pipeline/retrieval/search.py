"""The nearest items of a query, exactly, and pairs of items that are nearly the same, over a whole store in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters.cpu import threads_for
from onceclip.adapters.ops import unit
from onceclip.adapters.training.loop import Progress, no_progress
from onceclip.pipeline.errors import RetrievalError
from onceclip.pipeline.retrieval.items import WIDE, Frames, Items, items_of, pieces, read_frames
from onceclip.pipeline.retrieval.recipes import Maps
from onceclip.pipeline.retrieval.similarity import MEAN, Choice, Gallery, mean
from onceclip.stores import Store

_BLOCK = 2048  # rows, and queries where an item is a row, that are scored at once: twice as fast as all rows of a piece
_STRIP = 64  # rows of a block whose pairs are listed at once
_ROUNDING = 1e-6  # by which the cosine of equal rows may be below 1
_MERGED = 0.02  # share of a block's scores above which the highest are looked for before any are sorted


@dataclass(frozen=True)
class Hit:
    """An item that a query found. row: its row in the store; of several, the one that is nearest to the query."""

    name: str
    score: float
    row: int


def nearest(queries: Tensor, store: Store, items: Items, top: int, pooling: Choice = MEAN, maps: Maps | None = None,
            progress: Progress = no_progress) -> tuple[Tensor, Tensor]:
    """The items with the highest scores of every query: scores and positions (queries, top), the highest first.

    Items are read in pieces, the next one while the present one is scored; no (queries, items) is ever made.
    queries: (queries, dim) unit. maps: make the items' vectors instead of the pooling.
    """
    best = Best(len(queries), min(top, len(items)), queries.dtype)
    parts = list(pieces(items.pointer))
    with ThreadPoolExecutor(1) as reader, threads_for(len(queries) * len(items.rows) * queries.shape[1]):
        ahead = reader.submit(read_frames, store, items, *parts[0])
        for number, (start, stop) in enumerate(parts):
            frames = ahead.result()
            if number + 1 < len(parts):
                ahead = reader.submit(read_frames, store, items, *parts[number + 1])
            for low, high in pieces(items.pointer, _BLOCK, start, stop):
                block = frames.part(low - start, high - start).to(queries.dtype)
                gallery = Gallery(pooling, maps.items(block), None) if maps else Gallery.of_frames(block, pooling)
                size = max(1, _BLOCK**2 // (high - low))
                for first in range(0, len(queries), size):
                    best.add(first, gallery.scores(queries[first:first + size]), low)
            progress(stop / len(items))
    return best.scores, best.places


class Best:
    """The highest scores of every query so far: scores and places (queries, top), the highest first."""

    def __init__(self, queries: int, top: int, dtype: torch.dtype = torch.float32) -> None:
        self.scores = torch.full((queries, top), -torch.inf, dtype=dtype)
        self.places = torch.full((queries, top), -1)

    def add(self, first: int, scores: Tensor, start: int) -> None:
        """Take in scores (queries, items) of consecutive queries from `first` on and items from `start` on.

        Most are below the lowest that is kept; only the others are sorted. Of equal scores the first item counts.
        """
        above = scores > self.scores[first:first + len(scores), -1:]
        if above.count_nonzero() > _MERGED * scores.numel():
            # `topk` itself takes any of equal ones.
            above &= scores >= scores.topk(min(self.scores.shape[1], scores.shape[1]), dim=1).values[:, -1:]
        query, item = above.nonzero(as_tuple=True)
        if len(query):
            rows, number = query.unique_consecutive(return_counts=True)
            column = torch.arange(len(query)) - (number.cumsum(0) - number).repeat_interleave(number)
            line = torch.arange(len(rows)).repeat_interleave(number)
            values = torch.full((len(rows), int(number.max())), -torch.inf, dtype=scores.dtype)
            places = torch.full(values.shape, -1)
            values[line, column], places[line, column] = scores[query, item], item + start
            self._merge(rows + first, values, places)

    def _merge(self, rows: Tensor, values: Tensor, places: Tensor) -> None:
        values = torch.cat([self.scores[rows], values], dim=1)
        places = torch.cat([self.places[rows], places], dim=1)
        order = values.sort(dim=1, descending=True, stable=True).indices[:, :self.scores.shape[1]]
        self.scores[rows], self.places[rows] = values.gather(1, order), places.gather(1, order)


def search(store: Store, query: Tensor, top: int, by: str, split: str | None = None, pooling: Choice = MEAN,
           maps: Maps | None = None, progress: Progress = no_progress) -> list[Hit]:
    """The items nearest to one query (dim,); equal scores in the order of `items_of`.

    maps: trained ones, which make the items' vectors and made the query. The query is raw without them.
    """
    items, direction = items_of(store, by, split), unit(query.float())
    scores, places = nearest(direction[None], store, items, top, pooling, maps, progress)
    return [Hit(str(items.names[place]), score, _nearest_row(store, items, place, direction, maps or Maps()))
            for score, place in zip(scores[0].tolist(), places[0].tolist(), strict=True)]


def _nearest_row(store: Store, items: Items, place: int, direction: Tensor, maps: Maps) -> int:
    frames = read_frames(store, items, place, place + 1).to(torch.float32)
    alone = Frames(frames.raw, torch.arange(len(frames.raw) + 1))  # each row as an item of its own
    return int(items.rows[items.pointer[place] + int((maps.items(alone) @ direction).argmax())])


@dataclass(frozen=True)
class Pair:
    """Two items that are nearly the same. score: cosine of their vectors. same: whether their files are equal."""

    first: str
    second: str
    score: float
    same: bool


def duplicates(store: Store, threshold: float, by: str, split: str | None = None,
               progress: Progress = no_progress) -> Iterator[Pair]:
    """All pairs of items whose cosine is at least a threshold, as they are found.

    One vector per item is in memory, in the stored type, and one block of scores. Images of one group are no pairs: the
    frames of a video are alike.
    Raises RetrievalError for a threshold that is no cosine above 0.
    """
    if not 0 < threshold <= 1:
        raise RetrievalError(f"--duplicates {threshold:g}: give a cosine above 0 and up to 1, such as 0.98")
    items = items_of(store, by, split)
    vectors = torch.cat([_vectors(store, items, *each) for each in pieces(items.pointer)])
    first_rows = items.rows[items.pointer[:-1]]
    group, digest = store.column("group")[first_rows].astype(object), store.column("digest")[first_rows]
    single = np.diff(items.pointer) == 1
    height = min(len(items), 2048)
    width = WIDE // height
    done, total = 0, len(items) ** 2 / 2
    for top in range(0, len(items), height):
        rows = unit(vectors[top:top + height].float())
        for left in range(top, len(items), width):
            with threads_for(rows.numel() * width):
                scores = rows @ unit(vectors[left:left + width].float()).T
            for strip in range(0, len(rows), _STRIP):
                near = scores[strip:strip + _STRIP] >= threshold - _ROUNDING
                for one, other in near.nonzero().tolist():
                    first, second = top + strip + one, left + other
                    if first < second and not (group[first] and group[first] == group[second]):
                        same = bool(single[first] and single[second] and digest[first].any()
                                    and (digest[first] == digest[second]).all())
                        yield Pair(str(items.names[first]), str(items.names[second]),
                                   float(scores[strip + one, other]), same)
            done += len(rows) * min(width, len(items) - left)
            progress(min(1.0, done / total))


def _vectors(store: Store, items: Items, start: int, stop: int) -> Tensor:
    """Vectors of consecutive items: images as they are stored, of groups the mean of unit rows."""
    frames = read_frames(store, items, start, stop)
    if len(frames) == len(frames.raw):
        return frames.raw if len(items) == len(items.rows) else frames.raw.float()
    return mean(frames.to(torch.float32))
