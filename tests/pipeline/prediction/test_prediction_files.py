"""Predictions in files: CSV, JSON lines, parquet and NumPy say the same, whole or not at all, in constant memory."""

from __future__ import annotations

import builtins
import csv
import errno
import json
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow.parquet
import pytest

from onceclip.adapters import Classifier, load_classifier
from onceclip.pipeline.errors import PredictionError
from onceclip.pipeline.prediction.files import Passing, json_text, logits_file, prediction_file
from onceclip.pipeline.prediction.predict import Prediction, predict_store
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec
from onceclip.stores import Store, open_store

Run = Callable[..., Any]


@pytest.fixture
def photos(place: Path) -> Path:
    """The working directory `place`, where good/ has a bad image as its second."""
    (place / "good" / "disc" / "00x.png").write_bytes(b"no image")
    return place


def read_csv(path: str) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row.update({name: float(value) if value else None for name, value in row.items() if "probability" in name})
        row.update({name: value or None for name, value in row.items() if name.startswith("class")})
    return rows


def test_all_formats_say_the_same_in_the_order_of_the_images(photos: Path, run: Run, run_json: Run) -> None:
    asked = ("predict", "adapter", "good", "--top-k", 3)
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        assert run_json(*asked, "--out", name) == {"adapter": "adapter", "out": name, "n": 5, "bad": 1, "unsure": 0}
    printed = run_json(*asked)["predictions"]
    lines = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    table = pyarrow.parquet.read_table("a.parquet").to_pylist()
    assert lines == printed
    assert table == read_csv("a.csv")
    assert [row["image"] for row in table] == ["disc/00.png", "disc/00x.png", "disc/01.png", "ring/00.png",
                                               "ring/01.png"]
    assert [row["state"] for row in table] == ["ok", "bad", "ok", "ok", "ok"]
    assert "not an image" in table[1].pop("reason")
    assert set(table[1].values()) == {"disc/00x.png", "bad", None}
    for row, line in zip(table, lines, strict=True):
        if line["state"] == "ok":
            flat = [row["class"], row["probability"], row["class_2"], row["probability_2"], row["class_3"],
                    row["probability_3"]]
            assert flat == [value for each in line["top"] for value in each.values()]
            assert flat[:2] == [line["class"], line["probability"]]
    assert list(photos.glob("*.partial")) == []
    assert run(*asked, "--out", "a.csv").stdout == "a.csv: 5 images, 0 unsure, 1 bad\n"


def test_a_folder_that_is_missing_is_made(photos: Path, run_json: Run) -> None:
    run_json("predict", "adapter", "good", "--out", "made/here/a.csv", "--logits", "made/too/a.npy")
    assert {path.name for path in (photos / "made").rglob("*.*")} == {"a.csv", "a.npy"}


