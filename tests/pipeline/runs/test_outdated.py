"""Rows that today's defaults and rule would not give are made again; no others are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.adapters import METHODS
from onceclip.pipeline.runs.results import NAME, read_rows
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.runs.summary import remarks_on, tables
from onceclip.pipeline.runs.sweep import is_outdated, sweep
from onceclip.stores import Store

FIXED, CHOSEN = RunSpec("gda", 2, select="fixed"), RunSpec("gda", 2, select="val")


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    rows = list(read_rows(folder))
    for row in rows:
        change(row)
    (folder / NAME).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(("spec", "change"), [
    (FIXED, lambda row: row["hyperparameters"].update(alpha=5.0)),  # the default of before
    (CHOSEN, lambda row: row.pop("rule"))], ids=["defaults", "rule"])
def test_a_row_of_other_defaults_or_of_another_rule_is_made_again(spec: RunSpec, change: Callable[..., object],
                                                                  imported: Store, tmp_path: Path) -> None:
    row, = sweep([imported], [spec], tmp_path)
    rewritten(tmp_path, change)
    again, = sweep([imported], [spec], tmp_path)
    assert again["hyperparameters"] == row["hyperparameters"]
    assert len(list(read_rows(tmp_path))) == 2
    assert sweep([imported], [spec], tmp_path) == [again]
    assert len(list(read_rows(tmp_path))) == 2


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.from_bank])
def test_a_row_of_today_is_never_made_again(name: str) -> None:
    for values in [{}, *({"preset": preset} for preset in METHODS[name].presets)]:
        spec = RunSpec(name, 2, values=values, select="fixed")
        row = {"select": "fixed", "hyperparameters": json.loads(json.dumps(METHODS[name](**spec.values).values))}
        assert not is_outdated(row, spec)


def test_values_that_follow_from_the_task_are_those_of_today(imported: Store, tmp_path: Path) -> None:
    specs = [RunSpec("taskres", 8, values={"epochs": 2}, select="fixed"), RunSpec("proker", 8, select="fixed")]
    rows = sweep([imported], specs, tmp_path)
    assert rows[0]["hyperparameters"]["share"] > METHODS["taskres"]().share
    assert rows[1]["hyperparameters"]["rows"] == "views"
    assert sweep([imported], specs, tmp_path) == rows
    assert len(read_rows(tmp_path)) == 2


def test_a_sweep_says_whose_hyperparameters_nothing_chose(arrays: dict[str, np.ndarray],
                                                          import_of: Callable[..., Store], tmp_path: Path) -> None:
    """A store without validation images, few shots, and no word of the user."""
    kept = arrays["split"] != "val"
    store = import_of({name: value[kept] if np.shape(value)[:1] == kept.shape else value
                       for name, value in arrays.items()})
    specs = [RunSpec("zero-shot", 1), RunSpec("gda", 1), RunSpec("tip-adapter", 1, values={"alpha": 1, "beta": 1})]
    (table,) = tables(sweep([store], specs, tmp_path))
    assert table.by_default == ("gda",)
    assert any("no images to choose them on: gda" in remark for remark in remarks_on(table))
    (other,) = tables(sweep([store], [RunSpec("gda", 1, select="fixed")], tmp_path / "asked"))
    assert other.by_default == ()
