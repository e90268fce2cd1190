"""What of a source a store already has: decided by content, never by path or time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from onceclip.pipeline.errors import BadImage
from onceclip.pipeline.sources import Content, Record
from onceclip.stores import Store, Table
from onceclip.stores.fingerprint import DIGEST_BYTES, digest
from onceclip.stores.schema import BAD, NO_LABEL, NO_SPLIT, REMOVED, SPLITS, STORED, TODO


@dataclass(frozen=True)
class Inventory:
    """The rows that a store is to have, and the files behind them.

    table: columns of all rows; those of state TODO are to be encoded. contents: row to image file.
    changed: whether the table differs from the store's.
    present: rows of the files that are there now. reused, moved, removed: numbers of rows.
    """

    table: Table
    changed: bool
    contents: dict[int, Content]
    present: np.ndarray
    reused: int
    moved: int
    removed: int


def take_inventory(records: Sequence[Record], classes: Sequence[str], store: Store,
                   progress: bool = False) -> Inventory:
    """Compare the images of a source with the rows of a store (which may be new and empty).

    A row is kept if a file has its content: under the same key, or, moved, under a new one. A file whose key is
    known and whose content is new takes over the row; other new files get rows at the end. Rows whose file is
    gone are marked as removed.
    """
    old = store.table
    done = {int(row): bytes(old.digest[row]) for row in np.flatnonzero((old.state == STORED) | (old.state == BAD))}
    contents = _digests(records, progress) if done else [b""] * len(records)
    # A removed row has its old key still; a row that is there goes before it.
    order = np.argsort(old.state != REMOVED, kind="stable")
    by_key = {str(old.key[row]): int(row) for row in order}
    by_content = defaultdict(list)
    for row, content in done.items():
        by_content[content].append(row)

    place: dict[int, int] = {}  # record to row
    kept: set[int] = set()
    for index, record in enumerate(records):
        known = by_key.get(record.key, -1)
        if done.get(known) == contents[index]:
            place[index] = known
            kept.add(known)
    moved = 0
    for index in (each for each in range(len(records)) if each not in place):
        # A row whose own file still has its content stays with it; a copy of that file is encoded.
        candidates = [row for row in by_content.get(contents[index], ()) if row not in kept]
        if candidates:
            place[index] = candidates[0]
            kept.add(candidates[0])
            moved += 1
    taken = set(place.values())
    size = len(old)
    for index, record in enumerate(records):
        if index not in place:
            row = by_key.get(record.key, -1)
            if row < 0 or row in taken:
                row, size = size, size + 1
            place[index] = row
            taken.add(row)

    number = {name: index for index, name in enumerate(classes)}
    table = _columns(old, size)
    drawn = store.attributes.get("split_source", {}).get("how") == "drawn"
    for index, record in enumerate(records):
        row = place[index]
        table.key[row] = record.key
        table.label[row] = number[record.label] if record.label is not None else NO_LABEL
        table.group[row] = record.group
        if row not in kept:
            table.state[row], table.reason[row], table.digest[row] = TODO, "", 0
        if record.split is not None:
            table.split[row] = SPLITS.index(record.split)
        elif row >= len(old) or not drawn:
            table.split[row] = NO_SPLIT  # else an image stays in its split, also when it is encoded again
    gone = np.array([row for row in range(len(old)) if row not in taken], dtype=np.int64)
    removed = int((table.state[gone] != REMOVED).sum())
    table.state[gone], table.label[gone], table.split[gone], table.group[gone] = REMOVED, NO_LABEL, NO_SPLIT, ""
    changed = any(not np.array_equal(getattr(table, name), getattr(old, name)) for name in Table.__dataclass_fields__)
    return Inventory(table, changed, {row: records[index].content for index, row in place.items()},
                     np.array(sorted(place.values()), dtype=np.int64), len(kept), moved, removed)


def _digests(records: Sequence[Record], progress: bool) -> list[bytes]:
    def one(record: Record) -> bytes:
        try:
            return digest(record.content.read())
        except BadImage:
            return digest(b"")  # as the row of an unreadable file has it

    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(one, records), total=len(records), unit="file", desc="compare",
                         disable=None if progress else True))


def _columns(old: Table, size: int) -> Table:
    """Copies of the columns with room for `size` rows, the new ones empty."""
    more = size - len(old)
    text = np.full(more, "", dtype=object)
    return Table(
        key=np.concatenate([old.key.astype(object), text]),
        label=np.concatenate([old.label, np.full(more, NO_LABEL, np.int32)]),
        split=np.concatenate([old.split, np.full(more, NO_SPLIT, np.int8)]),
        state=np.concatenate([old.state, np.full(more, TODO, np.int8)]),
        digest=np.concatenate([old.digest, np.zeros((more, DIGEST_BYTES), np.uint8)]),
        reason=np.concatenate([old.reason.astype(object), text]),
        group=np.concatenate([old.group.astype(object), text]),
    )
