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
    """Whether states, keys, labels and the fingerprint agree."""
    table = store.table
    todo = int((table.state == TODO).sum())
    if todo or not store.complete:
        yield Problem("image/state", f"the extraction is unfinished, {todo} of {len(table)} images are to be done",
                      unfinished=True)
    stored = table.state == STORED
    if (table.label >= len(store.classes)).any():
        yield Problem("image/label", "names a class that the store does not have")
    elif store.complete and store.content_fingerprint() != store.fingerprint:
        yield Problem("image", "does not have the content that the store's fingerprint says")
    keys = table.key[stored].tolist()
    if len(set(keys)) != len(keys):
        yield Problem("image/key", f"{len(keys) - len(set(keys))} stored rows have the key of another")


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
    table = store.table
    rows = np.flatnonzero((table.state == STORED) & (table.split >= 0))
    halves = np.ascontiguousarray(table.digest[rows]).view(np.uint64)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    twin = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    alike = np.zeros(len(rows), bool)
    alike[order[1:][twin]] = alike[order[:-1][twin]] = True
    places: dict[bytes, dict[int, Any]] = defaultdict(dict)
    for row in rows[alike].tolist():
        places[bytes(table.digest[row])].setdefault(int(table.split[row]), table.key[row])
    for splits in places.values():
        if len(splits) > 1:
            named = " and ".join(f"{key} ({SPLITS[split]})" for split, key in sorted(splits.items()))
            yield Problem(named, "are the same picture in different splits")
