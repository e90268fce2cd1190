"""Uncompressed chunks on a local disk are flat files: read directly, with their checksums checked."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Self

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import LocalStore

_CHECKSUM = np.dtype("<u4")
_MOST_MAPS = 512  # far below the number of files that a process may have open


def row_checksums(values: np.ndarray) -> np.ndarray:
    """CRC-32C of the little-endian bytes of each row (rows, ...): (rows,) uint32."""
    rows = _frozen(np.ascontiguousarray(values, values.dtype.newbyteorder("<")))
    return np.fromiter(map(google_crc32c.value, rows), np.uint32, len(rows))


def _frozen(values: np.ndarray) -> np.ndarray:
    """A view that nobody may write to: the checksum takes no other memory."""
    view = values.view()
    view.flags.writeable = False
    return view


def _bytes(values: np.ndarray) -> memoryview:
    return values.reshape(-1).view(np.uint8).data


class FlatArray:
    """An array (rows, ...) whose chunks span whole rows and lie in files of their own; make one with `of`."""

    def __init__(self, array: zarr.Array, folder: Path) -> None:
        self.array, self.folder = array, folder
        self.height = array.chunks[0]
        self.dtype = np.dtype(array.dtype).newbyteorder("<")
        self.row_shape = array.shape[1:]
        self._maps: dict[int, np.ndarray] = {}
        self.row_bytes = int(np.prod(self.row_shape)) * self.dtype.itemsize

    @classmethod
    def of(cls, array: zarr.Array) -> Self | None:
        """The flat view of an array, or None where its bytes are not laid out so."""
        store, metadata = array.store, array.metadata
        codecs = [type(codec) for codec in getattr(metadata, "codecs", ())]
        if not isinstance(store, LocalStore) or codecs != [BytesCodec, Crc32cCodec]:
            return None
        if sys.byteorder != "little" or not hasattr(os, "readv"):
            return None
        if array.chunks[1:] != array.shape[1:] or array.shards is not None or not array.shape[0]:
            return None
        return cls(array, Path(store.root) / array.path)

    def chunk(self, unit: int, out: np.ndarray | None = None) -> np.ndarray:
        """Read one whole chunk: (height, ...), into `out` if given.

        Raises ValueError if its file is cut short or does not match its checksum.
        """
        buffer = np.empty((self.height, *self.row_shape), self.dtype) if out is None else out
        check = bytearray(_CHECKSUM.itemsize)
        with open(self._path(unit), "rb", buffering=0) as file:
            count = os.readv(file.fileno(), [_bytes(buffer), check])
            if count != buffer.nbytes + len(check) or file.read(1):
                raise ValueError(f"unit {unit} is not {buffer.nbytes + len(check)} bytes long")
        if google_crc32c.value(_frozen(buffer)) != int(np.frombuffer(check, _CHECKSUM)[0]):
            raise ValueError(f"unit {unit}: the checksum does not match")
        return buffer

    def gather(self, pieces: list[tuple[int, np.ndarray, np.ndarray]], out: np.ndarray, checksums: np.ndarray) -> None:
        """Read single rows into `out` (n, ...).

        pieces: per chunk its number, its rows that are asked for, and their places in `out`. checksums: (n,), as
        `row_checksums` makes them; places that no piece names are not looked at.
        Raises ValueError if a row is cut short or does not match.
        """
        for unit, rows, places in pieces:
            out[places] = self._map(unit)[rows]
        read = np.concatenate([places for _, _, places in pieces])
        wrong = row_checksums(out if len(read) == len(out) else out[read]) != (
            checksums if len(read) == len(out) else checksums[read])
        if wrong.any():
            raise ValueError(f"the checksums of {int(wrong.sum())} rows do not match")

    def _map(self, unit: int) -> np.ndarray:
        """A chunk as a memory map, which is kept: opening the file takes longer than reading a few rows."""
        if unit not in self._maps:
            if len(self._maps) >= _MOST_MAPS:
                self._maps.clear()
            path = self._path(unit)
            if os.path.getsize(path) < self.height * self.row_bytes:
                raise ValueError(f"unit {unit} is cut short")
            self._maps[unit] = np.memmap(path, self.dtype, "r", shape=(self.height, *self.row_shape))
        return self._maps[unit]

    def _path(self, unit: int) -> Path:
        key = self.array.metadata.encode_chunk_key((unit,) + (0,) * len(self.row_shape))
        return self.folder / key
