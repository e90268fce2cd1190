"""Values are the same by every way of reading them, and every way checks them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.pipeline.extraction.import_arrays import import_arrays
from onceclip.stores import Store, StoreDamaged, open_store
from onceclip.stores.flat_files import FlatArray, row_checksums
from onceclip.stores.rows import Checksums, read_rows

ROWS, DIM, UNIT = 230, 7, 64


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A store of 230 rows in units of 64, the last one partly filled."""
    random = np.random.default_rng(8)
    np.savez(tmp_path / "a.npz", embedding=random.standard_normal((ROWS, DIM)).astype(np.float16),
             label=np.arange(ROWS) % 3, split=np.array(["train"] * ROWS))
    import_arrays(tmp_path / "a.npz", tmp_path / "large.zarr", unit_rows=UNIT)
    return tmp_path / "large.zarr"


@pytest.fixture
def store(large: Path) -> Store:
    return open_store(str(large))


SELECTIONS = {
    "all": np.arange(ROWS),
    "one": np.array([200]),
    "few": np.array([3, 64, 65, 229]),
    "backwards": np.arange(ROWS)[::-1],
    "repeated": np.array([5, 5, 5, 228, 5]),
    "one unit": np.arange(64, 128),
    "across units": np.arange(60, 140),
    "shuffled": np.random.default_rng(1).permutation(ROWS),
    "every other": np.arange(0, ROWS, 2),
    "none": np.zeros(0, np.int64),
}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_flat_files_and_zarr_give_the_same_bytes(store: Store, selection: str) -> None:
    rows, array = SELECTIONS[selection], store.array("embedding")
    expected = array[...][rows]
    flat = FlatArray.of(array)
    assert flat is not None, "a store on a local disk is read directly"
    for way in (lambda: read_rows(array, flat, rows, Checksums(array, lambda: store.column("checksum")))[0],
                lambda: read_rows(array, flat, rows)[0], lambda: read_rows(array, None, rows)[0],
                lambda: store.embeddings(rows)):
        assert way().tobytes() == expected.tobytes()


def test_pieces_are_the_rows_in_order_whatever_their_size(store: Store) -> None:
    rows = SELECTIONS["shuffled"]
    for size in (1, 50, 230, 1000):
        pieces = list(store.pieces(rows, size))
        assert np.concatenate([piece for piece, _ in pieces]).tolist() == rows.tolist()
        assert np.concatenate([values for _, values in pieces]).tobytes() == store.embeddings(rows).tobytes()
    assert list(store.pieces(rows[:0])) == []


def test_a_single_row_is_checked_although_its_chunk_is_not_read_whole(large: Path) -> None:
    """A promise that the fast path skips is no promise."""
    path = large / "image" / "embedding" / "c" / "1" / "0"
    content = bytearray(path.read_bytes())
    content[10 * DIM * 2] ^= 1  # row 10 of unit 1
    path.write_bytes(content)
    store = open_store(str(large))
    assert len(store.embeddings(np.array([64, 75]))) == 2
    with pytest.raises(StoreDamaged, match="checksums of 1 rows do not match"):
        store.embeddings(np.array([74]))
    with pytest.raises(StoreDamaged, match="the checksum does not match"):
        store.embeddings(np.arange(64, 128))


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content + b"\0", lambda content: b""])
def test_a_chunk_of_another_length_is_an_error(large: Path, damage: Callable[[bytes], bytes]) -> None:
    path = large / "image" / "embedding" / "c" / "0" / "0"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreDamaged, match="damaged"):
        open_store(str(large)).embeddings()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_row_checksums_depend_on_the_bytes_of_their_row_alone(dtype: str) -> None:
    values = np.random.default_rng(2).standard_normal((5, 6)).astype(dtype)
    before = row_checksums(values)
    assert row_checksums(values[::-1]).tolist() == before[::-1].tolist()
    assert row_checksums(values.astype(values.dtype.newbyteorder(">"))).tolist() == before.tolist()
    values[3, 2] += 1
    assert np.flatnonzero(row_checksums(values) != before).tolist() == [3]


def test_rows_of_two_threads_do_not_mix(store: Store) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def read(rows: Any) -> bytes:
        return store.embeddings(rows).tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, SELECTIONS.values())) == [read(rows) for rows in SELECTIONS.values()]
