"""Rows without labels that a method may read: which, how many, and that their labels say nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.adapters import METHODS
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.tasks import tasks
from onceclip.pipeline.tasks.draw_spec import DrawSpec
from onceclip.pipeline.tasks.tasks import Drawn, Inputs, draw_task
from onceclip.stores import Store, open_store

Arrays = dict[str, np.ndarray]
ImportOf = Callable[..., Store]


def drawn(store: Store, shots: int | None = 4, seed: int = 1, **more: Any) -> Drawn:
    return draw_task(store, DrawSpec(shots, seed, **more), inputs=Inputs(unlabelled=True))


def test_unlabelled_rows_are_the_train_rows_outside_the_draw(imported: Store) -> None:
    made = drawn(imported)
    assert made.unlabelled is not None
    assert made.task.unlabelled is not None
    rows = made.unlabelled.rows
    assert set(rows) == set(imported.rows("train")) - set(made.support.rows)
    np.testing.assert_array_equal(made.task.unlabelled.numpy(), imported.embeddings(rows))
    assert draw_task(imported, DrawSpec(4)).task.unlabelled is None
    assert drawn(imported, None).task.unlabelled is None


def test_rows_that_have_no_label_are_among_them(arrays: Arrays, import_of: ImportOf) -> None:
    label = arrays["label"].copy()
    label[[2, 60]] = -1
    made = drawn(import_of({**arrays, "label": label}))
    assert made.unlabelled is not None
    assert {2, 60} <= set(made.unlabelled.rows)
    assert len(made.unlabelled.rows) == 120 - 16


def test_their_number_is_bounded_by_the_classes_and_in_all(imported: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 for every class and 10,000 in all; the seed says which, and fewer are some of more."""
    assert (tasks.UNLABELLED_PER_CLASS, tasks.UNLABELLED) == (64, 10_000)

    def keys(seed: int = 1) -> set[str]:
        made = drawn(imported, seed=seed).unlabelled
        return set(made.keys) if made else set()

    every = keys()
    monkeypatch.setattr(tasks, "UNLABELLED_PER_CLASS", 10)
    forty, other = keys(), keys(seed=2)
    monkeypatch.setattr(tasks, "UNLABELLED", 15)
    few = keys()
    assert [len(each) for each in (every, forty, other, few)] == [104, 40, 40, 15]
    assert few < forty < every
    assert forty != other


def test_a_run_of_base_classes_reads_none_of_the_others(imported: Store) -> None:
    made = drawn(imported, classes="base")
    assert made.unlabelled is not None
    assert np.bincount(imported.table.label[made.unlabelled.rows]).tolist() == [26, 26]


def test_pictures_of_later_splits_are_not_among_them(folder_of: Callable[..., Path], tmp_path: Path,
                                                     extract_demo: Callable[..., Any]) -> None:
    root = folder_of({f"{split}/{name}": 4 for split in ("train", "val", "test") for name in ("disc", "ring")})
    for split in ("test", "val"):
        shutil.copy(root / split / "disc" / "00.png", root / "train" / "disc" / f"copy-of-{split}.png")
    extract_demo(root, tmp_path / "s.zarr")
    made = drawn(open_store(str(tmp_path / "s.zarr")), 1)
    assert made.unlabelled is not None
    assert len(made.unlabelled.keys) == 6
    assert not any("copy" in key for key in made.unlabelled.keys)


def test_labels_of_unlabelled_rows_change_nothing(arrays: Arrays, import_of: ImportOf) -> None:
    """Shuffled among themselves; the same images fill the support, since a draw goes by keys within a class."""
    store = import_of(arrays)
    outside = drawn(store).unlabelled
    assert outside is not None
    label = arrays["label"].copy()
    label[outside.rows] = -1
    plain, hidden = (fit(each, RunSpec("gda-em", 4, 1)) for each in (store, import_of({**arrays, "label": label}, "h")))
    assert plain.row["n_unlabelled"] == hidden.row["n_unlabelled"] == 104
    assert plain.row["fingerprints"]["unlabelled"] == hidden.row["fingerprints"]["unlabelled"]
    np.testing.assert_array_equal(plain.classifier.logits(arrays["embedding"]),
                                  hidden.classifier.logits(arrays["embedding"]))


def test_methods_that_want_them_read_them_and_others_get_none(imported: Store) -> None:
    assert [name for name, method in METHODS.items() if method.wants_unlabelled] == ["gda-em", "upl", "x-more"]
    row = fit(imported, RunSpec("gda", 4)).row
    assert (row["n_unlabelled"], row["fingerprints"]["unlabelled"]) == (0, None)
    few, many = (fit(imported, RunSpec("gda-em", shots)).row for shots in (4, None))
    assert (few["n_unlabelled"], many["n_unlabelled"]) == (104, 0)
    assert few["nll"] != many["nll"]