def test_a_disk_that_is_full_is_named_with_the_file(photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("onceclip.pipeline.prediction.files.as_values", full)
    done = run("predict", "adapter", "good", "--out", "a.jsonl")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == ("Error: a.jsonl: No space left on device: make room, then run the same "
                                            "command again")
    assert not [*photos.glob("a.jsonl*")]


def test_answers_that_are_not_sure_enough_have_no_class(photos: Path, run: Run, run_json: Run) -> None:
    plain = run_json("predict", "adapter", "store.zarr", "--top-k", 2)["predictions"]
    limit = sorted(row["probability"] for row in plain)[30]
    found = run_json("predict", "adapter", "store.zarr", "--top-k", 2, "--min-probability", limit)
    for before, row in zip(plain, found["predictions"], strict=True):
        assert row["top"] == before["top"]
        assert (row["state"], row["class"]) == (("ok", before["class"]) if row["probability"] >= limit
                                                else ("unsure", None))
    unsure = [row for row in found["predictions"] if row["state"] == "unsure"]
    assert len(unsure) == found["unsure"] == 30
    first = unsure[0]
    assert first["reason"] == f"most likely {first['top'][0]['class']} ({first['probability']:.4f})"
    lines = run("predict", "adapter", "store.zarr", "--min-probability", limit).stdout.splitlines()
    assert f"{first['image']}\tunsure\t{first['reason']}" in lines


def test_a_run_that_fails_leaves_no_file(photos: Path, run: Run) -> None:
    failed = run("predict", "adapter", "good", "--model", "local-dir:other", "--out", "x.parquet", "--logits", "x.npy")
    assert failed.exit_code == 1
    assert "this encoder is" in failed.stderr
    assert list(photos.glob("x.*")) == []


def test_a_file_has_its_name_only_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("of yesterday")
    with prediction_file(tmp_path / "a.csv", 1) as add:
        add(Prediction("1.png", [("cat", 0.5)]))
        assert (tmp_path / "a.csv").read_text() == "of yesterday"
        assert len(list(tmp_path.glob("a.csv.*.partial"))) == 1
    assert (tmp_path / "a.csv").read_text().splitlines() == ["image,state,reason,class,probability",
                                                             "1.png,ok,,cat,0.5"]
    with pytest.raises(ValueError, match="stop"), prediction_file(tmp_path / "a.csv", 1):
        raise ValueError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_names_with_commas_quotes_and_other_letters_survive(tmp_path: Path) -> None:
    name, kind = 'a,"b"\'ü猫.png', "cat, large; é"
    for ending in ("csv", "jsonl", "parquet"):
        with prediction_file(tmp_path / f"a.{ending}", 1) as add:
            add(Prediction(name, [(kind, 0.25)]))
    line = json.loads((tmp_path / "a.jsonl").read_text())
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    for row in (line, *table, *read_csv(str(tmp_path / "a.csv"))):
        assert (row["image"], row["class"], row["probability"]) == (name, kind, 0.25)


def test_a_csv_file_has_no_cell_that_a_spreadsheet_runs_and_numbers_stay(tmp_path: Path) -> None:
    names = ["=HYPERLINK(1).jpg", "+1.jpg", "-a.jpg", "@x.jpg", "a=b.jpg"]
    for ending in ("csv", "jsonl"):
        with prediction_file(tmp_path / f"a.{ending}", 1) as add:
            for name in names:
                add(Prediction(name, [("-1" if name == "a=b.jpg" else "=cmd()", 0.25)]))
    rows = read_csv(str(tmp_path / "a.csv"))
    assert [row["image"] for row in rows] == ["%3DHYPERLINK(1).jpg", "%2B1.jpg", "%2Da.jpg", "%40x.jpg", "a=b.jpg"]
    assert [row["class"] for row in rows] == ["%3Dcmd()"] * 4 + ["-1"]
    assert [unquote(row["image"]) for row in rows] == names
    assert [json.loads(line)["image"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == names


def test_wrong_endings_and_missing_packages_are_said_before_the_work(photos: Path, run: Run,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    refused = run("predict", "adapter", "good", "--out", "a.txt")
    assert (refused.exit_code, ".parquet" in refused.stderr) == (2, True)
    known = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return known(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with (pytest.raises(PredictionError, match=r"pip install 'onceclip\[parquet\]'"),
          prediction_file(photos / "a.parquet", 1)):
        pass


@pytest.fixture
def large(import_of: Callable[..., Store]) -> tuple[Classifier, Store]:
    """An adapter, and a store of 54,000 rows of 4 dimensions."""
    random = np.random.default_rng(1)
    label = np.arange(54_000) % 3
    centres = random.normal(size=(3, 4)).astype(np.float32)
    store = import_of({"embedding": centres[label] + random.normal(size=(len(label), 4)).astype(np.float32),
                       "label": label, "text": centres, "split": np.where(label == 0, "train", "test")})
    return fit(store, RunSpec("zero-shot")).classifier, store


@pytest.mark.slow
def test_many_predictions_need_no_more_memory_than_few(large: tuple[Classifier, Store], tmp_path: Path) -> None:
    classifier, store = large
    columns = [store.column(name) for name in ("key", "reason", "state", "split", "label")]

    def labelled(split: str) -> tuple[int, int]:
        """Number of predictions, and the peak of Python's memory, of a pass into all files and a JSON object."""
        count = len(store.rows(split))
        tracemalloc.start()
        try:
            with (prediction_file(tmp_path / f"{split}.csv", 2) as first,
                  prediction_file(tmp_path / f"{split}.parquet", 2) as second,
                  logits_file(tmp_path / f"{split}.npy", count, 3) as third):
                passing = Passing(predict_store(classifier, store, split, 2), [first, second, third])
                written = sum(map(len, json_text({}, passing)))
            assert written > 100 * count
            return passing.counts()["n"], tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = labelled("train"), labelled("test")
    assert (few[0], many[0], len(columns)) == (18_000, 36_000, 5)
    assert many[1] < 1.2 * few[1] < 60e6
    logits = np.load(tmp_path / "test.npy", mmap_mode="r")
    rows = store.rows("test")
    np.testing.assert_array_equal(logits[-100:], classifier.logits(store.embeddings(rows[-100:])))
    assert pyarrow.parquet.read_metadata(tmp_path / "test.parquet").num_rows == many[0]


def test_logits_of_bad_images_are_nan_and_the_file_is_numpys_own(tmp_path: Path) -> None:
    with logits_file(tmp_path / "bare", 2, 3) as add:
        add(Prediction("1.png", [("cat", 0.5)], np.array([1, 2, 3], np.float32)))
        add(Prediction("2.png", reason="empty file", state="bad"))
    found = np.load(tmp_path / "bare", allow_pickle=False)
    assert (found.dtype, found.shape) == (np.float32, (2, 3))
    np.testing.assert_array_equal(found, [[1, 2, 3], [np.nan] * 3])


def test_an_adapter_copied_elsewhere_gives_the_same_bits_in_another_process(
        store_path: Path, image_folder: Path, elsewhere: Path, run: Run, run_process: Callable[..., Any]) -> None:
    fitted = fit(open_store(str(store_path)), RunSpec("tip-adapter", 4, select="val")).classifier
    assert fitted.temperature != 1
    fitted.save(elsewhere.parent / "here")
    shutil.copytree(elsewhere.parent / "here", elsewhere / "copy")
    asked = [image_folder, "--top-k", 4, "--out"]
    here = run("predict", elsewhere.parent / "here", *asked, elsewhere / "here.csv", "--logits", elsewhere / "here.npy")
    there = run_process("predict", "copy", *asked, "there.csv", "--logits", "there.npy")
    assert (here.exit_code, there.returncode) == (0, 0), here.stderr + there.stderr
    for ending in (".csv", ".npy"):
        assert (elsewhere / f"here{ending}").read_bytes() == (elsewhere / f"there{ending}").read_bytes()
    again, rows = load_classifier(elsewhere / "copy"), open_store(str(store_path)).embeddings()
    np.testing.assert_array_equal(again.probabilities(rows), fitted.probabilities(rows))


def passing_of(count: int) -> Iterator[Prediction]:
    return (Prediction(f"{number}.png", [("cat", 0.5)]) for number in range(count))


def test_the_one_json_object_is_streamed() -> None:
    passing = Passing(passing_of(3))
    pieces = json_text({"adapter": "a"}, passing)
    next(pieces)
    assert passing.counts()["n"] == 0
    assert json.loads(next(pieces))["image"] == "0.png"
    assert passing.counts()["n"] == 1
    whole = json.loads("".join(json_text({"adapter": "a"}, Passing(passing_of(3)))))
    assert list(whole) == ["adapter", "predictions", "n", "bad", "unsure"]
    assert [each["image"] for each in whole["predictions"]] == ["0.png", "1.png", "2.png"]
