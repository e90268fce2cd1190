"""Shares and seed of drawn splits: asked for once, kept by the store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.extraction.splits import SHARES
from onceclip.stores import open_store

Run = Callable[..., Any]


def counts(path: Path) -> list[list[int]]:
    """Images of train, val and test of each class."""
    store = open_store(str(path))
    return [[int((store.column("label")[store.rows(split)] == number).sum()) for split in ("train", "val", "test")]
            for number in range(len(store.classes))]


def test_shares_and_seed_are_kept_when_the_folder_grows(run: Run, folder_of: Callable[..., Path], tmp_path: Path,
                                                        glyph: Callable[..., Path]) -> None:
    root, path = folder_of({"disc": 10, "ring": 10}), tmp_path / "s.zarr"
    asked = ("--split-shares", "80/10/10", "--split-seed", 3)
    assert run("extract", root, path, "--model", "demo", *asked).exit_code == 0
    assert counts(path) == [[8, 1, 1], [8, 1, 1]]
    source = open_store(str(path)).attributes["split_source"]
    assert (source["seed"], source["shares"]) == (3, {"train": 0.8, "val": 0.1, "test": 0.1})
    for number in range(10):
        glyph(root / "disc" / f"more-{number}.png", "disc", 50 + number)
    assert run("extract", root, path, "--model", "demo").exit_code == 0  # which the store knows by itself
    assert counts(path) == [[16, 2, 2], [8, 1, 1]]
    assert open_store(str(path)).attributes["split_source"] == source
    assert run("extract", root, path, "--model", "demo", *asked).exit_code == 0

    before = open_store(str(path)).fingerprint
    for other in (("--split-shares", "50/20/30"), ("--split-seed", 4)):
        refused = run("extract", root, path, "--model", "demo", *other)
        assert refused.exit_code == 1
        assert "is split 80/10/10 with seed 3, and its images keep their split" in refused.stderr
    assert open_store(str(path)).fingerprint == before


def test_another_seed_gives_another_split_of_the_same_shares(folder_of: Callable[..., Path], tmp_path: Path,
                                                             extract_demo: Callable[..., Any]) -> None:
    root = folder_of({"disc": 10, "ring": 10})
    for name, seed in (("plain", None), ("one", 1), ("two", 2)):
        extract_demo(root, tmp_path / name, split_seed=seed)
    plain, one, two = (open_store(str(tmp_path / name)) for name in ("plain", "one", "two"))
    assert plain.attributes["split_source"]["shares"] == SHARES
    assert plain.fingerprint == one.fingerprint
    assert not np.array_equal(one.table.split, two.table.split)
    assert counts(tmp_path / "one") == counts(tmp_path / "two") == [[5, 2, 3], [5, 2, 3]]


@pytest.mark.parametrize("shares", ["80/10/20", "80/20", "120/-10/-10", "nan/50/50"])
def test_bad_shares_are_one_line_before_anything_is_written(run: Run, folder_of: Callable[..., Path], tmp_path: Path,
                                                            shares: str) -> None:
    root = folder_of({"disc": 2, "ring": 2})
    result = run("extract", root, tmp_path / "s.zarr", "--model", "demo", "--split-shares", shares)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [f"Error: --split-shares {shares}: give per cent for train, val and test that "
                                          "add up to 100, such as 80/10/10"]
    assert not (tmp_path / "s.zarr").exists()


def test_a_share_of_none_leaves_a_split_empty(folder_of: Callable[..., Path], tmp_path: Path,
                                              extract_demo: Callable[..., Any]) -> None:
    extract_demo(folder_of({"disc": 4, "ring": 5}), tmp_path / "s.zarr", split_shares=(50, 0, 50))
    assert [each[1] for each in counts(tmp_path / "s.zarr")] == [0, 0]


def test_a_source_with_splits_of_its_own_takes_no_shares(folder_of: Callable[..., Path], tmp_path: Path,
                                                         extract_demo: Callable[..., Any]) -> None:
    root = folder_of({"train/disc": 2, "train/ring": 2, "test/disc": 1, "test/ring": 1})
    with pytest.raises(SourceError, match="says itself which split its images are in"):
        extract_demo(root, tmp_path / "s.zarr", split_seed=2)


def test_an_extraction_that_was_stopped_goes_on_with_its_shares(folder_of: Callable[..., Path], tmp_path: Path,
                                                                extract_demo: Callable[..., Any],
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    root, path = folder_of({"disc": 10, "ring": 10}), tmp_path / "s.zarr"

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("onceclip.pipeline.extraction.extract.splits_of", stopped)
        with pytest.raises(KeyboardInterrupt):
            extract_demo(root, path, split_shares=(80, 10, 10))
    shutil.copytree(path, tmp_path / "t.zarr")
    extract_demo(root, path)
    assert counts(path) == [[8, 1, 1], [8, 1, 1]]
    extract_demo(root, tmp_path / "t.zarr", split_shares=(60, 20, 20))  # none is drawn yet
    assert counts(tmp_path / "t.zarr") == [[6, 2, 2], [6, 2, 2]]
