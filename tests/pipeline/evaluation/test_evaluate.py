"""`evaluate`: whole tables, several stores, subsets of classes, two adapters on the same images."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from sklearn.metrics import confusion_matrix, precision_score, recall_score

from onceclip.adapters import Classifier, load_classifier
from onceclip.pipeline.evaluation.evaluate import evaluate, score, score_together
from onceclip.pipeline.evaluation.metrics import SCORES
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec
from onceclip.stores import Store, StoreWriter, open_store

NAMES = ["ant", "bee", "cow", "dog", "elk", "fox", "gnu"]
Run = Callable[..., Result]
RunJson = Callable[..., dict[str, Any]]
Import = Callable[..., Store]


def arrays(names: list[str] = NAMES, noise: float = 1.4, seed: int = 0) -> dict[str, np.ndarray]:
    """Features of some of the classes, the same in every set but for the noise: 30 rows each, 10 per split."""
    random = np.random.default_rng(seed)
    centres = dict(zip(NAMES, np.random.default_rng(99).normal(size=(len(NAMES), 16)), strict=True))
    label = np.repeat(np.arange(len(names)), 30)
    chosen = np.stack([centres[name] for name in names])
    return {
        "embedding": (chosen[label] + noise * random.normal(size=(len(label), 16))).astype(np.float32), "label": label,
        "split": np.tile(np.repeat(["train", "val", "test"], 10), len(names)),
        "key": np.array([f"{name}/{number:02d}" for name in names for number in range(30)]),
        "text": chosen.astype(np.float32), "class_names": np.array(names), "logit_scale": np.float64(10.0),
    }


@pytest.fixture
def store(import_of: Import) -> Store:
    return import_of(arrays(), "store", encoder="one")


@pytest.fixture
def drawings(import_of: Import) -> Store:
    """Another data set of three of the classes, in another order, with more noise."""
    return import_of(arrays(["fox", "ant", "dog"], noise=2.2, seed=1), "drawings", encoder="one")


@pytest.fixture
def adapter(store: Store, tmp_path: Path) -> Path:
    fit(store, RunSpec("tip-adapter", 4)).classifier.save(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def other(store: Store, tmp_path: Path) -> Path:
    fit(store, RunSpec("zero-shot")).classifier.save(tmp_path / "other")
    return tmp_path / "other"


@pytest.fixture
def classifier(adapter: Path) -> Classifier:
    return load_classifier(adapter)


def predictions(classifier: Classifier, store: Store) -> tuple[list[str], list[str]]:
    """True and predicted names of the test rows, by the classifier alone."""
    rows = store.rows("test")
    true = [store.classes[label] for label in store.table.label[rows]]
    return true, classifier.predict(store.embeddings(rows))


def test_the_table_of_classes_is_that_of_scikit_learn(classifier: Classifier, store: Store) -> None:
    found = evaluate(classifier, store)
    true, predicted = predictions(classifier, store)
    assert [each["class"] for each in found["per_class"]] == NAMES
    assert [each["n"] for each in found["per_class"]] == [10] * 7
    assert [each["recall"] for each in found["per_class"]] == pytest.approx(
        list(recall_score(true, predicted, labels=NAMES, average=None)))
    assert [each["precision"] for each in found["per_class"]] == pytest.approx(
        list(precision_score(true, predicted, labels=NAMES, average=None)))


def test_the_matrix_file_is_that_of_scikit_learn(run: Run, adapter: Path, store: Store, tmp_path: Path,
                                                 classifier: Classifier) -> None:
    target = tmp_path / "new" / "confusion.csv"
    assert run("evaluate", adapter, store.path, "--confusion", target).exit_code == 0
    head, *lines = csv.reader(target.read_text(encoding="utf-8").splitlines())
    assert head[1:] == [line[0] for line in lines] == NAMES
    expected = confusion_matrix(*predictions(classifier, store), labels=NAMES)
    assert [[int(cell) for cell in line[1:]] for line in lines] == expected.tolist()
    assert expected.trace() < expected.sum()


def test_confusions_are_named_and_sorted(run_json: RunJson, adapter: Path, store: Store,
                                         classifier: Classifier) -> None:
    found = run_json("evaluate", adapter, store.path)
    true, predicted = predictions(classifier, store)
    numbers = [number for _, _, number in found["confusions"]]
    assert numbers == sorted(numbers, reverse=True)
    pairs = list(zip(true, predicted, strict=True))
    assert all(pairs.count((one, two)) == number and one != two for one, two, number in found["confusions"])
    assert sum(numbers) == sum(one != two for one, two in pairs) > 0


def test_a_result_row_holds_what_evaluate_says(store: Store) -> None:
    fitted = fit(store, RunSpec("tip-adapter", 4, select="val"))
    found = evaluate(fitted.classifier, store)
    assert {name: fitted.row[name] for name in SCORES} == {name: found[name] for name in SCORES}
    assert fitted.row["details"] == found["details"]
    assert fitted.row["details"]["right"] == [each["right"] for each in found["per_class"]]


def test_many_classifiers_in_one_pass_score_as_one_by_one(store: Store) -> None:
    several = [fit(store, RunSpec("tip-adapter", 4, seed, {"beta": seed})).classifier for seed in (1, 2, 3)]
    for classifier, found in zip(several, score_together(several, store), strict=True):
        alone, scores = evaluate(classifier, store), found.scores()
        assert [scores[name] for name in SCORES] == pytest.approx([alone[name] for name in SCORES], rel=1e-5)
        assert scores["details"]["right"] == alone["details"]["right"]


def test_rows_are_scored_in_pieces(classifier: Classifier, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a split of any size needs the memory of one piece."""
    whole, done = score(classifier, store), []
    monkeypatch.setattr(Store, "pieces", partialmethod(Store.pieces, size=32))
    pieces = score(classifier, store, progress=done.append)
    assert done == [32 / 70, 64 / 70, 1.0]
    assert (pieces.predicted == whole.predicted).all()
    assert pieces.as_values()["per_class"] == whole.as_values()["per_class"]
    for name in ("accuracy", "nll", "brier", "ece"):
        assert pieces.as_values()[name] == pytest.approx(whole.as_values()[name], rel=1e-6), name


