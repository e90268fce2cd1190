"""Reading a store: the right rows or a named error, never a wrong number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from onceclip.stores import (
    NotAStore,
    Store,
    StoreDamaged,
    StoreError,
    StoreIncomplete,
    StoreMismatch,
    StoreWriter,
    open_store,
)
from onceclip.stores.schema import SPLITS, seal


@pytest.fixture
def store(store_path: Path) -> Store:
    return open_store(str(store_path))


@pytest.fixture
def whole(store_path: Path) -> np.ndarray:
    """All embeddings as plain zarr reads them."""
    return np.asarray(zarr.open_group(str(store_path), mode="r")["image/embedding"][...])


def test_rows_of_the_splits_and_classes_cover_the_store_once(store: Store) -> None:
    parts = np.concatenate([store.rows(split) for split in SPLITS])
    assert sorted(parts) == list(range(60))
    np.testing.assert_array_equal(store.rows(), np.arange(60))
    with pytest.raises(StoreError, match="no split 'dev': there are: train, val, test"):
        store.rows("dev")


def test_a_mask_over_the_rows_is_not_taken_for_row_numbers(store: Store, whole: np.ndarray) -> None:
    mask = store.table.label == 2
    np.testing.assert_array_equal(store.embeddings(mask), whole[mask])


@pytest.mark.parametrize("rows", [[-1], [60], [0.0], [[0]], [True] * 4, 3])
def test_rows_that_a_store_does_not_have_are_no_damage(store: Store, rows: object) -> None:
    for each in (store, store.join(store, "other")):
        for name in ("embedding", *(["other/embedding"] if each is not store else [])):
            with pytest.raises(StoreError, match="has 60 rows: give positions from 0 to 59"):
                each.embeddings(np.array(rows), name)
    assert store.embeddings(np.array([])).shape == (0, 64)


def test_a_store_that_is_deleted_while_it_is_open_is_one_line(store_copy: Path) -> None:
    store = open_store(str(store_copy))
    assert store.array("embedding").shape[0] == len(store.column("state"))
    shutil.rmtree(store_copy)
    with pytest.raises(StoreDamaged):
        store.embeddings(np.arange(60))


def test_an_open_store_is_read_from_any_working_directory(store_path: Path, whole: np.ndarray, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store_path.parent)
    store = open_store(store_path.name)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(store.embeddings(), whole)


@pytest.mark.parametrize("make", [
    lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("words"),
    lambda path: zarr.create_group(str(path)),
    lambda path: zarr.create_group(str(path), attributes={"onceclip": {"schema": 1, "kind": "results"}}),
    lambda path: zarr.create_array(str(path), shape=(3,), dtype="float32"),
], ids=["nothing", "empty folder", "a file", "another group", "another kind", "an array"])
def test_what_is_no_store_is_said_to_be_none(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "thing")
    with pytest.raises(NotAStore, match=r"onceclip extract") as caught:
        open_store(str(tmp_path / "thing"))
    assert "thing" in str(caught.value)


def test_a_slash_that_a_shell_puts_behind_a_folder_makes_no_other_store(store_path: Path) -> None:
    assert open_store(f"{store_path}/").path == str(store_path)


def test_a_newer_schema_is_refused_with_the_remedy(store_copy: Path) -> None:
    path = store_copy / "zarr.json"
    values = json.loads(path.read_text())
    values["attributes"]["onceclip"]["schema"] = 2
    path.write_text(json.dumps(values))
    with pytest.raises(StoreError, match=r"schema 2, this version reads up to 1: install a newer onceclip"):
        open_store(str(store_copy))


def test_an_unfinished_store_refuses_its_rows_and_says_what_is_missing(store_copy: Path) -> None:
    writer = StoreWriter(Store(str(store_copy), zarr.open_group(str(store_copy), mode="r+")))
    writer.update(complete=False)
    writer.store.array("state")[:7] = -1
    with pytest.raises(StoreIncomplete, match=r"unfinished \(7 of 60 images are still to be stored\).*run the same"):
        open_store(str(store_copy)).rows()


def test_a_store_with_rows_to_do_cannot_be_declared_complete(tmp_path: Path, store: Store) -> None:
    writer = StoreWriter.create(str(tmp_path / "new.zarr"), store.encoder, store.dim, unit_rows=16)
    writer.plan(store.table, list(store.classes))
    writer.store.array("state")[:] = -1
    with pytest.raises(StoreError, match="60 rows are still to be encoded"):
        writer.finish(store.table.split)
    assert not open_store(str(tmp_path / "new.zarr")).complete


def test_a_unit_is_written_whole_or_not_at_all(tmp_path: Path, store: Store) -> None:
    """zarr-python#3682: writing part of a unit loses the rows of whoever writes the rest."""
    writer = StoreWriter.create(str(tmp_path / "new.zarr"), store.encoder, store.dim, unit_rows=16)
    writer.plan(store.table, list(store.classes))
    with pytest.raises(StoreError, match="unit 3 has 12 rows, 5 were given"):
        writer.commit(3, np.zeros((5, store.dim)), store.table.digest[:5], store.table.reason[:5], np.zeros(5))


def test_another_encoder_is_refused_with_what_differs(store_path: Path, store: Store) -> None:
    """Mixing two models' vectors gives plausible, wrong results (lancedb#737, lilbee#184)."""
    other = {**store.encoder, "name": "other", "fingerprint": "0" * 32, "weights": "1" * 32}
    with pytest.raises(StoreMismatch, match=r"made by encoder demo .* not by other .* differ in name, weights"):
        StoreWriter.open(str(store_path), other)
    with pytest.raises(StoreMismatch, match="the adapter belongs to encoder"):
        store.require_encoder("0" * 32, "the adapter")


def test_a_text_set_of_another_encoder_is_refused(store_copy: Path) -> None:
    path = store_copy / "text" / "default" / "zarr.json"
    values = json.loads(path.read_text())
    values["attributes"]["onceclip"] = seal({**values["attributes"]["onceclip"], "encoder": "0" * 32})
    path.write_text(json.dumps(values))
    with pytest.raises(StoreMismatch, match="text set 'default' was made by encoder"):
        open_store(str(store_copy)).text()


def test_a_missing_text_set_names_those_that_exist(store: Store) -> None:
    message = r"no text set 'nice' \(there are: default\): `onceclip text .* --name nice` embeds one, with --captions"
    with pytest.raises(StoreIncomplete, match=message):
        store.text("nice")


def test_a_python_without_assertions_takes_no_store_for_a_damaged_one(store_path: Path,
                                                                      process: Callable[..., Any]) -> None:
    done = process("-O", "-c", f"import onceclip; onceclip.open_store({str(store_path)!r})")
    assert done.stderr.splitlines()[-1].endswith("which Zarr needs: start it without -O and without PYTHONOPTIMIZE")
