"""Images to label next and labels that are likely wrong: what a person is shown, as lines, table and page."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import onceclip
from onceclip.adapters import Classifier
from onceclip.adapters.heads import Linear
from onceclip.pipeline.errors import ArgumentError, PredictionError
from onceclip.pipeline.prediction.suggestions import _folds, label_next
from onceclip.stores import Store, StoreWriter
from onceclip.stores.schema import SPLITS
from onceclip.stores.store import JoinedStore


@pytest.fixture
def flipped(arrays: dict[str, np.ndarray], import_of: Callable[..., Store]) -> tuple[Store, set[str]]:
    """A store of clusters that lie far apart, and the keys of twelve rows whose label is of another class."""
    random = np.random.default_rng(3)
    centre = 6 * random.normal(size=(4, 16))
    label = arrays["label"].copy()
    values = {**arrays, "embedding": (centre[label] + random.normal(size=(200, 16))).astype(np.float32),
              "text": centre.astype(np.float32)}
    wrong = random.choice(200, 12, replace=False)
    label[wrong] = (label[wrong] + 1) % 4
    return import_of({**values, "label": label}, "flipped"), {str(arrays["key"][row]) for row in wrong}


@pytest.mark.parametrize("method", ["gda", "linear-probe"])
def test_labels_that_were_exchanged_are_found_in_all_splits_and_few_others(flipped: tuple[Store, set[str]],
                                                                           method: str) -> None:
    store, wrong = flipped
    classifier = onceclip.fit(store, method, select="fixed").classifier
    found = onceclip.suggest(classifier, store, label_errors=True)
    names = [each["image"] for each in found]
    assert len(wrong & set(names)) >= 10
    assert len(set(names) - wrong) <= 2
    label = {str(key): store.classes[number] for key, number in zip(store.column("key"), store.column("label"),
                                                                    strict=True)}
    assert all(each["label"] == label[each["image"]] != each["suggested"] for each in found)
    margins = [each["probability"] - each["probability_of_label"] for each in found]
    assert margins == sorted(margins, reverse=True)
    assert onceclip.suggest(classifier, store, label_errors=True, most=3) == found[:3]


@pytest.mark.parametrize("text", ["with", "without"])
def test_an_average_of_methods_has_one_fitted_in_its_place(flipped: tuple[Store, set[str]], text: str,
                                                           tmp_path: Path) -> None:
    store, wrong = flipped
    if text == "without":
        rows = store.rows()
        np.savez(tmp_path / "bare.npz", embedding=store.embeddings(rows), label=store.column("label")[rows],
                 key=np.array(store.column("key")[rows].tolist()), split=np.array(SPLITS)[store.column("split")[rows]])
        onceclip.import_arrays(tmp_path / "bare.npz", tmp_path / "bare.zarr")
        store = onceclip.open_store(str(tmp_path / "bare.zarr"))
    found = onceclip.suggest(onceclip.fit(store).classifier, store, label_errors=True)
    assert len(wrong & {each["image"] for each in found}) >= (11 if text == "with" else 7)


def test_an_average_judges_by_what_was_chosen_for_it_where_the_text_is_wrong(flipped: tuple[Store, set[str]],
                                                                             tmp_path: Path) -> None:
    """Prompts of other classes: with the defaults of a method, which trust them, nearly every label would be wrong."""
    store, wrong = flipped
    other = shutil.copytree(store.path, tmp_path / "shuffled.zarr")
    store = onceclip.open_store(str(other))
    text, order = store.text("default"), [1, 2, 3, 0]
    StoreWriter.open(store.path, store.encoder).put_text("default", replace(text, embedding=text.embedding[order]))
    store = onceclip.open_store(store.path)
    found = onceclip.suggest(onceclip.fit(store).classifier, store, label_errors=True)
    assert len(found) < 20
    assert len(wrong & {each["image"] for each in found}) >= 10


def test_labels_are_judged_by_the_output_that_the_adapter_reads(store_path: Path, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Another encoder's embeddings, of which the store's own know nothing; and the text tower for those who want it."""
    path = shutil.copytree(store_path, tmp_path / "s.zarr")
    onceclip.add_tower(path)
    store = onceclip.open_store(str(path))
    read: list[str] = []
    embeddings = JoinedStore.embeddings
    monkeypatch.setattr(JoinedStore, "embeddings", lambda self, rows=None, name="embedding": (
        read.append(name), embeddings(self, rows, name))[1])
    joined = store.join(store, "dino")
    classifier = onceclip.fit(joined, "labelling-network", inputs=("dino/embedding",), values={"epochs": 5},
                              select="fixed").classifier
    read.clear()
    onceclip.suggest(classifier, store, label_errors=True, join=[f"dino={path}"])
    assert "dino/embedding" in read
    learned = onceclip.fit(store, "coop", values={"epochs": 1}, select="fixed").classifier
    assert isinstance(onceclip.suggest(learned, store, label_errors=True), list)


@pytest.fixture
def line() -> Classifier:
    """Two classes by the sign of the first number; sure of rows that are far from zero."""
    return Classifier(Linear(torch.tensor([[4.0, 0, 0], [-4.0, 0, 0]]), None), ("plus", "minus"), 3, "zero-shot")


