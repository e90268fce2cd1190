"""Tables of other programs become stores: bit for bit, with labels and splits, and nothing in them runs."""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onceclip
from onceclip.errors import OnceclipError
from onceclip.pipeline.extraction.import_arrays import import_arrays
from onceclip.stores import Store, StoreWriter, Table, TextSet, open_store

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
Run = Callable[..., Any]


def same(found: Store, expected: Store) -> None:
    """Assert that two stores hold the same, to the bit."""
    kept = expected.rows(labelled=False)
    assert (found.fingerprint, found.classes, found.encoder) == (
        expected.fingerprint, expected.classes, expected.encoder)
    assert found.embeddings().tobytes() == expected.embeddings(kept).tobytes()
    assert found.embeddings().dtype == expected.embeddings(kept).dtype
    for name in ("key", "label", "split", "group"):
        assert found.column(name).tolist() == expected.column(name)[kept].tolist(), name
    assert found.texts == expected.texts
    for name in found.texts:
        assert found.text(name).fingerprint == expected.text(name).fingerprint
        assert found.text(name).embedding.tobytes() == expected.text(name).embedding.tobytes()


@pytest.fixture(scope="session")
def odd_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with all that a file may lose: odd keys, groups, a class without rows, rows without a label or a split,
    bad and removed rows, a text set of unequal numbers of prompts, one that lacks a class, and float32."""
    path, random = tmp_path_factory.mktemp("odd") / "odd.zarr", np.random.default_rng(3)
    n, dim = 40, 6
    embedding = random.normal(size=(n, dim)).astype(np.float32)
    state = np.zeros(n, np.int8)
    state[[3, 17]] = 1, 2
    label = np.resize([0, 2, 1], n).astype(np.int32)
    label[[5, 6]] = -1
    split = np.resize([0, 1, 2], n).astype(np.int8)
    split[5] = -1
    key = np.array([f"train/%0A é {number}.jpg" for number in range(n)], object)
    group = np.array([f"film {number // 7}" if number > 9 else "" for number in range(n)], object)
    digest = random.integers(0, 255, (n, 16), np.uint8)
    writer = StoreWriter.create(str(path), {"name": "own", "fingerprint": "f" * 32, "dim": dim, "logit_scale": 50.0},
                                dim, "float32", 16)
    table = Table(key, label, split, np.full(n, -1, np.int8), digest, np.full(n, "", object), group)
    writer.plan(table, ["cat", "dog, small", "fox", "absent"])
    for number in range(3):
        rows = slice(number * 16, min(number * 16 + 16, n))
        good = state[rows] == 0
        writer.commit(number, np.where(good[:, None], embedding[rows], np.nan), digest[rows],
                      np.where(good, "", "broken").astype(object), state[rows], {})
    classes = ("cat", "dog, small", "fox", "absent")
    writer.put_text("own", TextSet(random.normal(size=(7, dim)).astype(np.float32), classes,
                                   np.array([0, 3, 4, 6, 7]), np.arange(7, dtype=np.int32),
                                   tuple(f"prompt é {number}" for number in range(7)), "f" * 32, {"how": ["told"]}))
    writer.put_text("some", writer.store.text("own").of_classes(classes[:2]))
    writer.finish(split, split_source={"how": "imported"})
    return path


@pytest.mark.parametrize("format", ["parquet", "npz"])
@pytest.mark.parametrize("which", ["odd_store", "store_path"])
def test_what_is_exported_and_imported_is_the_same_store(
        format: str, which: str, request: pytest.FixtureRequest, tmp_path: Path, run_json: Run,
        monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(request.getfixturevalue(which)))
    monkeypatch.setattr("onceclip.pipeline.export.store_file._ROWS", 16)
    file = tmp_path / f"out.{format}"
    made = run_json("export", store.path, "--to", format, file)
    assert made["rows"] == len(store.rows(labelled=False))
    run_json("import", file, tmp_path / "back.zarr")
    same(open_store(str(tmp_path / "back.zarr")), store)
    found = onceclip.verify(tmp_path / "back.zarr")
    assert found.faults == []
    assert [each.what for each in found.remarks if each.where == "text/some"] == (
        ["has no prompts for 2 of 4 classes, such as 'fox'"] if which == "odd_store" else [])
    if format == "npz":
        with np.load(file) as arrays:
            assert arrays["embedding"].shape == (made["rows"], store.dim)
            assert arrays["label"].tolist() == store.column("label")[store.rows(labelled=False)].tolist()


def table_of(store: Store) -> Any:
    """The rows of a store as others write them: class names as text, and a column that says nothing here."""
    rows = store.rows()
    return pyarrow.table({
        "clip": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(store.embeddings(rows).ravel()), store.dim),
        "species": [store.classes[number] for number in store.column("label")[rows]],
        "url": [f"https://host/{key}" for key in store.column("key")[rows]],
        "key": store.column("key")[rows].tolist(),
        "split": pyarrow.array([("train", "validation", "test")[each] for each in store.column("split")[rows]]
                               ).dictionary_encode()})


def test_parquet_files_lance_and_arrays_of_equal_rows_are_equal_stores(
        store_path: Path, tmp_path: Path, run: Run) -> None:
    lance = pytest.importorskip("lance")
    store, columns = open_store(str(store_path)), ["--column", "embedding=clip", "--column", "label=species"]
    table, rows = table_of(store), store.rows()
    lance.write_dataset(table, tmp_path / "rows.lance")
    (tmp_path / "parts" / "data").mkdir(parents=True)
    for number in range(3):
        parquet.write_table(table.slice(number * 20, 20), tmp_path / f"parts/data/{number}.parquet", row_group_size=7)
    np.savez(tmp_path / "rows.npz", embedding=store.embeddings(rows), key=np.array(table["key"].to_pylist()),
             label=np.array(table["species"].to_pylist()), split=np.array(table["split"].to_pylist()))
    for source in ("rows.lance", "parts", "parts/data/*.parquet"):
        done = run("import", tmp_path / source, tmp_path / f"{len(source)}.zarr", *columns)
        assert done.exit_code == 0, done.output
        assert "columns left out: url" in done.stderr
    assert run("import", tmp_path / "rows.npz", tmp_path / "npz.zarr").exit_code == 0
    expected = open_store(str(tmp_path / "npz.zarr"))
    for source in ("rows.lance", "parts", "parts/data/*.parquet"):
        same(open_store(str(tmp_path / f"{len(source)}.zarr")), expected)


def test_a_folder_of_datasets_keeps_its_splits_and_class_names(store_path: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    store = open_store(str(store_path))
    labels = datasets.ClassLabel(names=["unused", *reversed(store.classes)])
    parts, rows = {}, {}
    for split, name in (("train", "train"), ("test", "test"), ("val", "validation")):
        rows[split] = store.rows(split, labelled=False)
        number = [labels.str2int(store.classes[each]) if each >= 0 else -1
                  for each in store.column("label")[rows[split]]]
        parts[name] = datasets.Dataset.from_dict(
            {"embedding": list(store.embeddings(rows[split])), "label": number},
            features=datasets.Features({"embedding": datasets.Sequence(datasets.Value("float16")), "label": labels}))
    datasets.disable_progress_bars()
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved", num_shards={"train": 2, "test": 1, "validation": 1})
    done = import_arrays(tmp_path / "saved", tmp_path / "made.zarr", "demo")
    found = open_store(str(tmp_path / "made.zarr"))
    assert done["remarks"] == ["1 class without a row: unused"]
    assert found.classes == ("unused", *reversed(store.classes))
    for split in rows:
        mine = found.rows(split, labelled=False)
        assert found.embeddings(mine).tobytes() == store.embeddings(rows[split]).tobytes()
        assert [found.classes[each] if each >= 0 else "" for each in found.column("label")[mine]] == \
            [store.classes[each] if each >= 0 else "" for each in store.column("label")[rows[split]]]


class Bomb:
    """Leaves a file if it is ever unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def embeddings(values: Any = None) -> Any:
    values = np.eye(4, dtype=np.float32) if values is None else values
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.ravel()), 4)


