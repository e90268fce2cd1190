"""Whether what a store says in one place agrees with what it says in others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from onceclip.stores.errors import StoreError
from onceclip.stores.reader import Store
from onceclip.stores.schema import SPLITS, STORED, TODO

_PIECE = 1 << 20  # rows that are compared at once
_SPLIT = np.uint64(3)  # the bits that hold the number of a split


@dataclass(frozen=True)
class Problem:
    """One fault.

    where: array and chunk, or the rows' keys. what: the fault. unit: the unit that it spoils, or None.
    unfinished: whether the next extraction mends it as it is.
    """

    where: str
    what: str
    unit: int | None = None
    unfinished: bool = False


def finite_rows(values: np.ndarray) -> np.ndarray:
    """Which rows of floating-point values (rows, ...) are finite in every place: (rows,) bool."""
    flat = values.reshape(len(values), -1)
    if flat.dtype != np.float16:
        return np.isfinite(flat).all(axis=1)
    exponent = np.uint16(0x7C00)  # all ones in infinity and NaN; numpy looks at half precision one by one
    return (flat.view(np.uint16) & exponent).max(axis=1) != exponent


def row_faults(store: Store) -> Iterator[Problem]:
    """Whether states, labels, keys and the fingerprint agree."""
    rows = todo = unknown = 0
    for state, label in store.parts("state", "label"):
        rows, todo = rows + len(state), todo + int((state == TODO).sum())
        unknown += int((label >= len(store.classes)).sum())
    if todo or not store.complete:
        yield Problem("image/state", f"the extraction is unfinished, {todo} of {rows} images are to be done",
                      unfinished=True)
    if unknown:
        yield Problem("image/label", "names a class that the store does not have")
        return
    content = store.content()
    if store.complete and content.fingerprint != store.fingerprint:
        yield Problem("image", "does not have the content that the store's fingerprint says")
    if content.repeated:
        yield Problem("image/key", f"{content.repeated} stored rows have the key of another")


def text_faults(store: Store) -> Iterator[Problem]:
    """Whether every text set is of the store's encoder, whole and finite."""
    for name in store.texts:
        try:
            text = store.text(name).of_classes(store.classes)
        except StoreError as error:
            yield Problem(f"text/{name}", str(error))
            continue
        if not np.isfinite(text.embedding).all():
            yield Problem(f"text/{name}", "holds values that are not finite")


def equal_content(store: Store) -> Iterator[Problem]:
    """Equal content in two splits: draws leave such rows out, but a user should know."""
    places: dict[bytes, dict[int, Any]] = defaultdict(dict)
    suspects = _in_two_splits(store)
    if not len(suspects):
        return
    for state, split, digest, key in store.parts("state", "split", "digest", "key"):
        marks = _marks(digest)
        placed = (state == STORED) & (split >= 0)
        for row in np.flatnonzero(placed & (suspects[np.searchsorted(suspects, marks) % len(suspects)] == marks)):
            places[bytes(digest[row])].setdefault(int(split[row]), key[row])
    for splits in places.values():
        if len(splits) > 1:
            named = " and ".join(f"{key} ({SPLITS[split]})" for split, key in sorted(splits.items()))
            yield Problem(named, "are the same picture in different splits")


def _in_two_splits(store: Store) -> np.ndarray:
    """Marks of digests that stored rows of different splits have, in order: (n,) uint64, with few others among them.

    Eight bytes per row are in memory: a digest's mark, with the row's split in two bits that every mark has empty.
    """
    marks = np.empty(store.array("state").shape[0], np.uint64)
    size = 0
    for state, split, digest in store.parts("state", "split", "digest"):
        placed = (state == STORED) & (split >= 0)
        found = _marks(digest[placed]) | split[placed].astype(np.uint64)
        marks[size:size + len(found)] = found
        size += len(found)
    marks = marks[:size]
    marks.sort()
    found = [np.empty(0, np.uint64)]
    for start in range(0, size - 1, _PIECE):
        here, following = marks[start:start + _PIECE], marks[start + 1:start + 1 + _PIECE]
        here = here[:len(following)]
        found.append(here[(here != following) & ((here | _SPLIT) == (following | _SPLIT))] & ~_SPLIT)
    return np.unique(np.concatenate(found))


def _marks(digest: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(digest).view(np.uint64)[:, 0] & ~_SPLIT
