"""Labels by the names of classes alone: no store, no adapter, no labelled image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onceclip
from onceclip.pipeline.errors import ArgumentError
from onceclip.pipeline.extraction.survey import ExtractOptions
from onceclip.pipeline.sources import SourceOptions
from onceclip.stores import open_store

NAMES = "bar,cross,disc,ring"


@pytest.fixture
def unlabelled(folder_of: Callable[..., Path], tmp_path: Path) -> Path:
    folder = folder_of({"disc": 2, "ring": 2}, "photos")
    path = tmp_path / "unlabelled.zarr"
    onceclip.extract(folder, path, "demo", ExtractOptions(workers=1, source=SourceOptions(unlabelled=True)))
    return path


def test_images_get_the_labels_that_zero_shot_on_their_store_gives(run_json: Any, image_folder: Path,
                                                                   store_path: Path) -> None:
    """The same prompts, the same encoder: the classifier is that of `fit --method zero-shot` on a store of them."""
    found = run_json("predict", "--zero-shot", "--model", "demo", "--names", NAMES, image_folder)
    assert found["adapter"] is None
    by_names = {each["image"]: each for each in found["predictions"]}
    fitted = onceclip.fit(store_path, "zero-shot", select="fixed").classifier
    by_store = {each.key: each for each in onceclip.predict(fitted, str(store_path))}
    assert by_names.keys() == by_store.keys()
    same = [by_names[key]["class"] == each.class_name for key, each in by_store.items()]
    assert sum(same) >= len(same) - 1  # stored rows are half precision
    certain = [np.exp(each.logits - np.logaddexp.reduce(each.logits)).max() for each in by_store.values()]
    np.testing.assert_allclose([by_names[key]["probability"] for key in by_store], certain, atol=0.05)


def test_templates_change_what_is_said_of_a_class(run_json: Any, image_folder: Path) -> None:
    command = ("predict", "--zero-shot", "--model", "demo", "--names", NAMES, image_folder / "disc")
    plain = run_json(*command)["predictions"]
    other = run_json(*command, "--templates", "a blurry drawing of a {}.", "--templates", "imagenet-7")["predictions"]
    assert [each["image"] for each in plain] == [each["image"] for each in other]
    assert [each["probability"] for each in plain] != [each["probability"] for each in other]


def test_a_store_of_unlabelled_images_takes_names_of_ones_own(run: Any, run_json: Any, unlabelled: Path) -> None:
    assert open_store(str(unlabelled)).classes == ()
    by_names = run_json("predict", "--zero-shot", unlabelled, "--names", NAMES)["predictions"]
    done = run("text", unlabelled, "--name", "own", "--names", NAMES)
    assert done.exit_code == 0, done.output
    assert "predict --zero-shot" in done.stdout
    by_text = run_json("predict", "--zero-shot", unlabelled, "--text", "own")["predictions"]
    assert by_text == by_names
    assert len(by_text) == 4


def test_classes_of_an_unlabelled_store_may_come_from_the_sentences(run: Any, unlabelled: Path, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"disc": ["a disc."], "ring": ["a ring.", "a hoop, a ring."]}')
    assert run("text", unlabelled, "--name", "own", "--prompts", tmp_path / "p.json").exit_code == 0
    assert open_store(str(unlabelled)).text("own").classes == ("disc", "ring")


@pytest.mark.parametrize(("arguments", "reason"), [
    (("predict", "--zero-shot", "PHOTOS", "--names", "a,b"), "--zero-shot needs an encoder: give --model"),
    (("predict", "--zero-shot", "PHOTOS", "--model", "demo"), "give --names cat,dog"),
    (("predict", "--zero-shot", "PHOTOS", "--model", "demo", "--names", "cat"), "there are too few"),
    (("predict", "--zero-shot", "PHOTOS", "--model", "demo", "--names", "a,b,a"), "'a' is there twice"),
    (("predict", "--zero-shot", "PHOTOS", "--model", "demo", "--names", "a,,b"), "one of them is empty"),
    (("predict", "--zero-shot", "PHOTOS", "--text", "own"), "give a store"),
    (("predict", "ADAPTER", "PHOTOS", "--names", "a,b"), "of --zero-shot alone"),
    (("predict", "PHOTOS"), "give ADAPTER (or --zero-shot), and what is to be labelled"),
    (("predict", "--zero-shot", "--names", "a,b"), "give what is to be labelled"),
    (("predict", "ADAPTER", "PHOTOS", "--pretrained", "openai"), "add --model NAME"),
    (("predict", "ADAPTER", "PHOTOS", "--set-kind", "aps"), "add --coverage P"),
    (("predict", "ADAPTER", "STORE", "--every", "2"), "--root, --every and --frames are for images"),
    (("fit", "UNLABELLED"), "0 classes: a classifier needs two"),
    (("text", "UNLABELLED", "--name", "own"), "images without classes: name some with --names cat,dog"),
    (("text", "STORE", "--name", "own", "--names", "a,b"), "has classes of its own")], ids=str)
def test_what_is_missing_is_said_in_one_line(run: Any, unlabelled: Path, adapter_path: Path, store_path: Path,
                                             image_folder: Path, arguments: tuple[str, ...], reason: str) -> None:
    places = {"PHOTOS": image_folder / "disc", "ADAPTER": adapter_path, "STORE": store_path, "UNLABELLED": unlabelled}
    done = run(*(places.get(word, word) for word in arguments))
    assert done.exit_code in (1, 2)
    assert reason in done.stderr
    assert "Traceback" not in done.output


def test_a_store_of_imported_features_takes_the_encoder_that_is_named(run: Any, run_json: Any, store_path: Path,
                                                                      tmp_path: Path) -> None:
    store = open_store(str(store_path))
    np.savez(tmp_path / "f.npz", embedding=store.embeddings(), key=np.array(store.column("key").tolist()))
    onceclip.import_arrays(tmp_path / "f.npz", tmp_path / "f.zarr", "somebody's")
    found = run_json("predict", "--zero-shot", "--names", NAMES, "--model", "demo", tmp_path / "f.zarr")["predictions"]
    expected = run_json("predict", "--zero-shot", "--names", NAMES, store_path)["predictions"]
    assert [(each["image"], each["class"]) for each in found] == [(each["image"], each["class"]) for each in expected]
    np.savez(tmp_path / "g.npz", embedding=np.ones((4, 8), np.float32))
    onceclip.import_arrays(tmp_path / "g.npz", tmp_path / "g.zarr")
    done = run("predict", "--zero-shot", "--names", NAMES, "--model", "demo", tmp_path / "g.zarr")
    assert (done.exit_code, "has 8 dimensions, demo gives 64" in done.stderr) == (1, True)


def test_a_classifier_of_names_is_saved_and_described_as_any_other(run: Any, store_path: Path, tmp_path: Path) -> None:
    onceclip.zero_shot(NAMES, "demo").save(tmp_path / "names")
    done = run("info", f"file://{tmp_path}/names")
    assert done.exit_code == 0, repr(done.exception)
    assert "text             of class names" in done.stdout
    done = run("report", tmp_path / "names", "--out", tmp_path / "page.html")
    assert (done.exit_code, "give a STORE to score it on" in done.stderr) == (1, True)
    assert run("report", tmp_path / "names", store_path, "--out", tmp_path / "page.html").exit_code == 0


def test_names_in_several_lines_are_one_line_of_error(run: Any, image_folder: Path) -> None:
    done = run("predict", "--zero-shot", "--model", "demo", "--names", "bar\ncross", image_folder)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].endswith("is no list of names with commas between: write it in one line")
    many = ",".join(map(str, range(5000)))
    done = run("predict", "--zero-shot", "--model", "demo", "--names", f"{many},7", image_folder)
    assert (done.exit_code, "'7' is there twice" in done.stderr, len(done.stderr) < 300) == (1, True, True)


def test_a_text_of_names_means_the_same_in_python_as_on_the_command_line() -> None:
    assert onceclip.zero_shot('bar, "disc, filled"', "demo").class_names == ("bar", "disc, filled")
    with pytest.raises(ArgumentError, match="write it in one line"):
        onceclip.zero_shot("bar\ndisc", "demo")
