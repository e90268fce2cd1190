"""What a store holds per image beside the embedding: written with its unit, checked like it, never made up."""

from __future__ import annotations

import filecmp
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from onceclip import OnceclipError
from onceclip.stores import Output, StoreDamaged, StoreError, StoreIncomplete, StoreWriter, Table, open_store
from onceclip.stores.compact import compact
from onceclip.stores.identity import fingerprint
from onceclip.stores.schema import ATTRIBUTE, CHUNK_BYTES, STORED, TODO, Column, heights, seal
from onceclip.stores.storage import occupied
from onceclip.stores.verification import repair, verify

ROWS, UNIT, DIM = 40, 16, 4
ENCODER = {"name": "any", "fingerprint": "0" * 32}
OUTPUTS = {"view": Output((3, DIM), ("view", "dim"), {"seed": 1, "scale": [0.5, 1.0]}),
           "preproj": Output((6,), ("width",))}


def table_of(rows: int = ROWS, state: int = TODO, **columns: Any) -> Table:
    key = np.array([f"a/{row}.png" for row in range(rows)], object)
    content = np.arange(rows, dtype=np.uint64)[:, None].view(np.uint8).repeat(2, 1)
    empty = np.full(rows, "", object)
    return Table(key, np.arange(rows, dtype=np.int32) % 2, np.zeros(rows, np.int8), np.full(rows, state, np.int8),
                 content, empty, **columns)


def values_of(rows: int = ROWS) -> dict[str, np.ndarray]:
    """Embeddings and outputs; every third row has no views."""
    random = np.random.default_rng(3)
    values = {name: random.standard_normal((rows, *shape)).astype(np.float16)
              for name, shape in (("embedding", (DIM,)), ("view", (3, DIM)), ("preproj", (6,)))}
    values["view"][::3] = np.nan
    return values


def commit(writer: StoreWriter, number: int, table: Table, values: dict[str, np.ndarray]) -> None:
    where = slice(number * UNIT, min((number + 1) * UNIT, len(table)))
    size = where.stop - where.start
    writer.commit(number, values["embedding"][where], table.digest[where], table.reason[where],
                  np.full(size, STORED, np.int8), {name: values[name][where] for name in writer.store.outputs})


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A finished store with views and pre-projection vectors."""
    return written(str(tmp_path / "s.zarr"))


def written(path: str, table: Table | None = None) -> str:
    """Make the store, or go on with one that was cut short."""
    table, values = table or table_of(), values_of()
    writer = (StoreWriter.open(path, ENCODER) if occupied(path) else
              StoreWriter.create(path, ENCODER, DIM, unit_rows=UNIT, outputs=OUTPUTS))
    present = writer.store.column("state")
    state = present if len(present) else table.state
    writer.plan(replace(table, state=state), ["even", "odd"])
    for number in np.unique(np.flatnonzero(state == TODO) // UNIT).tolist():
        commit(writer, number, table, values)
    writer.put_encoder("projection", np.eye(6, DIM, dtype=np.float32))
    writer.finish(table.split)
    return path


def test_outputs_are_read_back_with_their_description(path: str) -> None:
    store, values, rows = open_store(path), values_of(), np.array([38, 1, 17, 2])
    assert store.outputs == OUTPUTS
    for name in ("embedding", "view", "preproj"):
        np.testing.assert_array_equal(store.embeddings(rows, name), values[name][rows])
    np.testing.assert_array_equal(store.embeddings(name="preproj"), values["preproj"])
    np.testing.assert_array_equal(store.encoder_array("projection"), np.eye(6, DIM))
    assert store.array("view").attrs["spec"] == {"seed": 1, "scale": [0.5, 1.0]}
    assert verify(path).faults == []


def test_a_writer_opens_no_array_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a URL every opening is a question to a server."""
    opened: Counter[str] = Counter()
    get = LocalStore.get

    async def counting(self: LocalStore, key: str, *arguments: Any, **options: Any) -> Any:
        found = await get(self, key, *arguments, **options)
        if found is not None and not self.read_only:
            opened[key] += key.startswith("image/") and key.endswith("/zarr.json") and key.count("/") == 2
        return found

    monkeypatch.setattr(LocalStore, "get", counting)
    written(str(tmp_path / "s.zarr"))
    assert {name: number for name, number in opened.items() if number > 1} == {}


