"""Rows out of an array, by the fastest way that checks every byte it gives, and rows into one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import google_crc32c
import numpy as np
import zarr
from zarr.core.sync import sync

from onceclip.stores.flat_files import FlatArray, checksum, joined_checksums, row_checksums

_WHOLE = 0.25  # share of a chunk's rows from which reading all of it is faster than row by row

Run = tuple[int, int, int]  # a chunk, and which of the rows in rising order lie in it: from, to


class Checksums:
    """The CRC-32C of every row of an array (all, ...), and what they say of its chunks.

    read: gives those of all rows: (all,) uint32; called only if they are needed.
    """

    def __init__(self, array: zarr.Array, read: Callable[[], np.ndarray]) -> None:
        self.of_rows = read
        self._height = array.chunks[0]
        self._row_bytes = int(np.prod(array.shape[1:])) * np.dtype(array.dtype).itemsize
        self._of_chunks: list[int] = []
        self._lock = Lock()

    def of_chunk(self, number: int) -> int:
        """That of the bytes of all rows of a chunk, which follows from those of the rows."""
        with self._lock:
            if not self._of_chunks:
                rows, height = self.of_rows(), self._height
                full = len(rows) // height
                self._of_chunks = joined_checksums(rows[:full * height].reshape(full, -1), self._row_bytes).tolist() \
                    if full else []
                if len(rows) % height:
                    self._of_chunks.append(int(joined_checksums(rows[full * height:], self._row_bytes)))
            return self._of_chunks[number]


def read_rows(array: zarr.Array, flat: FlatArray | None, rows: np.ndarray,
              checksums: Checksums | None = None) -> tuple[np.ndarray, bool]:
    """Read rows of an array (all, ...) in the order given: (n, ...), and whether all of them have values.

    Where chunks lie plainly in files, whole chunks are read straight into place and few rows of a chunk one by one,
    each against its own checksum; elsewhere Zarr reads whole chunks. A row has no value if its first number is NaN, as
    in a chunk that is missing where Zarr reads it.
    flat: the array's flat view, or None if it has none.
    checksums: those of every row; None if there are none, so that only whole chunks can be checked.
    Raises what reading damaged or missing bytes raises, ValueError and OSError among them.
    """
    height, total = array.chunks[0], array.shape[0]
    rising = bool((rows[1:] > rows[:-1]).all())
    order = None if rising else np.argsort(rows, kind="stable")
    sorted_rows = rows if order is None else rows[order]
    runs = _runs(sorted_rows, height)
    result = np.empty((len(rows), *array.shape[1:]), array.dtype)
    first = result.reshape(len(rows), -1)[:, 0] if result.size else np.zeros(len(rows))

    def one(run: Run) -> bool:
        chunk, low, high = run
        places = slice(low, high) if order is None else order[low:high]
        whole_chunk = rising and high - low == height
        if flat is not None:
            values, found = flat.chunk(chunk, result[places] if whole_chunk else None)
            if total < (chunk + 1) * height:
                values = values[:total - chunk * height]
                found = checksum(values)
        else:
            values = np.asarray(array[chunk * height:(chunk + 1) * height])
            found = checksum(np.ascontiguousarray(values, values.dtype.newbyteorder("<")))
        if flat is None or not whole_chunk:
            result[places] = values[sorted_rows[low:high] - chunk * height]
        # A chunk that took the place of another matches its own checksum, but not those of its rows. Others of its rows
        # may have no values yet, so that the rows that were asked for decide.
        if checksums is not None and found != checksums.of_chunk(chunk):
            _check(result[places], checksums.of_rows()[sorted_rows[low:high]])
        return bool(np.isfinite(first[places]).all())

    whole = True
    if flat is not None and checksums is not None:
        few = [run for run in runs if run[2] - run[1] < _WHOLE * min(height, total - run[0] * height)]
        if few:
            whole = _gather(few, flat, sorted_rows, order, result, checksums.of_rows())
            runs = [] if len(few) == len(runs) else sorted({*runs} - {*few})
    if len(runs) == 1:
        return result, one(runs[0]) and whole
    if runs:
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            whole = all(list(pool.map(one, runs))) and whole
    return result, whole


def put_rows(array: zarr.Array, where: slice, values: np.ndarray) -> None:
    """Write consecutive rows (rows, ...) that begin with a chunk or shard; whatever these held before is replaced."""
    try:
        array[where] = values
    except ValueError:  # Zarr reads the index of a shard that it replaces, and this one is damaged
        height = (array.shards or array.chunks)[0]
        for number in range(where.start // height, -(-where.stop // height)):
            key = array.metadata.encode_chunk_key((number, *(0,) * (array.ndim - 1)))
            sync((array.store_path / key).delete())
        array[where] = values


def read_column(flat: FlatArray, start: int, stop: int) -> np.ndarray:
    """Read consecutive rows of a column by its files: (rows, ...).

    Raises what reading damaged or missing chunks raises, ValueError and OSError among them.
    """
    flat.require_files()
    result, height = np.empty((stop - start, *flat.row_shape), flat.dtype), flat.height
    for number in range(start // height, -(-stop // height)):
        low, high = max(start, number * height), min(stop, (number + 1) * height)
        place = result[low - start:high - start]
        if len(place) == height:
            flat.chunk(number, place)
        else:
            place[...] = flat.chunk(number)[0][low - number * height:high - number * height]
    return result


def column_checksum(parts: Iterable[np.ndarray]) -> int:
    """CRC-32C of a whole column, from its consecutive parts."""
    found = 0
    for part in parts:
        content = ("\n".join([*part.tolist(), ""]).encode() if part.dtype.kind in "OTU" else
                   np.ascontiguousarray(part, part.dtype.newbyteorder("<")).tobytes())
        found = google_crc32c.extend(found, content)
    return int(found)


def finite_rows(values: np.ndarray) -> np.ndarray:
    """Which rows of floating-point values (rows, ...) are finite in every place: (rows,) bool."""
    flat = values.reshape(len(values), -1)
    if flat.dtype != np.float16:
        return np.isfinite(flat).all(axis=1)
    exponent = np.uint16(0x7C00)  # all ones in infinity and NaN; numpy looks at half precision one by one
    return (flat.view(np.uint16) & exponent).max(axis=1) != exponent


def unusable_rows(values: np.ndarray) -> np.ndarray:
    """Why rows (rows, ...) are no embeddings: (rows,) text, "not finite", "zeros", or empty for those that are.

    Other programs write zeros for images that they could not read.
    """
    zero = ~values.reshape(len(values), -1).any(axis=1)
    return np.where(finite_rows(values), np.where(zero, "zeros", ""), "not finite").astype(object)


def _runs(rows: np.ndarray, height: int) -> list[Run]:
    """Group rows in rising order by their chunk."""
    if not len(rows):
        return []
    start, stop = int(rows[0]), int(rows[-1]) + 1
    if stop - start == len(rows) and (rows[1:] > rows[:-1]).all():  # 25 times as fast as what follows
        chunks: list[int] = list(range(start // height, (stop - 1) // height + 1))
        edges = [0, *(chunk * height - start for chunk in chunks[1:]), len(rows)]
    else:
        chunk = rows // height
        edges = [0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(rows)]
        chunks = chunk[edges[:-1]].tolist()
    return list(zip(chunks, edges[:-1], edges[1:], strict=True))


def _gather(runs: list[Run], flat: FlatArray, rows: np.ndarray, order: np.ndarray | None, result: np.ndarray,
            checksums: np.ndarray) -> bool:
    """Read single rows into their places of `result` (n, ...), each against its checksum; gives if all have values."""
    plain = result.reshape(len(result), -1).view(np.uint8)
    items, local = plain.view(f"V{flat.row_bytes}")[:, 0], rows % flat.height
    for chunk, low, high in runs:
        items[slice(low, high) if order is None else order[low:high]] = flat.rows(chunk)[local[low:high]]
    if sum(high - low for _, low, high in runs) < len(rows):
        taken = np.concatenate([np.arange(low, high) for _, low, high in runs])
        rows, plain = rows[taken], plain[taken if order is None else order[taken]]
    elif order is not None:
        plain = plain[order]
    _check(plain, checksums[rows])
    return bool(np.isfinite(plain.view(flat.dtype)[:, 0]).all())


def _check(values: np.ndarray, expected: np.ndarray) -> None:
    wrong = int((row_checksums(values) != expected).sum())
    if wrong:
        raise ValueError(f"the checksums of {wrong} rows do not match")
