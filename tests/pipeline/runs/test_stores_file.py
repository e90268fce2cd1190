"""`stores.json` of a results folder: what its rows were made of, readable without the stores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.pipeline.runs.results import STORES_NAME as NAME
from onceclip.pipeline.runs.results import append_row, read_rows, read_stores, record_stores
from onceclip.stores import Store, open_store


def test_a_sweep_leaves_what_its_rows_were_made_of(imported: Store, run: Callable[..., Any], tmp_path: Path) -> None:
    done = run("sweep", imported.path, "--methods", "zero-shot,tip-adapter", "--shots", "2", "--seeds", "1", "--out",
               tmp_path / "results")
    assert done.exit_code == 0, done.stderr
    found = read_stores(tmp_path / "results")
    rows = read_rows(tmp_path / "results")
    assert {row["fingerprints"]["store"] for row in rows} == set(found) == {imported.fingerprint}
    made = found[imported.fingerprint]
    assert (made["path"], made["classes"]) == (imported.path, ["ant", "bee", "cow", "dog"])
    assert (made["splits"], made["test_counts"]) == ({"train": 120, "val": 32, "test": 48}, [12] * 4)
    assert made["texts"]["default"]["fingerprint"] == rows[0]["fingerprints"]["text"]
    assert made["encoder"] == imported.encoder
    recall = [right / n for right, n in zip(rows[0]["details"]["right"], made["test_counts"], strict=True)]
    assert np.mean(recall) == pytest.approx(rows[0]["macro_recall"])


def test_a_fit_leaves_it_beside_the_adapter(imported: Store, run_json: Callable[..., Any], tmp_path: Path) -> None:
    run_json("fit", imported.path, "--method", "zero-shot", "--out", tmp_path / "a")
    assert set(read_stores(tmp_path / "a")) == {imported.fingerprint}


def test_bad_images_are_counted_with_their_reasons(folder_of: Callable[..., Path], tmp_path: Path,
                                                   extract_demo: Callable[..., Any]) -> None:
    folder = folder_of({"test/disc": 2, "test/ring": 3, "train/disc": 1, "train/ring": 1})
    (folder / "test" / "ring" / "bad.png").write_bytes(b"not an image")
    extract_demo(folder, tmp_path / "s.zarr")
    store = open_store(str(tmp_path / "s.zarr"))
    made = read_stores(record_stores(tmp_path, [store]).parent)[store.fingerprint]
    assert made["test_counts"] == [2, 3]
    extraction = made["extraction"]
    assert (extraction["images"], extraction["bad"]) == (7, 1)
    assert list(extraction["reasons"].values()) == [1]
    assert extraction["split_source"] == {"how": "folders"}
    assert made["texts"]["default"]["templates"]


def test_a_failure_leaves_no_half_file(imported: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        record_stores(tmp_path / "results", [imported])
    assert not [*(tmp_path / "results").iterdir()]


def test_stores_are_added_to_those_that_are_there(imported: Store, store_path: Path, tmp_path: Path) -> None:
    record_stores(tmp_path, [imported])
    record_stores(tmp_path, [open_store(str(store_path))])
    assert len(read_stores(tmp_path)) == 2
    moved = shutil.copytree(imported.path, tmp_path / "moved.zarr")
    record_stores(tmp_path, [open_store(str(moved))])
    assert read_stores(tmp_path)[imported.fingerprint]["path"] == str(moved)
    assert len(read_stores(tmp_path)) == 2
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".partial"] == []


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_a_damaged_file_is_written_anew_and_stops_nothing(imported: Store, tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    assert read_stores(tmp_path) == {}
    record_stores(tmp_path, [imported])
    assert set(read_stores(tmp_path)) == {imported.fingerprint}


@pytest.mark.parametrize("values", [{"classes": 5}, {"classes": ["a", 1]}, {"test_counts": {}}, {"splits": [1]},
                                    {"encoder": []}, {"encoder": {"logit_scale": "100"}}, {"texts": {"default": []}},
                                    {"extraction": {"reasons": ["x"]}}], ids=str)
def test_a_description_of_wrong_types_is_one_line_with_file_and_key(
        imported: Store, tmp_path: Path, values: dict[str, Any], run: Callable[..., Any]) -> None:
    found = read_stores(record_stores(tmp_path, [imported]).parent)
    (tmp_path / NAME).write_text(json.dumps({imported.fingerprint: {**found[imported.fingerprint], **values}}))
    append_row(tmp_path, {"run": "a", "method": "gda", "shots": 1, "seed": 1, "accuracy": 0.5, "accuracy_val": None,
                          "store": imported.path, "fingerprints": {"store": imported.fingerprint}})
    key, = values
    for command in (("report", tmp_path, "--out", tmp_path / "page.html"),
                    ("sweep", imported.path, "--methods", "gda", "--shots", 1, "--seeds", 1, "--out", tmp_path)):
        done = run(*command)
        assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert f"{NAME}, {imported.fingerprint}: {key!r} is " in done.stderr
