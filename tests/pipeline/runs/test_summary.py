"""What a sweep tells at its end, beside the means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.commands.sweep import table_lines
from onceclip.pipeline.runs.summary import tables
from onceclip.stores import Store


@pytest.fixture
def without_val(arrays: dict[str, Any], import_of: Callable[..., Store]) -> Store:
    """A store whose images are in train and test alone."""
    import numpy as np

    split = np.where(arrays["split"] == "val", "train", arrays["split"])
    return import_of({**arrays, "split": split}, "without-val")


def test_a_sweep_says_why_runs_have_no_result(without_val: Store, tmp_path: Path, run: Callable[..., Any],
                                              run_json: Callable[..., Any]) -> None:
    """A folder with train/ and test/ alone has nothing for the default selection: that is no divergence."""
    sweep = ("sweep", without_val.path, "--methods", "zero-shot,tip-adapter,gda", "--shots", "1,2", "--seeds", "1",
             "--out", tmp_path / "results")
    said = run(*sweep).stdout.rstrip().splitlines()
    assert "interval of up to 1 seed" in said[0]
    assert said[-2] == "left out, for they have no result:"
    assert said[-1].startswith("  tip-adapter (2 runs), gda (2 runs): --select val needs validation rows")
    assert "--select fixed" in said[-1]
    table, = run_json(*sweep)["tables"]
    assert (table["failed"], list(table["reasons"].values())) == (4, [{"tip-adapter": 2, "gda": 2}])


def test_a_sweep_says_where_classes_have_fewer_images_than_shots(imported: Store, tmp_path: Path,
                                                                 run_json: Callable[..., Any]) -> None:
    made = run_json("sweep", imported.path, "--methods", "gda", "--shots", "1,500", "--seeds", "1", "--select", "fixed",
                    "--out", tmp_path / "results")
    table, = made["tables"]
    assert list(table["short"]) == ["500"]
    had, asked = table["short"]["500"]
    assert had < asked == 500 * len(imported.classes)


def test_what_has_no_test_images_has_no_result_either() -> None:
    table, = tables([{"method": "gda", "shots": 4, "seed": 1, "accuracy": None, "accuracy_val": None, "n_support": 8,
                      "classes": 2, "store": "pets.zarr"}])
    assert table_lines(table)[-1] == "  gda (1 run): no test images"
