"""Values of some rows of an array, by the fastest way that checks every byte it gives."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import zarr

from onceclip.stores.flat import FlatArray

Piece = tuple[int, np.ndarray, np.ndarray]  # a chunk, its rows that are asked for, their places in the result
_WHOLE = 0.25  # share of a chunk's rows from which reading all of it is faster than row by row


def read_rows(array: zarr.Array, flat: FlatArray | None, rows: np.ndarray,
              checksums: Callable[[], np.ndarray] | None = None) -> np.ndarray:
    """Read rows of an array (all, ...) in the order given: (n, ...).

    Where chunks are flat files, whole chunks are read straight into place and few rows of a chunk one by one, each
    against its own checksum; elsewhere Zarr reads whole chunks.
    flat: the array's flat view, or None if it has none.
    checksums: gives the CRC-32C of every row (all,), asked for only if rows are read one by one; None if there are
        none, so that only whole chunks can be checked.
    Raises what reading damaged or missing bytes raises, ValueError and OSError among them.
    """
    height = array.chunks[0]
    result = np.empty((len(rows), *array.shape[1:]), array.dtype)
    rising = bool((rows[1:] > rows[:-1]).all())
    order = np.arange(len(rows)) if rising else np.argsort(rows, kind="stable")
    few: list[Piece] = []
    many: list[Piece] = []
    for unit, places in _runs(rows[order] // height, order):
        piece = (unit, rows[places] - unit * height, places)
        sparse = flat is not None and checksums is not None and len(places) < _WHOLE * height
        (few if sparse else many).append(piece)

    def one(piece: Piece) -> None:
        unit, local, places = piece
        if flat is None:
            result[places] = np.asarray(array[unit * height:(unit + 1) * height])[local]
        elif rising and len(local) == height:
            flat.chunk(unit, result[places[0]:places[-1] + 1])
        else:
            result[places] = flat.chunk(unit)[local]

    if flat is not None and checksums is not None and few:
        flat.gather(few, result, checksums()[rows])
    if many:
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            for _ in pool.map(one, many):
                pass
    return result


def _runs(unit: np.ndarray, order: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Group positions (`order`) by their unit; both arrays are sorted by unit."""
    edges = np.flatnonzero(np.diff(unit)) + 1
    for members, first in zip(np.split(order, edges), np.split(unit, edges), strict=True):
        if len(members):
            yield int(first[0]), members