def test_a_row_without_values_is_an_error_and_never_a_number(path: str) -> None:
    """fiftyone-brain#90: what could not be computed became zero vectors."""
    with pytest.raises(StoreDamaged, match=r"image/view has no values for row 3 \(a/3.png\)"):
        open_store(path).embeddings(np.array([1, 3]), "view")
    with pytest.raises(StoreIncomplete, match=r"no image/token \(there are: embedding, view, preproj\)"):
        open_store(path).embeddings(name="token")
    with pytest.raises(StoreIncomplete, match="no encoder/bias"):
        open_store(path).encoder_array("bias")


@pytest.mark.parametrize("name", ["view", "preproj"])
def test_a_flipped_byte_of_an_output_is_found_by_rows_and_by_verify(path: str, name: str) -> None:
    chunk = Path(path, "image", name, "c", "1", *"0" * len(OUTPUTS[name].shape))
    content = bytearray(chunk.read_bytes())
    content[2 * int(np.prod(OUTPUTS[name].shape))] ^= 8  # two bytes a value: row 1 of unit 1
    chunk.write_bytes(content)
    assert {fault.unit for fault in verify(path).faults} == {1}
    assert len(open_store(path).embeddings(np.array([16, 19, 20]), name)) == 3
    with pytest.raises(StoreDamaged, match="checksums of 1 rows"):
        open_store(path).embeddings(np.array([17, 19]), name)


def test_a_unit_gives_back_what_it_holds_and_takes_all_outputs_or_none(path: str) -> None:
    writer, values = StoreWriter.open(path, ENCODER), values_of()
    where, embedding, outputs = writer.unit(2)
    assert (where.start, where.stop) == (32, 40)
    np.testing.assert_array_equal(embedding, values["embedding"][where])
    for name in OUTPUTS:
        np.testing.assert_array_equal(outputs[name], values[name][where])
    table = table_of()
    unit = (table.digest[where], table.reason[where], table.state[where])
    with pytest.raises(StoreError, match="unit 2 was given outputs none; the store has view, preproj"):
        writer.commit(2, embedding, *unit)
    with pytest.raises(StoreError, match=r"view has shape \(8, 2, 4\), not \(8, 3, 4\)"):
        writer.commit(2, embedding, *unit, {**outputs, "view": outputs["view"][:, :2]})


def test_a_wide_output_has_small_chunks_and_the_same_units(tmp_path: Path) -> None:
    """Few rows of a wide output are read without a unit of it."""
    wide = Output((49, 512), ("token", "dim"))
    rows, shard = heights(Column("float16", np.nan, True, wide.shape, values=True), 4096, None)
    assert shard is None
    assert rows * 49 * 512 * 2 <= CHUNK_BYTES < 2 * rows * 49 * 512 * 2
    assert 4096 % rows == 0
    assert heights(Column("float16", np.nan, True, (768,), values=True), 4096, None) == (4096, None)
    path = str(tmp_path / "wide.zarr")
    writer = StoreWriter.create(path, ENCODER, DIM, unit_rows=256, outputs={"token": wide})
    table, token = table_of(300), np.random.default_rng(1).standard_normal((300, 49, 512)).astype(np.float16)
    writer.plan(table, ["even", "odd"])
    for where in (slice(0, 256), slice(256, 300)):
        size = where.stop - where.start
        writer.commit(where.start // 256, np.zeros((size, DIM)), table.digest[where], table.reason[where],
                      np.full(size, STORED, np.int8), {"token": token[where]})
    store = writer.finish(table.split)
    assert store.array("token").chunks == (128, 49, 512)
    for rows in (np.array([299, 0, 128]), np.arange(100, 280)):
        np.testing.assert_array_equal(store.embeddings(rows, "token"), token[rows])
    chunk = Path(path, "image", "token", "c", "1", "0", "0")
    chunk.write_bytes(chunk.read_bytes()[:-1])
    found = verify(path)
    assert [(fault.where, fault.unit) for fault in found.faults] == [("image/token, chunk 1/0/0", 0)]
    assert repair(path, found) == 1
    assert np.flatnonzero(open_store(path).column("state") == TODO).tolist() == list(range(256))