def test_a_store_with_fewer_classes_is_scored_among_all_that_the_adapter_knows(
        run_json: RunJson, adapter: Path, drawings: Store, classifier: Classifier) -> None:
    found = run_json("evaluate", adapter, drawings.path)
    true, predicted = predictions(classifier, drawings)
    assert found["accuracy"] == np.mean([one == two for one, two in zip(true, predicted, strict=True)])
    assert (found["n"], found["classes"], found["among"]) == (30, 3, 7)
    assert {each["class"]: each["n"] for each in found["per_class"]} == {
        name: 10 if name in drawings.classes else 0 for name in NAMES}


def test_or_among_its_own_classes_alone(run_json: RunJson, adapter: Path, drawings: Store,
                                        classifier: Classifier) -> None:
    found = run_json("evaluate", adapter, drawings.path, "--only-its-classes")
    rows = drawings.rows("test")
    logits = classifier.logits(drawings.embeddings(rows))[:, [NAMES.index(name) for name in drawings.classes]]
    assert found["accuracy"] == (logits.argmax(1).numpy() == drawings.table.label[rows]).mean()
    assert found["accuracy"] > run_json("evaluate", adapter, drawings.path)["accuracy"]
    assert [each["class"] for each in found["per_class"]] == list(drawings.classes)
    assert (found["among"], found["top5"]) == (3, None)


def test_some_classes_of_a_store(run_json: RunJson, adapter: Path, store: Store) -> None:
    whole = {each["class"]: each for each in run_json("evaluate", adapter, store.path)["per_class"]}
    some = run_json("evaluate", adapter, store.path, "--classes", "gnu, bee")
    assert (some["n"], some["classes"], some["among"]) == (20, 2, 7)
    assert some["macro_recall"] == pytest.approx((whole["gnu"]["recall"] + whole["bee"]["recall"]) / 2)
    names = ("evaluate", adapter, store.path, "--only-its-classes", "--classes")
    assert run_json(*names, "gnu,bee,gnu")["accuracy"] == run_json(*names, "gnu,bee")["accuracy"]  # each counts once
    base, new = (run_json("evaluate", adapter, store.path, "--classes", half, "--only-its-classes")
                 for half in ("base", "new"))
    assert [each["class"] for each in base["per_class"]] == NAMES[:4]
    assert [each["class"] for each in new["per_class"]] == NAMES[4:]