def rows_of(*kinds: tuple[float, float, float], each: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.concatenate([np.array(kind) + 1e-3 * random.normal(size=(each, 3)) for kind in kinds]).astype(np.float32)


def test_of_unsure_images_one_of_each_kind_is_taken(line: Classifier) -> None:
    """Ten equally unsure kinds of twenty near copies: ten images to label are one of each, not ten copies."""
    angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    unsure = rows_of(*[(0.05, np.cos(angle), np.sin(angle)) for angle in angles], each=20)
    sure = rows_of((1, 0, 0), (-1, 0, 0), each=200)
    values = np.concatenate([sure, unsure])
    keys = [f"{number:03d}" for number in range(len(values))]
    pieces = [(keys[start:start + 64], np.arange(start, min(start + 64, len(keys))), values[start:start + 64])
              for start in range(0, len(keys), 64)]
    found = label_next(line, iter(pieces), 10)
    assert sorted((int(each.key) - 400) // 20 for each in found) == list(range(10))
    assert [each.margin for each in found] == sorted(each.margin for each in found)
    assert found == label_next(line, iter(pieces), 10)


def test_fewer_images_than_are_asked_for_are_all_given_and_equal_ones_are_no_trouble(line: Classifier) -> None:
    values = np.ones((5, 3), np.float32)
    piece = [[str(number) for number in range(5)], np.arange(5), values]
    assert [each.key for each in label_next(line, iter([piece]), 9)] == ["0", "1", "2", "3", "4"]
    assert len(label_next(line, iter([piece]), 2)) == 2
    with pytest.raises(PredictionError, match="no image to choose from"):
        label_next(line, iter([]), 2)


def test_a_folder_is_answered_with_lines_a_table_and_a_page_of_pictures(run: Any, adapter_path: Path, tmp_path: Path,
                                                                        folder_of: Callable[..., Path]) -> None:
    folder = folder_of({"disc": 3, "ring": 2})
    (folder / "disc" / "bad.png").write_bytes(b"no image")
    out, page = tmp_path / "next.csv", tmp_path / "next.html"
    done = run("suggest", adapter_path, folder, "--label-next", 4, "--out", out, "--page", page)
    assert done.exit_code == 0, done.output
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert list(rows[0]) == ["image", "class", "probability", "second", "probability_of_second"]
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 4
    assert all(row["image"] in text for row in rows)
    lines = run("suggest", adapter_path, folder, "--label-next", 1).stdout.splitlines()
    assert len(lines) == 1
    assert len(lines[0].split("\t")) == 5


def test_labels_of_a_store_are_shown_with_the_pictures_that_were_encoded(run: Any, tmp_path: Path, store_path: Path,
                                                                         image_folder: Path) -> None:
    page, weak = tmp_path / "wrong.html", tmp_path / "weak"
    onceclip.fit(store_path, "zero-shot", out=weak)  # its encoder was not made for shapes
    done = run("suggest", weak, store_path, "--label-errors", "--page", page, "--images", image_folder)
    assert done.exit_code == 0, done.output
    number = sum("\t" in line for line in done.stdout.splitlines())
    assert page.read_text().count("data:image/jpeg;base64,") == number > 0
    assert f"Pictures from {image_folder}." in page.read_text()


@pytest.mark.parametrize(("arguments", "reason"), [
    ([], "give one of"), (["--label-next", 2, "--label-errors"], "give one of"),
    (["--label-next", 2], "every image of .* has a label"),
    (["--label-next", 2, "--most", 5], "--most is for --label-errors"),
    (["--label-errors", "--images", "glyphs"], "add --page FILE.html"),
    (["--label-next", 2, "--out", "x.txt"], "does not end in .csv"),
    (["--label-next", 2, "--page", "x.csv"], "does not end in .html")], ids=str)
def test_what_cannot_be_suggested_is_one_line(run: Any, adapter_path: Path, store_path: Path, arguments: list[Any],
                                              reason: str) -> None:
    done = run("suggest", adapter_path, store_path, *arguments)
    assert done.exit_code in (1, 2)
    assert any(re.search(reason, line) for line in done.stderr.splitlines())


def test_labels_of_a_folder_cannot_be_compared(adapter_path: Path, image_folder: Path) -> None:
    with pytest.raises(ArgumentError, match="extract the folder first"):
        onceclip.suggest(adapter_path, str(image_folder), label_errors=True)


def test_images_of_classes_that_have_few_are_spread_over_all_folds(arrays: dict[str, np.ndarray],
                                                                   import_of: Callable[..., Store]) -> None:
    """Of two images a class, half would be left out at once, and of one all of them."""
    label = np.arange(100)
    values = {"embedding": arrays["embedding"][:100], "class_names": label.astype(str), "key": arrays["key"][:100]}
    for each, most in ((label, 20), (label // 2, 20)):
        store = import_of({**values, "label": each}, f"few-{each.max()}")
        assert np.bincount(_folds(store, store.rows(), store.column("label"))).tolist() == [most] * 5


def test_labels_of_one_group_cannot_be_judged_by_others(arrays: dict[str, np.ndarray],
                                                        import_of: Callable[..., Store]) -> None:
    store = import_of({**arrays, "group": np.full(200, "film")}, "film", encoder="x")
    classifier = onceclip.fit(import_of(arrays, "plain", encoder="x"), "gda", select="fixed").classifier
    with pytest.raises(PredictionError, match="are of one group"):
        onceclip.suggest(classifier, store, label_errors=True)
