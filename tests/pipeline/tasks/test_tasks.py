"""What one run may look at: support and validation rows of a store, and never a test row."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.adapters import METHODS
from onceclip.pipeline.api.runs import make_task
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.extraction.import_arrays import import_arrays
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.tasks.draw_spec import DrawSpec
from onceclip.pipeline.tasks.tasks import draw_task
from onceclip.stores import Store, StoreIncomplete, StoreMismatch, TextSet, open_store

Arrays = dict[str, np.ndarray]
FEW_STEPS = {name: {"epochs": 3} for name, method in METHODS.items() if "epochs" in method.hyperparameters}
FEW_STEPS["ranpac"] = {"features": 100}


@pytest.mark.parametrize("select", ["fixed", "val", "val-full"])
@pytest.mark.parametrize("shots", [1, 16, None])
def test_no_test_row_is_in_support_or_validation(imported: Store, shots: int | None, select: str) -> None:
    drawn = draw_task(imported, DrawSpec(shots), select)
    seen = [set(drawn.support.rows), set(drawn.val.rows) if drawn.val else set()]
    assert seen[0] <= set(imported.rows("train"))
    assert seen[1] <= set(imported.rows("val"))
    assert not (seen[0] | seen[1]) & set(imported.rows("test"))


@pytest.fixture(scope="module")
def of_other_tests(arrays: Arrays, imported_path: Path,
                   tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """The store, and one whose test rows are others and have other labels; not to be changed."""
    test, random = arrays["split"] == "test", np.random.default_rng(0)
    noise = random.normal(size=arrays["embedding"].shape).astype(np.float32)
    label = arrays["label"].copy()
    label[test] = random.permutation(label[test])
    path = tmp_path_factory.mktemp("tests") / "other.zarr"
    np.savez(path.with_suffix(".npz"), **{
        **arrays, "embedding": np.where(test[:, None], noise, arrays["embedding"]), "label": label})
    import_arrays(path.with_suffix(".npz"), path)
    return open_store(str(imported_path)), open_store(str(path))


@pytest.mark.parametrize("method", [
    name for name, method in METHODS.items()
    if method.inputs == ("embedding",) and not (method.wants_tower or method.from_bank)])
def test_test_rows_change_nothing_that_is_fitted(of_other_tests: tuple[Store, Store], arrays: Arrays,
                                                 method: str) -> None:
    """Neither their embeddings nor their labels, as where the best epoch is picked on them (Tip-Adapter#11), or a
    transductive method takes its number of neighbours from the labels of its queries.
    """
    spec = RunSpec(method, 2, select=None if method == "zero-shot" else "val", values=FEW_STEPS.get(method, {}))
    first, second = (fit(store, spec) for store in of_other_tests)
    assert first.row["accuracy"] != second.row["accuracy"]
    assert first.row["hyperparameters"] == second.row["hyperparameters"]
    rows = arrays["embedding"][arrays["split"] != "test"]
    np.testing.assert_array_equal(first.classifier.logits(rows), second.classifier.logits(rows))


@pytest.mark.parametrize(("shots", "number"), [(1, 1), (2, 2), (4, 4), (8, 4), (16, 4), (None, 8)])
def test_validation_shots_are_the_shots_and_four_at_most(imported: Store, shots: int | None, number: int) -> None:
    task = make_task(imported, shots, select="val")
    assert task.val is not None
    assert np.bincount(task.val.label).tolist() == [number] * 4
    assert np.bincount(task.support.label).tolist() == [shots or 30] * 4
    assert make_task(imported, shots).val is None
    assert len(make_task(imported, shots, select="val-full").val or ()) == 32


def test_rows_of_a_task_are_the_stores_rows(imported: Store) -> None:
    drawn = draw_task(imported, DrawSpec(3, 2))
    place = {str(key): row for row, key in enumerate(imported.table.key)}
    rows = np.array([place[key] for key in drawn.support.keys])
    np.testing.assert_array_equal(drawn.task.support.embedding.numpy(), imported.embeddings(rows))
    np.testing.assert_array_equal(drawn.task.support.label.numpy(), imported.table.label[rows])
    assert drawn.task.logit_scale == pytest.approx(20.0)


def test_equal_pictures_of_later_splits_are_left_out_with_a_remark(folder_of: Callable[..., Path], tmp_path: Path,
                                                                  extract_demo: Callable[..., Any]) -> None:
    """RemoteCLIP#13: the same pictures stood in train and test."""
    root = folder_of({f"{split}/{name}": 4 for split in ("train", "val", "test") for name in ("disc", "ring")})
    shutil.copy(root / "test" / "disc" / "00.png", root / "train" / "disc" / "copy.png")
    shutil.copy(root / "test" / "ring" / "01.png", root / "val" / "ring" / "copy.png")
    shutil.copy(root / "val" / "ring" / "02.png", root / "train" / "ring" / "copy.png")
    extract_demo(root, tmp_path / "s.zarr")
    drawn = draw_task(open_store(str(tmp_path / "s.zarr")), select="val-full")
    assert drawn.val is not None
    assert not any("copy" in key for key in (*drawn.support.keys, *drawn.val.keys))
    assert (len(drawn.support.keys), len(drawn.val.keys)) == (8, 8)
    assert sorted(remark.split(" image")[0] for remark in drawn.remarks) == ["1 val", "2 train"]


def test_a_short_class_gives_all_it_has_with_a_remark(imported: Store) -> None:
    drawn = draw_task(imported, DrawSpec(40))
    assert len(drawn.support.rows) == 120
    assert any("fewer than 40 train images" in remark and "'ant' (30)" in remark for remark in drawn.remarks)


def test_a_class_without_training_images_is_named(arrays: Arrays, import_of: Callable[..., Store]) -> None:
    """ultralytics#13936: a class that a split lacks is a warning with its name."""
    split = np.where(arrays["label"] == 2, "test", arrays["split"])
    store = import_of({**arrays, "split": split})
    drawn = draw_task(store, DrawSpec(2))
    assert any("no train image of 1 class: 'cow'" in remark for remark in drawn.remarks)
    assert drawn.task.text.class_names == ("ant", "bee", "cow", "dog")
    assert sorted(set(drawn.task.support.label.tolist())) == [0, 1, 3]


def test_text_is_joined_by_name_whatever_its_order(imported: Store) -> None:
    """CLIP_benchmark#21: prompts stood in another order than labels."""
    from onceclip.stores import StoreWriter

    text = imported.text()
    StoreWriter.open(imported.path, imported.encoder).put_text("other", text.of_classes(("dog", "cow", "ant", "bee")))
    store = open_store(imported.path)
    first, second = (fit(store, RunSpec("zero-shot", text=name)) for name in ("default", "other"))
    assert first.row["accuracy"] == second.row["accuracy"] > 0.4


def test_text_that_lacks_a_class_is_an_error_with_its_name(imported: Store) -> None:
    from onceclip.stores import StoreWriter

    part: TextSet = imported.text().of_classes(("dog", "cow"))
    StoreWriter.open(imported.path, imported.encoder).put_text("part", part)
    with pytest.raises(StoreMismatch, match="no prompts for 'ant', 'bee'"):
        make_task(open_store(imported.path), text="part")


def test_a_store_without_text_says_so(arrays: Arrays, import_of: Callable[..., Store]) -> None:
    store = import_of({name: values for name, values in arrays.items() if name != "text"})
    with pytest.raises(StoreIncomplete, match=r"no text set 'default' .*onceclip text .* --name default.*FewShotClass"):
        make_task(store, 1)


def test_one_class_is_not_a_task(arrays: Arrays, import_of: Callable[..., Store]) -> None:
    one = import_of({**arrays, "label": np.zeros(200, np.int64), "text": arrays["text"][:1], "class_names": ["ant"]})
    with pytest.raises(TaskError, match="1 class"):
        make_task(one, 1)


def test_train_images_that_all_stand_in_test_too_are_the_reason_that_is_given(arrays: Arrays,
                                                                             import_of: Callable[..., Store]) -> None:
    """Not the advice to use a store with a train split, which there is."""
    rows = np.flatnonzero(arrays["split"] == "train")
    twice = {name: np.concatenate([arrays[name][rows]] * 2) for name in ("embedding", "label")}
    store = import_of({**twice, "split": np.repeat(["train", "test"], len(rows))})
    with pytest.raises(TaskError, match=r"no train image to learn from \(120 train images left out: the same picture"):
        fit(store, RunSpec("linear-probe", 2))


def test_images_of_one_group_choose_nothing_by_being_left_out(arrays: dict[str, np.ndarray],
                                                              import_of: Callable[..., Store]) -> None:
    """Frames of a video know each other; without groups the same images are left out in turn."""
    kept = arrays["split"] != "val"
    some = {name: value[kept] if np.shape(value)[:1] == kept.shape else value for name, value in arrays.items()}
    group = np.array([f"{name}/{number // 3}" for name in "abcd" for number in range(50)])[kept]
    for extra, select in (({}, "loo"), ({"group": group}, "fixed")):
        fitted = fit(import_of({**some, **extra}, f"groups {len(extra)}"), RunSpec("gda"))
        assert fitted.row["select"] == select
        assert fitted.classifier.calibrated_on == ("loo" if select == "loo" else "")