def test_several_stores_are_one_table_of_what_is_kept(run: Run, run_json: RunJson, adapter: Path, store: Store,
                                                      drawings: Store, import_of: Import) -> None:
    night = import_of(arrays(noise=1.8, seed=2), "night", encoder="one")
    found = run_json("evaluate", adapter, store.path, drawings.path, night.path)
    alone = [run_json("evaluate", adapter, each.path) for each in (store, drawings, night)]
    for scores, expected in zip(found["stores"], alone, strict=True):
        assert {name: scores[name] for name in SCORES} == {name: expected[name] for name in SCORES}
    assert "difference" not in found["stores"][0]
    assert found["stores"][2]["difference"] == alone[2]["accuracy"] - alone[0]["accuracy"] < 0
    assert found["mean_of_others"]["accuracy"] == pytest.approx((alone[1]["accuracy"] + alone[2]["accuracy"]) / 2)
    lines = run("evaluate", adapter, store.path, drawings.path, night.path).stdout.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == [store.path, drawings.path, night.path]
    assert lines[-1].startswith("mean of the other 2")
    assert f"{100 * found['mean_of_others']['accuracy']:.1f}" in lines[-1]


def test_two_adapters_are_compared_on_the_same_images(run_json: RunJson, run: Run, adapter: Path, other: Path,
                                                      store: Store) -> None:
    found = run_json("evaluate", adapter, store.path, "--against", other)
    against, second = found["against"], run_json("evaluate", other, store.path)
    assert against["difference"] == pytest.approx(found["accuracy"] - second["accuracy"])
    assert against["both"] + against["only_this"] == sum(each["right"] for each in found["per_class"])
    assert against["both"] + against["only_other"] == sum(each["right"] for each in second["per_class"])
    assert sum(against[name] for name in ("both", "only_this", "only_other", "neither")) == 70
    assert "McNemar" in run("evaluate", adapter, store.path, "--against", other).stdout


def test_an_adapter_against_itself_differs_in_nothing(run_json: RunJson, adapter: Path, store: Store) -> None:
    against = run_json("evaluate", adapter, store.path, "--against", adapter)["against"]
    assert (against["difference"], against["difference_interval"], against["p"]) == (0, [0, 0], 1)


def test_groups_are_drawn_whole_and_widen_the_interval(run: Run, classifier: Classifier, store: Store,
                                                       tmp_path: Path) -> None:
    """Frames of one video are not independent: an interval over rows would be too narrow."""
    videos = {name: f"{name.split('/')[0]}-{int(name.split('/')[1]) // 5}" for name in store.table.key}
    path = shutil.copytree(store.path, tmp_path / "videos.zarr")
    writer = StoreWriter.open(str(path), store.encoder)
    table = open_store(str(path)).table
    writer.plan(type(table)(**{**vars(table), "group": np.array([videos[key] for key in table.key], object)}),
                store.classes)
    grouped = writer.finish(table.split)
    alone, whole = evaluate(classifier, store), evaluate(classifier, grouped)
    assert whole["accuracy"] == alone["accuracy"]
    assert (alone["n_groups"], whole["n_groups"]) == (None, 14)
    assert np.diff(whole["interval"]) > np.diff(alone["interval"])
    classifier.save(tmp_path / "a")
    assert "70 images in 14 groups" in run("evaluate", tmp_path / "a", path).stdout


def test_bad_images_are_not_scored(adapter_path: Path, image_folder: Path, tmp_path: Path,
                                   extract_demo: Callable[..., Any]) -> None:
    shutil.copytree(image_folder, tmp_path / "images" / "test")
    extract_demo(tmp_path / "images", tmp_path / "whole.zarr")
    for number, kind in enumerate(("disc", "ring")):
        (tmp_path / "images" / "test" / kind / f"bad-{number}.png").write_bytes(b"not an image")
    extract_demo(tmp_path / "images", tmp_path / "holes.zarr")
    classifier = load_classifier(adapter_path)
    whole, holes = (score(classifier, open_store(str(tmp_path / name))) for name in ("whole.zarr", "holes.zarr"))
    assert (holes.tally.right == whole.tally.right).all()
    assert holes.tally.nll == pytest.approx(whole.tally.nll, rel=1e-4)
    assert len(holes.rows) == 60


