"""The identity of a store's content has the values that results name, in memory that does not grow with the store."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from onceclip.stores import StoreDamaged, StoreWriter, Table, open_store
from onceclip.stores import table as content_module
from onceclip.stores.schema import BAD, REMOVED, STORED, TODO
from onceclip.stores.table import Content, content_of
from onceclip.stores.verification import verify

ENCODER = {"name": "any", "fingerprint": "0" * 32}
CLASSES = ["cat", "dog", 'é"']
AWKWARD = ["a b.jpg", 'quote".jpg', "back\\slash.jpg", "é/ü.png", "日本/猫.jpg", "😀.jpg", "%0A.jpg", "~last", "A", "a",
           "", "a/b", "a-b", "a\tb", "a\nb", "a\x00b", "a\x7fb", "Z"]


def mixed(rows: int, grouped: bool = False) -> Table:
    """Rows in no order, some of them bad or removed, with keys that JSON or a file of lines might get wrong."""
    random = np.random.RandomState(7)
    key = np.array([f"class {number % 7}/image {number:05d}.jpg" for number in range(rows)], object)
    key[random.permutation(rows)[:len(AWKWARD)]] = AWKWARD
    key = key[random.permutation(rows)]
    state = random.choice(np.array([STORED, STORED, STORED, BAD, REMOVED], np.int8), rows)
    groups = np.where(np.arange(rows) % 3 == 0, "", np.array([f"video {row // 9}" for row in range(rows)], object))
    return Table(key, random.randint(-1, 3, rows).astype(np.int32), random.randint(-1, 3, rows).astype(np.int8), state,
                 random.randint(0, 256, (rows, 16)).astype(np.uint8), np.full(rows, "", object),
                 groups if grouped else np.full(rows, "", object))


def in_pieces(table: Table, size: int) -> Iterator[Table]:
    for start in range(0, len(table), size):
        yield Table(**{each.name: getattr(table, each.name)[start:start + size] for each in fields(Table)})


def content_in(table: Table) -> Content:
    def parts(*names: str, size: int) -> Iterator[tuple[np.ndarray, ...]]:
        return (tuple(getattr(table, name)[start:start + size] for name in names)
                for start in range(0, len(table), size))

    return content_of(parts, len(table), "0" * 32, CLASSES)


@pytest.mark.parametrize("in_memory", [1 << 20, 1000, 7])
@pytest.mark.parametrize(("rows", "grouped", "expected"), [
    (3000, False, "ca30215ffd1b080f5ec7b273b6fbc66e"), (3000, True, "6ba4c27cdd910e03f9af66564ecc279b")])
def test_the_fingerprint_of_a_table_never_changes(rows: int, grouped: bool, expected: str, in_memory: int,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """Results, adapters and copies name it. It is the same however much of it is sorted in memory."""
    monkeypatch.setattr(content_module, "RUN_ROWS", in_memory)
    monkeypatch.setattr(content_module, "_PIECE", 300)
    monkeypatch.setattr(content_module, "_BLOCK", 500)
    assert content_in(mixed(rows, grouped)).fingerprint == expected


def test_the_fingerprint_spans_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert content_in(mixed(70000)).fingerprint == "086bc2bef89db8d0259c5319da6ddb03"


@pytest.mark.parametrize("in_memory", [1 << 20, 10])
@pytest.mark.parametrize("rising", [True, False])
def test_rows_with_the_key_of_another_are_counted(rising: bool, in_memory: int,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "RUN_ROWS", in_memory)
    table = mixed(200)
    table.state[:] = STORED
    table.key[:] = [f"{row:03d}" for row in range(200)]
    table.key[30] = "029"
    table.key[[50, 51, 52]] = "050"
    if not rising:
        table = replace(table, key=table.key[::-1].copy())
    assert content_in(table).repeated == 3


def planned(path: Path, table: Table, size: int | None = None, unit_rows: int = 4096) -> StoreWriter:
    writer = StoreWriter.create(str(path), ENCODER, 4, unit_rows=unit_rows)
    writer.plan(table if size is None else in_pieces(table, size), CLASSES)
    return writer


def filled(path: Path, table: Table, unit_rows: int = 4096) -> str:
    """A finished store, planned in pieces."""
    writer = planned(path, replace(table, state=np.full(len(table), TODO, np.int8)), 1 << 16, unit_rows)
    for number, start in enumerate(range(0, len(table), unit_rows)):
        where = slice(start, start + unit_rows)
        values = np.where((table.state[where] == STORED)[:, None], np.float32(1), np.float32(np.nan))
        writer.commit(number, np.repeat(values, 4, 1), table.digest[where], table.reason[where], table.state[where])
    writer.finish(table.split)
    return str(path)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_store_planned_in_pieces_is_the_same_store(grouped: bool, tmp_path: Path) -> None:
    table = mixed(100, grouped)
    if grouped:
        table.group[:60] = ""  # so that the first pieces know of none
    for folder, size in (("whole", None), ("pieces", 16)):
        planned(tmp_path / folder, table, size, unit_rows=16)
    found = {folder: {file.relative_to(tmp_path / folder): file.read_bytes()
                      for file in (tmp_path / folder).rglob("*") if file.is_file()} for folder in ("whole", "pieces")}
    assert found["whole"] == found["pieces"]


def test_a_longer_plan_goes_on_with_a_store_and_a_shorter_one_cuts_it(tmp_path: Path) -> None:
    table = mixed(100)
    writer = planned(tmp_path / "s.zarr", next(in_pieces(table, 40)), unit_rows=16)
    for size in (100, 30):
        writer.plan(in_pieces(next(in_pieces(table, size)), 16), CLASSES)
        store = open_store(str(tmp_path / "s.zarr"))
        assert store.table.key.tolist() == table.key[:size].tolist()
        assert {store.array(name).shape[0] for name in store.row_arrays} == {size}


def test_parts_of_columns_are_the_columns(tmp_path: Path) -> None:
    path = filled(tmp_path / "s.zarr", mixed(100, grouped=True), unit_rows=16)
    whole, store = open_store(path), open_store(path)
    for name in ("key", "label", "split", "state", "digest", "reason", "group", "checksum"):
        parts = [part for part, in store.parts(name, size=7)]
        assert max(map(len, parts)) == 7
        assert (np.concatenate(parts) == whole.column(name)).all()
    assert store.part("label", slice(95, 200)).tolist() == whole.column("label")[95:].tolist()
    assert open_store(path).content().fingerprint == whole.fingerprint


@pytest.mark.parametrize("name", ["key", "digest", "state"])
def test_a_part_of_a_column_that_is_gone_is_damage(name: str, tmp_path: Path) -> None:
    """Zarr reads a missing chunk as fill values."""
    path = filled(tmp_path / "s.zarr", mixed(100), unit_rows=16)
    shutil.rmtree(Path(path, "image", name, "c"))
    with pytest.raises(StoreDamaged, match=f"image/{name} cannot be read"):
        list(open_store(path).parts(name, size=16))


def test_pictures_in_two_splits_are_found_among_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onceclip.stores.verification._PIECE", 16)
    table = mixed(2000)
    table.key[:] = [f"{row:04d}" for row in range(2000)]
    random = np.random.default_rng(5)
    table.digest[:] = table.digest[random.integers(0, 1500, 2000)]
    table.digest[1000:1500, 0] ^= 1  # differs in the bits of the mark that name the split
    table.digest[1500:, 15] ^= 1  # differs behind the mark
    splits: dict[bytes, set[int]] = {}
    for digest, split, state in zip(table.digest, table.split.tolist(), table.state, strict=True):
        if state == STORED and split >= 0:
            splits.setdefault(bytes(digest), set()).add(split)
    expected = sum(len(each) > 1 for each in splits.values())
    found = verify(filled(tmp_path / "s.zarr", table))
    assert expected > 30
    assert not found.faults
    assert sum("split" in remark.what for remark in found.remarks) == expected


def most(function: Callable[[], object]) -> int:
    """The most memory that a call had."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning holds one piece, verifying a few bytes per row; a key alone would take more than 40."""
    for name, value in (("RUN_ROWS", 1 << 14), ("_PIECE", 1 << 12), ("_BLOCK", 1 << 12)):
        monkeypatch.setattr(content_module, name, value)
    monkeypatch.setattr("onceclip.stores.verification._PIECE", 1 << 16)
    peaks: dict[str, list[int]] = {"plan": [], "verify": []}
    for rows in (1 << 16, 2 << 16):
        table = mixed(rows)  # in no order, so that runs are merged in a file
        path = filled(tmp_path / f"{rows}.zarr", table, unit_rows=1 << 14)
        peaks["plan"].append(most(partial(planned, tmp_path / f"{rows}-planned.zarr", table, 1 << 16, 1 << 14)))
        peaks["verify"].append(most(partial(verify, path, workers=1)))
    for name, (small, large) in peaks.items():
        assert large - small < 15 * (1 << 16), (name, small, large)
