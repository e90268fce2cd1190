"""Rows into arrays, chunk by chunk or as Zarr v3 shards: a shard is its chunks, one behind the other, and an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from onceclip.stores.flat import ABSENT, CHECKSUM, FlatArray, checksum


def put_rows(array: zarr.Array, where: slice, values: np.ndarray) -> None:
    """Write consecutive rows (rows, ...) that begin with a chunk or shard; whatever these held before is replaced."""
    if np.dtype(array.dtype).kind not in "iuf":
        array[where] = values
        return
    chunks = _encoded(np.asarray(values, array.dtype), array)
    if array.shards is not None:
        _put_shards(array, where, chunks)
        return
    for number, chunk in enumerate(chunks, where.start // array.chunks[0]):
        _put(array, number, chunk)


def copy_rows(source: zarr.Array, target: zarr.Array, where: slice) -> None:
    """Write consecutive rows as another array has them, chunk by chunk, each against its checksum.

    target: has shards, `where` begins with one. Plain chunks of equal height are copied without being decoded.
    Raises ValueError or OSError if a chunk is missing or does not match.
    """
    height = target.chunks[0]
    first, last = where.start // height, -(-where.stop // height)
    plain = [type(codec) for codec in getattr(source.metadata, "codecs", ())] == [BytesCodec, Crc32cCodec]
    flat = FlatArray.of(source)
    if plain and source.chunks == target.chunks:
        chunks = (_plain_chunk(source, number) for number in range(first, last))
    elif flat is not None and flat.height == height:
        chunks = (_chunk(flat.chunk(number)) for number in range(first, last))
    else:
        rows = (slice(number * height, min((number + 1) * height, where.stop)) for number in range(first, last))
        chunks = (chunk for each in rows for chunk in _encoded(np.asarray(source[each]), target))
    _put_shards(target, where, chunks)


def _plain_chunk(array: zarr.Array, number: int) -> bytes:
    buffer = sync((array.store_path / _key(array, number)).get(default_buffer_prototype()))
    if buffer is None:
        raise FileNotFoundError(f"chunk {number} is missing")
    content = buffer.to_bytes()
    size = int(np.prod(array.chunks)) * array.dtype.itemsize
    if len(content) != size + CHECKSUM.itemsize:
        raise ValueError(f"chunk {number} is not {size + CHECKSUM.itemsize} bytes long")
    if checksum(content[:size]) != int(np.frombuffer(content, CHECKSUM, 1, size)[0]):
        raise ValueError(f"chunk {number}: the checksum does not match")
    return content


def _encoded(values: np.ndarray, array: zarr.Array) -> Iterator[bytes]:
    """The chunks of some rows, as they are stored."""
    height = array.chunks[0]
    for start in range(0, len(values), height):
        piece = values[start:start + height]
        if len(piece) < height:
            rest = np.full((height - len(piece), *piece.shape[1:]), array.fill_value, values.dtype)
            piece = np.concatenate([piece, rest])
        yield _chunk(np.ascontiguousarray(piece, piece.dtype.newbyteorder("<")))


def _chunk(values: np.ndarray) -> bytes:
    return values.tobytes() + np.array(checksum(values), CHECKSUM).tobytes()


def _put_shards(array: zarr.Array, where: slice, chunks: Iterable[bytes]) -> None:
    """Write the chunks of some rows as shards, one at a time, each by one write."""
    assert array.shards is not None
    height, shard = array.chunks[0], array.shards[0]
    upcoming = iter(chunks)
    for start in range(where.start, where.stop, shard):
        index = np.full((shard // height, 2), ABSENT, "<u8")
        content = bytearray()
        for place in range(-(-(min(start + shard, where.stop) - start) // height)):
            chunk = next(upcoming)
            index[place] = len(content), len(chunk)
            content += chunk
        content += index.tobytes() + np.array(checksum(index), CHECKSUM).tobytes()
        _put(array, start // shard, content)


def _put(array: zarr.Array, number: int, content: bytes | bytearray) -> None:
    """Write one file whole."""
    sync((array.store_path / _key(array, number)).set(default_buffer_prototype().buffer.from_bytes(content)))


def _key(array: zarr.Array, number: int) -> str:
    return array.metadata.encode_chunk_key((number,) + (0,) * (array.ndim - 1))