def test_a_split_without_images_is_an_error_that_says_what_there_is(run: Run, adapter: Path,
                                                                    import_of: Import) -> None:
    values = arrays()
    kept = values["split"] != "test"
    part = {name: array[kept] if len(array.shape) and len(array) == len(kept) else array
            for name, array in values.items()}
    path = import_of(part, "no-test", encoder="one").path
    found = run("evaluate", adapter, path)
    assert found.exit_code == 1
    assert found.stderr.count("\n") == 1
    assert "no labelled test image" in found.stderr
    assert "train 70, val 70, test 0" in found.stderr
    assert run("evaluate", adapter, path, "--split", "val").exit_code == 0


def test_a_store_of_another_encoder_is_refused_whichever_it_is(run: Run, adapter: Path, store: Store,
                                                               import_of: Import) -> None:
    other = import_of(arrays(seed=3), "elsewhere", encoder="another")
    found = run("evaluate", adapter, store.path, other.path)
    assert (found.exit_code, found.stdout) == (1, "")
    assert "use a store made by the same encoder" in found.stderr


def test_another_text_set_serves_methods_that_transfer(run: Run, run_json: RunJson, adapter: Path, other: Path,
                                                       store: Store, import_of: Import) -> None:
    new = import_of(arrays(["elk", "gnu"], seed=4), "new", encoder="one")
    found = run_json("evaluate", other, new.path, "--text", "default")
    assert (found["among"], found["n"]) == (2, 20)
    assert [each["class"] for each in found["per_class"]] == ["elk", "gnu"]
    refused = run("evaluate", adapter, new.path, "--text", "default")
    assert refused.exit_code == 1
    assert "tip-adapter" in refused.stderr


def test_an_adapter_of_base_classes_is_scored_on_both_halves(run: Run, run_json: RunJson, store: Store,
                                                             tmp_path: Path) -> None:
    row = run_json("fit", store.path, "--method", "zero-shot", "--classes", "base", "--out", tmp_path / "half")
    base, new = (run_json("evaluate", tmp_path / "half", store.path, "--classes", half) for half in ("base", "new"))
    assert [(each["n"], each["among"]) for each in (base, new)] == [(40, 4), (30, 3)]
    assert (base["accuracy"], new["accuracy"]) == (row["accuracy"], row["accuracy_new"])
    refused = run("evaluate", tmp_path / "half", store.path)
    assert (refused.exit_code, "does not know: elk, fox, gnu" in refused.stderr) == (1, True)


def test_wrong_usage_is_told_as_such(run: Run, adapter: Path, store: Store, tmp_path: Path) -> None:
    several = run("evaluate", adapter, store.path, store.path, "--confusion", tmp_path / "c.csv")
    assert several.exit_code == 2
    assert not (tmp_path / "c.csv").exists()
    unknown = run("evaluate", adapter, store.path, "--classes", "yak")
    assert (unknown.exit_code, unknown.stderr.count("\n")) == (1, 1)


def test_every_class_is_shown_where_asked(run: Run, adapter: Path, store: Store) -> None:
    shown = run("evaluate", adapter, store.path, "--per-class").stdout.splitlines()
    assert [line.split()[0] for line in shown[4:11]] == NAMES
    assert len(run("evaluate", adapter, store.path).stdout.splitlines()) == 4


def test_one_json_object_says_all_that_the_text_says(run_json: RunJson, adapter: Path, store: Store) -> None:
    found = run_json("evaluate", adapter, store.path)
    assert {*SCORES, "interval", "n", "n_groups", "classes", "among", "split", "method", "store", "store_fingerprint",
            "encoder", "seconds", "per_class", "confusions", "details", "adapter"} <= set(found)
    assert json.loads(json.dumps(found)) == found
    low, high = found["interval"]
    assert 0 <= low < found["accuracy"] < high <= 1
