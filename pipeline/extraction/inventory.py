"""Which images of a source a store already has, decided by the content of their files, never by path or time."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from onceclip.pipeline.decoding.worker import read
from onceclip.pipeline.errors import BadImage
from onceclip.pipeline.sources import Content, Record
from onceclip.pipeline.sources.record import as_seen
from onceclip.stores import Store, Table
from onceclip.stores.identity import DIGEST_BYTES, digest
from onceclip.stores.schema import BAD, COLUMNS, NO_LABEL, NO_SPLIT, REMOVED, SPLITS, STORED, TODO

_FILES = 1 << 14  # that are queued for the threads at a time


@dataclass(frozen=True)
class Inventory:
    """The rows that a store will have, and the image file of each.

    table: columns of all rows; rows in state TODO are to be encoded. changed: whether the table differs from the
    store's. contents: the image file of every row that has one now. moved: number of stored rows under a new key.
    removed: number of rows.
    """

    table: Table
    changed: bool
    contents: dict[int, Content]
    moved: int
    removed: int


def take_inventory(records: Sequence[Record], classes: Sequence[str], store: Store,
                   progress: bool = False, retry_bad: bool = False, digests: np.ndarray | None = None) -> Inventory:
    """Match the images of a source with the rows of a store, which may be empty.

    A row is reused if a file has its content, under the same key or under a new one (moved). A file with a known key
    and new content takes over the row of that key; any other new file gets a row at the end. Rows without a file are
    marked as removed.
    retry_bad: encode bad rows again. digests: of the files, if `file_digests` has computed them already.
    """
    old = store.table
    done = (old.state == STORED) | ((old.state == BAD) & (not retry_bad))
    if digests is None:
        digests = (file_digests(records, progress, str(store.encoder.get("second_input", ""))) if done.any() else
                   np.zeros((len(records), DIGEST_BYTES), np.uint8))
    row_of, reused = _match(records, digests, old, done)
    table = _resized(old, int(max(len(old), row_of.max(initial=-1) + 1)))
    class_number: dict[str | None, int] = {None: NO_LABEL, **{name: index for index, name in enumerate(classes)}}
    keys = np.fromiter((record.key for record in records), object, len(records))
    moved = reused & (table.key[row_of] != keys) & (table.state[row_of] == STORED)
    table.key[row_of] = keys
    table.label[row_of] = np.fromiter((class_number[record.label] for record in records), np.int32, len(records))
    table.group[row_of] = np.fromiter((record.group for record in records), object, len(records))
    to_encode = row_of[~reused]
    table.state[to_encode], table.reason[to_encode], table.digest[to_encode] = TODO, "", 0
    split = np.array([NO_SPLIT if record.split is None else SPLITS.index(record.split) for record in records], np.int8)
    drawn = store.attributes.get("split_source", {}).get("how") == "drawn"
    # Where onceclip drew the splits, an image stays in its split, also when it is encoded again.
    set_split = (split != NO_SPLIT) | (row_of >= len(old)) if drawn else np.ones(len(records), bool)
    table.split[row_of[set_split]] = split[set_split]
    gone = np.setdiff1d(np.arange(len(old)), row_of)
    removed = int((table.state[gone] != REMOVED).sum())
    table.state[gone], table.label[gone], table.split[gone], table.group[gone] = REMOVED, NO_LABEL, NO_SPLIT, ""
    changed = any(not np.array_equal(getattr(table, name), getattr(old, name)) for name in Table.__dataclass_fields__)
    contents = {row: record.content for row, record in zip(row_of.tolist(), records, strict=True)}
    return Inventory(table, changed, contents, int(moved.sum()), removed)


def _match(records: Sequence[Record], digests: np.ndarray, old: Table,
           done: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row of every record, and which of them (bool) have the row's content.

    done: rows (bool) whose content counts.
    """
    # A removed row still has its key: where two rows have one key, the one that is not removed counts.
    order = np.argsort(old.state != REMOVED, kind="stable")
    by_key = dict(zip(old.key[order].tolist(), order.tolist(), strict=True))
    known = np.fromiter((by_key.get(record.key, -1) for record in records), np.int64, len(records))
    del by_key
    size = len(old)
    row_of, taken = np.full(len(records), -1), np.zeros(size + len(records), bool)
    same = np.flatnonzero(known >= 0)
    same = same[done[known[same]] & (old.digest[known[same]] == digests[same]).all(axis=1)]
    row_of[same] = known[same]
    taken[row_of[same]] = True
    rows_by_content: dict[bytes, deque[int]] = defaultdict(deque)
    for row in np.flatnonzero(done & ~taken[:size]).tolist():
        rows_by_content[old.digest[row].tobytes()].append(row)
    for index in np.flatnonzero(row_of < 0).tolist() if rows_by_content else ():
        # A row whose own file still has its content is not among these; a copy of that file is encoded.
        if candidates := rows_by_content.get(digests[index].tobytes()):
            row_of[index] = candidates.popleft()
    reused = row_of >= 0
    taken[row_of[reused]] = True
    for index in np.flatnonzero(~reused).tolist():
        row = int(known[index])
        if row < 0 or taken[row]:
            row, size = size, size + 1
        row_of[index] = row
        taken[row] = True
    return row_of, reused


def file_digests(records: Sequence[Record], progress: bool, second: str = "") -> np.ndarray:
    """Digests of the files' bytes: (records, 16). second: the encoder's second input, as of `as_seen`."""
    def file_digest(record: Record) -> bytes:
        try:
            return digest(read(as_seen(record.content, second)))
        except BadImage:
            return digest(b"")  # the digest that the row of an unreadable file has

    with ThreadPoolExecutor() as pool:
        found = (each for start in range(0, len(records), _FILES)
                 for each in pool.map(file_digest, records[start:start + _FILES]))
        shown = tqdm(found, total=len(records), unit="file", desc="compare", disable=None if progress else True)
        return np.frombuffer(b"".join(shown), np.uint8).reshape(-1, DIGEST_BYTES)


def _resized(old: Table, size: int) -> Table:
    """A copy of a table with `size` rows; new ones are empty."""
    def resized(name: str) -> np.ndarray:
        described = COLUMNS[name]
        dtype = np.dtype(object if described.dtype == "str" else described.dtype)
        empty = np.full((size - len(old), *described.shape), described.fill, dtype)
        return np.concatenate([getattr(old, name).astype(dtype), empty])

    return Table(**{name: resized(name) for name in Table.__dataclass_fields__})
