"""What of a source a store already has: decided by content, never by path or time."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from onceclip.pipeline.decoding.masks import as_seen
from onceclip.pipeline.decoding.worker import read
from onceclip.pipeline.errors import BadImage
from onceclip.pipeline.sources import Content, Record
from onceclip.stores import Store, Table
from onceclip.stores.identity import DIGEST_BYTES, digest
from onceclip.stores.schema import BAD, NO_LABEL, NO_SPLIT, REMOVED, SPLITS, STORED, TODO

_AHEAD = 1 << 14  # files that are handed to threads at once


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
                   progress: bool = False, retry_bad: bool = False, digests: np.ndarray | None = None) -> Inventory:
    """Compare the images of a source with the rows of a store (which may be new and empty).

    A row is kept if a file has its content: under the same key, or, moved, under a new one. A file whose key is
    known and whose content is new takes over the row; other new files get rows at the end. Rows whose file is
    gone are marked as removed. retry_bad: whether bad rows are to be encoded again. digests: of the files, where
    `file_digests` has read them already.
    """
    old = store.table
    done = (old.state == STORED) | ((old.state == BAD) & (not retry_bad))
    second = str(store.encoder.get("second_input", ""))
    if digests is None:
        digests = (file_digests(records, progress, second) if done.any() else
                   np.zeros((len(records), DIGEST_BYTES), np.uint8))
    # A removed row has its old key still; a row that is there goes before it.
    order = np.argsort(old.state != REMOVED, kind="stable")
    by_key = dict(zip(old.key[order].tolist(), order.tolist(), strict=True))
    known = np.fromiter((by_key.get(record.key, -1) for record in records), np.int64, len(records))
    del by_key

    size = len(old)
    kept, taken = (np.zeros(size + len(records), bool) for _ in range(2))  # of the rows
    place = np.full(len(records), -1)  # row of each record
    same = np.flatnonzero(known >= 0)
    same = same[done[known[same]] & (old.digest[known[same]] == digests[same]).all(axis=1)]
    place[same] = known[same]
    kept[place[same]] = True
    moved = 0
    by_content: dict[bytes, deque[int]] = defaultdict(deque)
    for row in np.flatnonzero(done & ~kept[:size]).tolist():
        by_content[old.digest[row].tobytes()].append(row)
    for index in np.flatnonzero(place < 0).tolist() if by_content else ():
        # A row whose own file still has its content stays with it; a copy of that file is encoded.
        candidates = by_content.get(digests[index].tobytes())
        if candidates:
            place[index] = candidates.popleft()
            kept[place[index]] = True
            moved += 1
    taken[place[place >= 0]] = True
    for index in np.flatnonzero(place < 0).tolist():
        row = int(known[index])
        if row < 0 or taken[row]:
            row, size = size, size + 1
        place[index] = row
        taken[row] = True

    number: dict[str | None, int] = {None: NO_LABEL, **{name: index for index, name in enumerate(classes)}}
    table = _columns(old, size)
    table.key[place] = np.fromiter((record.key for record in records), object, len(records))
    table.label[place] = np.fromiter((number[record.label] for record in records), np.int32, len(records))
    table.group[place] = np.fromiter((record.group for record in records), object, len(records))
    again = place[~kept[place]]
    table.state[again], table.reason[again], table.digest[again] = TODO, "", 0
    split = np.array([NO_SPLIT if record.split is None else SPLITS.index(record.split) for record in records], np.int8)
    drawn = store.attributes.get("split_source", {}).get("how") == "drawn"
    # An image stays in its drawn split, also when it is encoded again.
    told = (split != NO_SPLIT) | (place >= len(old)) if drawn else np.ones(len(records), bool)
    table.split[place[told]] = split[told]
    gone = np.flatnonzero(~taken[:len(old)])
    removed = int((table.state[gone] != REMOVED).sum())
    table.state[gone], table.label[gone], table.split[gone], table.group[gone] = REMOVED, NO_LABEL, NO_SPLIT, ""
    changed = any(not np.array_equal(getattr(table, name), getattr(old, name)) for name in Table.__dataclass_fields__)
    return Inventory(table, changed, {row: record.content for row, record in zip(place.tolist(), records, strict=True)},
                     np.sort(place), int(kept.sum()), moved, removed)


def file_digests(records: Sequence[Record], progress: bool, second: str = "") -> np.ndarray:
    """Digests of the files' bytes: (records, 16). second: the encoder's second input, as of `as_seen`."""
    def one(record: Record) -> bytes:
        try:
            return digest(read(as_seen(record.content, second)))
        except BadImage:
            return digest(b"")  # as the row of an unreadable file has it

    with ThreadPoolExecutor() as pool:
        found = (each for start in range(0, len(records), _AHEAD)
                 for each in pool.map(one, records[start:start + _AHEAD]))
        shown = tqdm(found, total=len(records), unit="file", desc="compare", disable=None if progress else True)
        return np.frombuffer(b"".join(shown), np.uint8).reshape(-1, DIGEST_BYTES)


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