def test_types_that_a_file_brings_along_run_nothing(tmp_path: Path) -> None:
    """CVE-2023-47248: Arrow types of Python's own were unpickled on reading."""
    mark = tmp_path / "ran"
    field = pyarrow.field("embedding", embeddings().type, metadata={
        "ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Bomb(mark))})
    table = pyarrow.Table.from_arrays([embeddings()], schema=pyarrow.schema([field]))
    parquet.write_table(table, tmp_path / "t.parquet")
    (tmp_path / "saved").mkdir()
    with pyarrow.ipc.new_stream(str(tmp_path / "saved" / "data.arrow"), table.schema) as file:
        file.write_table(table)
    (tmp_path / "saved" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (tmp_path / "saved" / "saved.py").write_text(f"open({str(mark)!r}, 'w')")
    for source in ("t.parquet", "saved"):
        assert import_arrays(tmp_path / source, tmp_path / f"{source}.zarr")["images"] == 4
    assert not mark.exists()


def test_a_list_that_a_few_bytes_stand_for_is_refused_before_it_is_read(tmp_path: Path) -> None:
    bomb = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(np.zeros(1 << 22, np.float32)), 1 << 21)
    parquet.write_table(pyarrow.table({"embedding": bomb}), tmp_path / "t.parquet", compression="zstd")
    assert (tmp_path / "t.parquet").stat().st_size < 1 << 17
    with pytest.raises(OnceclipError, match="4,194,304 values in 2 rows"):
        import_arrays(tmp_path / "t.parquet", tmp_path / "t.zarr")


GOOD = {"embedding": embeddings(), "label": ["a", "b", "a", "b"]}
WRONG: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "no embedding": ({"embedding": None}, [], r"no column `embedding` \(it has: label\): name it with --column"),
    "another column": ({}, ["embedding=clip"], r"no column 'clip': .*there are: embedding, label"),
    "a column in two roles": ({}, ["label=embedding"], "'embedding' is .*: it must be text or whole numbers"),
    "another role": ({}, ["caption=label"], r"no role 'caption'"),
    "no lists": ({"embedding": [1.0, 2.0, 3.0, 4.0]}, [], "'embedding' is double: embeddings are lists"),
    "whole numbers": ({"embedding": [[1, 2]] * 4}, [], "embeddings are lists of floating-point numbers"),
    "unequal lengths": ({"embedding": [[1.0], [1.0, 2.0]] * 2}, [], "another length, in rows 0 to 3"),
    "none": ({"embedding": [[1.0], None] * 2}, [], "has no embedding.*rows 0 to 3"),
    "nan": ({"embedding": embeddings(np.diag([1, 1, np.nan, 1]).astype(np.float32))}, [], "row 2 of column"),
    "all zeros": ({"embedding": embeddings(np.zeros((4, 4), np.float32))}, [], "no row .* not zeros"),
    "numbers as labels": ({"label": [0.5, 1.0, 1.0, 1.0]}, [], "'label' is double: it must be text or whole numbers"),
    "unknown split": ({"split": ["train", "dev", "test", "test"]}, [], "'dev': the splits are train"),
    "key twice": ({"key": ["a", "a", "b", "c"]}, [], "1 repeated"),
    "short digest": ({"digest": ["00"] * 4}, [], "32 hexadecimal digits"),
}


@pytest.mark.parametrize("case", WRONG)
def test_columns_that_do_not_fit_are_one_line_that_names_them(case: str, tmp_path: Path, run: Run) -> None:
    change, options, message = WRONG[case]
    parquet.write_table(pyarrow.table({name: values for name, values in {**GOOD, **change}.items()
                                       if values is not None}), tmp_path / "t.parquet")
    given = [each for option in options for each in ("--column", option)]
    done = run("import", tmp_path / "t.parquet", tmp_path / "t.zarr", *given)
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    assert re.search(message, done.stderr), done.stderr
    assert not (tmp_path / "t.zarr").exists()


def test_files_that_lead_elsewhere_or_are_cut_short_are_refused(tmp_path: Path) -> None:
    content = io.BytesIO()
    parquet.write_table(pyarrow.table(GOOD), content)
    (tmp_path / "cut.parquet").write_bytes(content.getvalue()[:-20])
    (tmp_path / "no.parquet").write_text("no table")
    parquet.write_table(pyarrow.Table.from_arrays([embeddings()] * 2, ["embedding"] * 2), tmp_path / "twice.parquet")
    (tmp_path / "secret.arrow").write_bytes(b"")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../secret.arrow"}]}))
    for source, message in {"cut.parquet": "cannot be read", "no.parquet": "cannot be read",
                            "absent.parquet": "does not exist", "twice.parquet": "embedding more than once",
                            "saved": "names no files beside it"}.items():
        with pytest.raises(OnceclipError, match=message):
            import_arrays(tmp_path / source, tmp_path / "t.zarr")
    assert not (tmp_path / "t.zarr").exists()


def test_a_text_set_of_another_encoder_beside_a_file_is_refused(odd_store: Path, store_path: Path, tmp_path: Path,
                                                                run: Run) -> None:
    for store, name in ((odd_store, "a"), (store_path, "b")):
        assert run("export", store, "--to", "npz", tmp_path / f"{name}.npz").exit_code == 0
    (tmp_path / "b.text-default.npz").rename(tmp_path / "a.text-default.npz")
    done = run("import", tmp_path / "a.npz", tmp_path / "t.zarr")
    assert done.exit_code == 1
    assert "a.text-default.npz" in done.stderr
    assert not (tmp_path / "t.zarr").exists()


def test_a_file_that_was_exported_has_no_split_of_its_name(imported: Store, tmp_path: Path) -> None:
    """Images without splits are often in a store that is called test."""
    writer = StoreWriter.open(imported.path, imported.encoder)
    split = imported.column("split").copy()
    split[:9] = -1
    writer.finish(split)
    store = open_store(imported.path)
    onceclip.export(store, "parquet", tmp_path / "test.parquet")
    onceclip.import_arrays(tmp_path / "test.parquet", tmp_path / "back.zarr")
    assert open_store(str(tmp_path / "back.zarr")).fingerprint == store.fingerprint