@pytest.mark.parametrize("name", ["key", "embedding", "view_checksum", "Über", "a/b", ""])
def test_an_output_cannot_have_the_name_of_a_column(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="cannot be called"):
        StoreWriter.create(str(tmp_path / "s.zarr"), ENCODER, DIM, outputs={name: OUTPUTS["view"]})
    assert not (tmp_path / "s.zarr").exists()


def test_groups_are_part_of_the_content_only_where_there_are_any(tmp_path: Path) -> None:
    """Stores from before there were groups keep the fingerprint that results name."""
    plain = open_store(written(str(tmp_path / "a.zarr")))
    group = np.array([f"film-{row // 10}" for row in range(ROWS)], object)
    grouped = open_store(written(str(tmp_path / "b.zarr"), table_of(group=group)))
    assert (plain.table.group == "").all()
    assert grouped.table.group.tolist() == group.tolist()
    assert plain.fingerprint != grouped.fingerprint
    rows = sorted([key, bytes(digest).hex(), 0, ["even", "odd"][row % 2]] for row, (key, digest) in
                  enumerate(zip(plain.table.key.tolist(), plain.table.digest, strict=True)))
    assert plain.fingerprint == fingerprint({"encoder": "0" * 32, "rows": rows})


def test_a_store_from_before_there_were_groups_can_be_given_some(path: str) -> None:
    shutil.rmtree(Path(path, "image", "group"))
    assert (open_store(path).table.group == "").all()
    assert verify(path).faults == []
    writer = StoreWriter.open(path, ENCODER)
    assert not writer.store.has("group")
    group = np.array(["film"] * ROWS, object)
    writer.plan(table_of(state=STORED, group=group), ["even", "odd"])
    writer.finish(np.zeros(ROWS, np.int8))
    assert open_store(path).table.group.tolist() == group.tolist()
    assert len(open_store(path).embeddings()) == ROWS


def test_only_the_writers_own_units_are_committed(path: str) -> None:
    """zarr-python#3682: two tasks that write one unit lose rows in silence."""
    writer, table, values = StoreWriter.open(path, ENCODER, units=[1]), table_of(), values_of()
    commit(writer, 1, table, values)
    with pytest.raises(StoreError, match=r"unit 0 .* belongs to another writer"):
        commit(writer, 0, table, values)
    for forbidden in (lambda: writer.plan(table, ["even", "odd"]), lambda: writer.finish(table.split),
                      lambda: writer.update(complete=False), lambda: writer.put_encoder("bias", np.zeros(1), ())):
        with pytest.raises(StoreError, match="opened to write some units only"):
            forbidden()
    with pytest.raises(StoreError, match="no unit 3: its 40 rows are units of 16"):
        StoreWriter.open(path, ENCODER).unit(3)


