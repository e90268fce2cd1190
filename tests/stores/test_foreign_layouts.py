"""Layouts that are no flat files, as other programs write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

from onceclip.stores import StoreDamaged, open_store
from onceclip.stores.flat_files import FlatArray
from onceclip.stores.verification import verify


@pytest.fixture(params=["compressed", "big-endian", "compressed shards"])
def foreign(request: pytest.FixtureRequest, store_copy: Path) -> Path:
    """The shared store with its embeddings written anew in a layout that onceclip never makes."""
    group = zarr.open_group(str(store_copy), mode="r+")
    values = group["image/embedding"][...]
    squeezed = [ZstdCodec(), Crc32cCodec()] if request.param != "big-endian" else [Crc32cCodec()]
    array = group.create_array(
        "image/embedding", shape=values.shape, chunks=(8, values.shape[1]), dtype=values.dtype, fill_value=np.nan,
        shards=(32, values.shape[1]) if "shards" in request.param else None, filters=None, compressors=squeezed,
        serializer=BytesCodec(endian="big" if request.param == "big-endian" else "little"),
        dimension_names=("image", "dim"), overwrite=True)
    array[...] = values
    return store_copy


def test_a_foreign_layout_gives_the_same_bytes(foreign: Path, store_path: Path) -> None:
    store, expected = open_store(str(foreign)), open_store(str(store_path))
    assert FlatArray.of(store.array("embedding")) is None
    np.testing.assert_array_equal(store.embeddings(), expected.embeddings())
    rows = np.array([59, 0, 33, 32])
    np.testing.assert_array_equal(store.embeddings(rows), expected.embeddings(rows))
    assert verify(str(foreign)).faults == []


@pytest.mark.parametrize("last", [False, True], ids=["whole chunk", "last chunk"])
def test_a_flipped_byte_in_a_foreign_layout_is_an_error(foreign: Path, store_path: Path, last: bool) -> None:
    whole = open_store(str(store_path)).embeddings()
    chunks = (path for path in (foreign / "image" / "embedding" / "c").rglob("0") if path.is_file())
    chunk = sorted(chunks, key=lambda path: int(path.parent.name))[-last]
    original = chunk.read_bytes()
    found = 0
    for place in range(0, len(original), len(original) // 12):
        content = bytearray(original)
        content[place] ^= 1
        chunk.write_bytes(content)
        for rows in (np.arange(60), np.arange(57, 60), np.array([1, 30, 58])):
            try:
                assert open_store(str(foreign)).embeddings(rows).tobytes() == whole[rows].tobytes()
            except StoreDamaged:
                found += 1
    assert found > 12
    assert verify(str(foreign)).faults
