"""What is retrieved: images, or groups of rows such as the frames of a video; and the captions that belong to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters.ops import unit
from onceclip.pipeline.errors import RetrievalError
from onceclip.stores import Store, TextSet
from onceclip.stores.store import PIECE_ROWS

KEY, GROUP = "key", "group"
BY = (KEY, GROUP)
WIDE = 1 << 24  # entries of the largest intermediate matrix: 64 MiB in float32


def ranges(starts: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions from each start on, range by range: (sum of sizes,) int64; and where each range begins: (n + 1,)."""
    pointer = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return np.arange(pointer[-1]) + np.repeat(starts - pointer[:-1], sizes), pointer


@dataclass(frozen=True)
class Items:
    """Items of a store: images in stored order, or groups in the order of their names.

    names: (items,) keys of images or groups. rows: (rows,) int64 positions in the store, item by item and within a
    group in the order of keys, which is that of a video's frames. pointer: (items + 1,) where each item's rows begin.
    """

    names: np.ndarray
    rows: np.ndarray
    pointer: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def chosen(self, places: np.ndarray) -> Items:
        """Some of the items, in the order given."""
        chosen, pointer = ranges(self.pointer[places], np.diff(self.pointer)[places])
        return Items(self.names[places], self.rows[chosen], pointer)


@dataclass(frozen=True)
class Frames:
    """Raw embeddings of the rows of some items: (rows, dim), and the (items + 1,) places where each item's begin."""

    raw: Tensor
    pointer: Tensor

    def __len__(self) -> int:
        return len(self.pointer) - 1

    @property
    def item(self) -> Tensor:
        """The item that each row belongs to: (rows,) int64."""
        return torch.repeat_interleave(torch.arange(len(self)), self.pointer.diff())

    def to(self, dtype: torch.dtype) -> Frames:
        """The same in another type."""
        return Frames(self.raw.to(dtype), self.pointer)

    def chosen(self, places: np.ndarray) -> Frames:
        """The rows of some items, in the order given."""
        pointer = self.pointer.numpy()
        rows, begin = ranges(pointer[places], np.diff(pointer)[places])
        return Frames(self.raw[torch.from_numpy(rows)], torch.from_numpy(begin))

    def part(self, start: int, stop: int) -> Frames:
        """Consecutive items."""
        pointer = self.pointer[start:stop + 1]
        return Frames(self.raw[pointer[0]:pointer[-1]], pointer - pointer[0])

    def mean(self, rows: Tensor) -> Tensor:
        """Mean over each item's rows of something (rows, dim): (items, dim)."""
        if len(self) == len(rows):
            return rows
        total = torch.zeros(len(self), rows.shape[1], dtype=rows.dtype).index_add_(0, self.item, rows)
        return total / self.pointer.diff()[:, None]


def items_of(store: Store, by: str = KEY, split: str | None = None) -> Items:
    """The images of a store that have embeddings, or its groups, where an image without a group is an item by itself.

    split: only rows of it; None for all.
    Raises RetrievalError if there is none.
    """
    rows = store.rows(split, labelled=False)
    if not len(rows):
        raise RetrievalError(f"{store.path} has no embedding{f' in its {split} split' if split else ''}: name another "
                             "--split, or all of it")
    keys = store.column("key")[rows].astype(object)
    if by == KEY:  # as they are stored, which is how they are read fastest
        return Items(keys, rows, np.arange(len(rows) + 1))
    groups = store.column("group")[rows].astype(object)
    names = np.where(groups == "", keys, groups)
    order = np.argsort(keys, kind="stable")
    found, place = np.unique(names[order], return_inverse=True)
    pointer = np.concatenate([[0], np.cumsum(np.bincount(place))]).astype(np.int64)
    return Items(found, rows[order[np.argsort(place, kind="stable")]], pointer)


def read_frames(store: Store, items: Items, start: int = 0, stop: int | None = None) -> Frames:
    """The rows of consecutive items, as they are stored, with every checksum checked."""
    stop = len(items) if stop is None else stop
    first, last = items.pointer[start], items.pointer[stop]
    return Frames(torch.from_numpy(store.embeddings(items.rows[first:last])),
                  torch.from_numpy(items.pointer[start:stop + 1] - first))


def pieces(pointer: np.ndarray, rows: int = PIECE_ROWS, start: int = 0, stop: int | None = None
           ) -> Iterator[tuple[int, int]]:
    """Go through items in pieces of about so many rows, one item at least: first item and the one behind the last.

    pointer: (items + 1,) where each item's rows begin. start, stop: the items that are gone through; all by default.
    """
    stop = len(pointer) - 1 if stop is None else stop
    while start < stop:
        end = min(stop, max(start + 1, int(np.searchsorted(pointer, pointer[start] + rows, side="right")) - 1))
        yield start, end
        start = end


@dataclass(frozen=True)
class Captioned:
    """Captions and their items, joined by name.

    items: those that have captions. text: (captions, dim) raw, item by item. sentences: (captions,) what they say.
    owner: (captions,) int64, the item of each. left_out: numbers of what the join left, by what it is.
    """

    items: Items
    text: Tensor
    sentences: tuple[str, ...]
    owner: np.ndarray
    left_out: dict[str, int]

    @property
    def pointer(self) -> np.ndarray:
        """Where each item's captions begin: (items + 1,)."""
        return np.searchsorted(self.owner, np.arange(len(self.items) + 1))


def captioned(store: Store, text: TextSet, split: str | None = None, name: str = "captions") -> Captioned:
    """The items of a split that have captions in a text set, in the order of `items_of`.

    Raises RetrievalError if the set has no captions, or none of items with an embedding in the split.
    """
    if not text.is_captions:
        raise RetrievalError(f"text set {name!r} of {store.path} holds prompts of classes, not captions: make some "
                             "with `onceclip text STORE --captions FILE`")
    items = items_of(store, text.source.get("by", KEY), split)
    place = {each: number for number, each in enumerate(text.classes)}
    theirs = np.array([place.get(each, -1) for each in items.names.tolist()], np.int64)
    kept = np.flatnonzero(theirs >= 0)
    where = f" in the {split} split" if split else ""
    if not len(kept):
        raise RetrievalError(f"{store.path}: no caption of {name!r} belongs to an image with an embedding{where}: "
                             "name another --split")
    sizes = np.diff(text.class_ptr)[theirs[kept]]
    rows, _ = ranges(text.class_ptr[theirs[kept]], sizes)
    owner = np.repeat(np.arange(len(kept)), sizes)
    left = {"items without captions": len(items) - len(kept),
            "captioned items elsewhere or without an embedding": len(text.classes) - len(kept)}
    return Captioned(items.chosen(kept), torch.from_numpy(text.embedding[rows]),
                     tuple(text.prompts[row] for row in rows), owner, {what: n for what, n in left.items() if n})


def unit_text(text: Tensor) -> Tensor:
    """Texts as unit vectors, in float32 at least."""
    return unit(text if text.dtype == torch.float64 else text.float())