def test_two_threads_never_write_one_unit(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """dask#12583: rows are lost without a word."""
    import onceclip.stores.writer as module

    writer, table, values = StoreWriter.open(path, ENCODER), table_of(), values_of()
    checksums, raised = module.row_checksums, []

    def meanwhile(stored: np.ndarray) -> Any:
        monkeypatch.setattr(module, "row_checksums", checksums)
        commit(writer, 1, table, values)  # another unit is free
        with pytest.raises(StoreError, match=r"unit 0 .* is being written by another thread") as caught:
            commit(writer, 0, table, values)
        raised.append(caught)
        return checksums(stored)

    monkeypatch.setattr(module, "row_checksums", meanwhile)
    commit(writer, 0, table, values)
    assert len(raised) == 1
    commit(writer, 0, table, values)


def test_writers_of_different_units_fill_one_store(tmp_path: Path, path: str) -> None:
    """Distributed extraction: every process has units of its own."""
    table, values, other = table_of(), values_of(), str(tmp_path / "parts.zarr")
    StoreWriter.create(other, ENCODER, DIM, unit_rows=UNIT, outputs=OUTPUTS).plan(table, ["even", "odd"])
    first, second = (StoreWriter.open(other, ENCODER, units) for units in ([0, 2], [1]))
    for writer, number in ((second, 1), (first, 2), (first, 0)):
        commit(writer, number, table, values)
    last = StoreWriter.open(other, ENCODER)
    last.put_encoder("projection", np.eye(6, DIM, dtype=np.float32))
    last.finish(table.split)
    files = [str(file.relative_to(path)) for file in Path(path).rglob("*") if file.is_file()]
    assert filecmp.cmpfiles(path, other, files, shallow=False)[0] == files


def test_an_archived_store_with_views_is_compacted(tmp_path: Path) -> None:
    """Views that were imported before outputs were described."""
    path = written(str(tmp_path / "s.zarr"))
    source = open_store(path)
    attributes = {name: value for name, value in source.attributes.items() if name != "outputs"}
    zarr.open_group(path, mode="r+").attrs[ATTRIBUTE] = seal(attributes)
    shutil.rmtree(Path(path, "image", "view_checksum"))
    rows = np.array([1, 2, 4, 35])
    expected = open_store(path).embeddings(rows, "view")
    compact(path, str(tmp_path / "c.zarr"))
    np.testing.assert_array_equal(open_store(str(tmp_path / "c.zarr")).embeddings(rows, "view"), expected)


def test_every_flipped_byte_of_a_compacted_store_with_outputs_is_found(tmp_path: Path) -> None:
    written(str(tmp_path / "s.zarr"))
    compact(str(tmp_path / "s.zarr"), str(tmp_path / "c.zarr"), 32)
    path, rows, chance = tmp_path / "c.zarr", np.array([1, 2, 17, 38]), random.Random(7)

    def values() -> list[bytes]:
        store = open_store(str(path))
        return [store.fingerprint.encode(), store.embeddings().tobytes(), store.embeddings(rows, "view").tobytes(),
                store.embeddings(name="preproj").tobytes(), store.encoder_array("projection").tobytes()]

    before, refused = values(), 0
    files = sorted(each for each in path.rglob("*") if each.is_file())
    for file in chance.choices(files, [each.stat().st_size**0.5 for each in files], k=40):
        original = file.read_bytes()
        place = chance.randrange(len(original))
        file.write_bytes(original[:place] + bytes([original[place] ^ 1 << chance.randrange(8)]) + original[place + 1:])
        try:
            sound = not verify(str(path)).faults
        except OnceclipError:
            sound = False
        if sound:
            assert values() == before, f"{file} at byte {place} changes a value and nobody says so"
        refused += not sound
        file.write_bytes(original)
    assert refused > 20


@pytest.mark.slow
def test_a_writer_of_outputs_killed_before_any_of_its_files_goes_on(
        path: str, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]) -> None:
    """Views, vectors before the projection and their checksums stand or fall with their unit."""
    rename, counted = Path.replace, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", lambda *arguments: counted.append(arguments) or rename(*arguments))
        written(str(tmp_path / "counted.zarr"))
    for last in range(0, len(counted), 11):
        store = tmp_path / f"{last}.zarr"
        child = os.fork()
        if child == 0:
            left = iter(range(last))
            Path.replace = lambda *arguments, left=left: (  # type: ignore[method-assign]
                os.kill(os.getpid(), signal.SIGKILL) if next(left, None) is None else rename(*arguments))
            written(str(store))
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if occupied(str(store)):
            assert not open_store(str(store)).complete
        written(str(store))
        assert contents(store) == contents(Path(path)), f"killed before {counted[last]}"
    assert len(counted) > 60
