"""Uncompressed chunks on a local disk are flat files, alone or in shards: read directly, with checksums checked."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path
from typing import Self

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.storage import LocalStore

CHECKSUM = np.dtype("<u4")
ABSENT = np.iinfo(np.uint64).max  # offset and length of a chunk that a shard does not have
_PLAIN = [BytesCodec, Crc32cCodec]
_MOST_MAPS = 512  # far below the number of files that a process may have open


def row_checksums(values: np.ndarray) -> np.ndarray:
    """CRC-32C of the little-endian bytes of each row (rows, ...): (rows,) uint32."""
    rows = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return np.fromiter(map(google_crc32c.value, _frozen(rows)), np.uint32, len(rows))


def checksum(values: np.ndarray | bytes) -> int:
    """CRC-32C of some bytes."""
    return int(google_crc32c.value(_frozen(values) if isinstance(values, np.ndarray) else values))


def joined_checksums(checksums: np.ndarray, size: int) -> np.ndarray:
    """CRC-32C of blocks that follow each other, of those of each: (..., blocks) uint32 gives (...). size: of a block.

    A checksum is linear in its bits: that of A and B is that of A, shifted by the length of B, xor that of B. Blocks
    are joined in pairs, and pairs of pairs. A checksum of nothing is zero and stays so, whatever is put behind it.
    """
    shift = _shift_of(size)
    while checksums.shape[-1] > 1:
        if checksums.shape[-1] % 2:
            checksums = np.concatenate([np.zeros((*checksums.shape[:-1], 1), np.uint32), checksums], -1)
        checksums = _shifted(shift, checksums[..., 0::2]) ^ checksums[..., 1::2]
        shift = _shifted(shift, shift)
    return checksums[..., 0]


def _shift_of(size: int) -> np.ndarray:
    """What putting `size` zero bytes behind some bytes does to each bit of their checksum: (32,) uint32."""
    # One zero byte: eight steps of the polynomial.
    step = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for _ in range(8):
        step = (step >> np.uint32(1)) ^ (np.uint32(0x82F63B78) * (step & np.uint32(1)))
    shift = np.uint32(1) << np.arange(32, dtype=np.uint32)
    while size:
        if size & 1:
            shift = _shifted(step, shift)
        step, size = _shifted(step, step), size >> 1
    return shift


def _shifted(shift: np.ndarray, checksums: np.ndarray) -> np.ndarray:
    """Apply a shift (32,) to every checksum, a byte of them at a time."""
    result = np.zeros_like(checksums)
    numbers = np.arange(256)
    for byte in range(4):
        table = np.zeros(256, np.uint32)
        for bit in range(8):
            table ^= np.where(numbers >> bit & 1, shift[8 * byte + bit], np.uint32(0))
        result ^= table[(checksums >> np.uint32(8 * byte)) & np.uint32(0xFF)]
    return result


def _frozen(values: np.ndarray) -> np.ndarray:
    """A view that nobody may write to: the checksum takes no other memory."""
    view = values.view()
    view.flags.writeable = False
    return view


def shard_index(content: bytes | np.ndarray, chunks: int) -> np.ndarray:
    """Offset and length of every chunk of a shard from the last bytes of its file: (chunks, 2) uint64.

    Raises ValueError if they do not match their checksum.
    """
    size = 16 * chunks
    tail = np.frombuffer(content, np.uint8)[-size - CHECKSUM.itemsize:]
    if len(tail) != size + CHECKSUM.itemsize or checksum(tail[:size]) != int(tail[size:].view(CHECKSUM)[0]):
        raise ValueError("the shard's index does not match its checksum")
    return tail[:size].view("<u8").reshape(chunks, 2)


class FlatArray:
    """An array (rows, ...) whose chunks span whole rows and lie plainly in files; make one with `of`."""

    def __init__(self, array: zarr.Array, folder: Path) -> None:
        self.array, self.folder = array, folder
        self.height = array.chunks[0]
        self.sharded = array.shards is not None
        self.chunks_per_file = array.shards[0] // self.height if array.shards else 1
        self.dtype = np.dtype(array.dtype).newbyteorder("<")
        self.row_shape = array.shape[1:]
        self.row_bytes = int(np.prod(self.row_shape)) * self.dtype.itemsize
        self._indices: dict[int, np.ndarray] = {}
        self._maps: dict[int, mmap.mmap] = {}
        self._rows: dict[int, np.ndarray] = {}

    @classmethod
    def of(cls, array: zarr.Array) -> Self | None:
        """The flat view of an array, or None where its bytes are not laid out so."""
        store, codecs = array.store, list(getattr(array.metadata, "codecs", ()))
        if not isinstance(store, LocalStore) or sys.byteorder != "little" or not hasattr(os, "preadv"):
            return None
        outer = array.shards or array.chunks
        if not array.shape or not array.shape[0] or array.chunks[1:] != array.shape[1:] or outer[1:] != array.shape[1:]:
            return None
        if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec):
            shard = codecs[0]
            if shard.index_location.value != "end" or [type(codec) for codec in shard.index_codecs] != _PLAIN:
                return None
            codecs = list(shard.codecs)
        if [type(codec) for codec in codecs] != _PLAIN or np.dtype(array.dtype).kind not in "iuf":
            return None
        if np.dtype(array.dtype).itemsize > 1 and getattr(codecs[0].endian, "value", None) != "little":
            return None
        return cls(array, Path(store.root) / array.path)

    def chunk(self, number: int, out: np.ndarray | None = None) -> tuple[np.ndarray, int]:
        """Read one whole chunk (height, ...), into `out` if given; gives its CRC-32C too.

        Raises OSError if it is missing, ValueError if it is cut short or does not match its checksum.
        """
        check = bytearray(CHECKSUM.itemsize)
        size = self.height * self.row_bytes + len(check)
        offset = self._offset(number)
        with open(self._path(number), "rb", buffering=0) as file:
            there = os.fstat(file.fileno()).st_size
            if there < offset + size or (not self.sharded and there != size):  # before any memory is taken for it
                raise ValueError(f"chunk {number} is not {size} bytes long")
            buffer = np.empty((self.height, *self.row_shape), self.dtype) if out is None else out
            if os.preadv(file.fileno(), [buffer.reshape(-1).view(np.uint8).data, check], offset) != size:
                raise ValueError(f"chunk {number} is not {size} bytes long")
        found = checksum(buffer)
        if found != int(np.frombuffer(check, CHECKSUM)[0]):
            raise ValueError(f"chunk {number}: the checksum does not match")
        return buffer, found

    def rows(self, number: int) -> np.ndarray:
        """The rows of a chunk as a memory map of items of `row_bytes` bytes: (height,), none of them checked.

        Maps are kept: opening a file takes longer than reading a few rows.
        Raises OSError if it is missing, ValueError if it is cut short.
        """
        if number not in self._rows:
            file = number // self.chunks_per_file
            offset = self._offset(number)
            if file not in self._maps:
                if len(self._maps) >= _MOST_MAPS:
                    self._maps.clear()
                    self._rows.clear()
                with open(self._path(number), "rb") as handle:
                    self._maps[file] = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
                self._maps[file].madvise(mmap.MADV_RANDOM)  # else a cold disk is asked for many rows around each
            if len(self._maps[file]) < offset + self.height * self.row_bytes:
                raise ValueError(f"chunk {number} is cut short")
            self._rows[number] = np.frombuffer(self._maps[file], f"V{self.row_bytes}", self.height, offset)
        return self._rows[number]

    def require_files(self) -> None:
        """Raise OSError or ValueError unless every file is there and holds a chunk: shapes are claims."""
        chunk = self.height * self.row_bytes + CHECKSUM.itemsize
        for number in range(0, -(-self.array.shape[0] // self.height), self.chunks_per_file):
            if os.stat(self._path(number)).st_size < chunk:
                raise ValueError(f"chunk {number} is not {chunk} bytes long")

    def _offset(self, number: int) -> int:
        """Where a chunk begins in its file."""
        if not self.sharded:
            return 0
        file, place = divmod(number, self.chunks_per_file)
        if file not in self._indices:
            size = 16 * self.chunks_per_file + CHECKSUM.itemsize
            with open(self._path(number), "rb", buffering=0) as handle:
                handle.seek(-min(size, os.fstat(handle.fileno()).st_size), os.SEEK_END)
                self._indices[file] = shard_index(handle.read(size), self.chunks_per_file)
        offset, length = self._indices[file][place].tolist()
        if offset == ABSENT:
            raise FileNotFoundError(f"chunk {number} is missing in its shard")
        if length != self.height * self.row_bytes + CHECKSUM.itemsize:
            raise ValueError(f"chunk {number} is not {self.height * self.row_bytes + CHECKSUM.itemsize} bytes long")
        return int(offset)

    def _path(self, number: int) -> Path:
        place = (number // self.chunks_per_file, *(0,) * len(self.row_shape))
        return self.folder / self.array.metadata.encode_chunk_key(place)
