"""Chunk files that changed places: each matches its own checksum, and none is read in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onceclip.stores import StoreDamaged, open_store
from onceclip.stores.compact import compact
from onceclip.stores.flat_files import checksum, joined_checksums, row_checksums
from onceclip.stores.verification import verify


def swap(first: Path, second: Path) -> None:
    """Have two files change places, as a restore that mixes names up does."""
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


@given(st.integers(1, 70), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_checksums_of_rows_give_that_of_all(rows: int, width: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (rows, width), dtype=np.uint8)
    assert int(joined_checksums(row_checksums(values), width)) == checksum(values)


@pytest.mark.parametrize("kind", ["chunks", "shards", "zarr"])
def test_swapped_embeddings_are_damage_to_all_who_read_them(
        store_copy: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rows = store_copy, 16
    if kind == "shards":
        path, rows = tmp_path / "c.zarr", 32
        compact(str(store_copy), str(path), 16)
        rows = 16
    if kind == "zarr":
        monkeypatch.setattr("onceclip.stores.flat_files.FlatArray.of", lambda array: None)
    swap(path / "image/embedding/c/0/0", path / "image/embedding/c/1/0")
    store = open_store(str(path))
    for chosen in (None, np.arange(rows), np.arange(3, 13), np.array([2])):
        with pytest.raises(StoreDamaged, match=r"image/embedding cannot be read \(the checksums of \d+ rows"):
            store.embeddings(chosen)
    assert len(store.embeddings(np.arange(2 * rows, 60))) == 60 - 2 * rows
    assert [fault.unit for fault in verify(str(path)).faults] == [0, 1]


@pytest.mark.parametrize("name", ["digest", "state", "reason", "checksum"])
def test_a_swapped_column_is_damage(store_copy: Path, name: str) -> None:
    folder = store_copy / "image" / name / "c"
    tail = "0" if name == "digest" else ""
    first, second = folder / "0" / tail, folder / "1" / tail
    if name in ("state", "reason"):  # alike in all units of a sound store
        from onceclip.stores import StoreWriter
        from onceclip.stores.schema import BAD

        writer = StoreWriter.open(str(store_copy), open_store(str(store_copy)).encoder)
        table = writer.store.table
        state, reason = table.state.copy(), table.reason.copy()
        state[3], reason[3] = BAD, "no image"
        writer.update(complete=False)
        _, embedding, outputs = writer.unit(0)
        writer.commit(0, embedding, table.digest[:16], reason[:16], state[:16], outputs)
        writer.finish(table.split)
    open_store(str(store_copy)).column(name)
    swap(first, second)
    with pytest.raises(StoreDamaged, match=rf"image/{name} cannot be read \(its chunks are not in their places\)"):
        open_store(str(store_copy)).column(name)
    assert verify(str(store_copy)).faults
