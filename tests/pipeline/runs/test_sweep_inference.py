"""Strategies in sweeps: they share the fit of a run, have rows of their own, and tables that keep them apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import onceclip
from onceclip.adapters import MethodError
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.runs import fit as fitting
from onceclip.pipeline.runs.replay import spec_of
from onceclip.pipeline.runs.results import read_rows
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.runs.summary import tables
from onceclip.stores import Store

ASKED: dict[str, Any] = {"methods": ["zero-shot", "gda"], "shots": [4], "seeds": [1, 2]}


def test_a_run_without_a_strategy_is_the_run_that_it_always_was(imported: Store) -> None:
    plain = RunSpec("gda", 4)
    assert not {"inference", "inference_values", "batches"} & plain.as_values().keys()
    other = RunSpec("gda", 4, inference="stata", inference_values={"alpha": "2"})
    assert other.identity(imported) != plain.identity(imported)
    assert other.alone == plain
    assert RunSpec(**other.as_values()) == other
    assert RunSpec("gda", 4, inference="stata", inference_values={"alpha": 2.0}).identity(imported) == other.identity(
        imported)


def test_strategies_multiply_rows_without_fitting_anew(imported: Store, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[int] = []
    whole = fitting._fit_alone

    def counted(store: Store, specs: Any, *rest: Any) -> Any:
        fits.append(len(specs))
        return whole(store, specs, *rest)

    monkeypatch.setattr(fitting, "_fit_alone", counted)
    before = onceclip.sweep(imported, out=tmp_path / "results", **ASKED)
    fits.clear()
    rows = onceclip.sweep(imported, out=tmp_path / "results", inference=["none", "stata", "prior-bias"], **ASKED)
    assert sum(fits) == 4
    assert [row["run"] for row in rows if "inference" not in row] == [row["run"] for row in before]
    assert len(read_rows(tmp_path / "results")) == 12
    for row in rows:
        if "inference" in row:
            base = next(each for each in before if (each["method"], each["seed"]) == (row["method"], row["seed"]))
            assert row["inference"]["alone"]["accuracy"] == base["accuracy"]
    assert onceclip.sweep(imported, out=tmp_path / "results", inference="stata", **ASKED) == [
        row for row in rows if row.get("inference", {}).get("name") == "stata"]
    table, = tables(rows)
    assert table.names == ("zero-shot", "zero-shot + stata (transductive)", "zero-shot + prior-bias", "gda",
                           "gda + stata (transductive)", "gda + prior-bias")


def test_batches_have_a_table_of_their_own_with_the_classifier_alone(run: Callable[..., Result], imported: Store,
                                                                     tmp_path: Path) -> None:
    options = ("--methods", "zero-shot,gda", "--shots", 4, "--seeds", 1, "--out", tmp_path / "results")
    run("sweep", imported.path, *options)
    done = run("sweep", imported.path, *options, "--inference", "stata", "--inference-set", "stata.alpha=3",
               "--batches", 4, "--batch-size", 10)
    assert done.exit_code == 0, done.stderr
    assert "mean over batches (size 10, number 4, classes 1-4, seed 1)" in done.stdout
    first, second = tables(read_rows(tmp_path / "results"))
    assert first.names == ("zero-shot", "gda")
    assert second.names == ("zero-shot", "gda", "zero-shot + stata alpha=3.0 (transductive)",
                            "gda + stata alpha=3.0 (transductive)")
    page = run("report", tmp_path / "results", "--out", tmp_path / "page.html")
    assert page.exit_code == 0, page.stderr
    assert "gda + stata alpha=3.0 (transductive)" in (tmp_path / "page.html").read_text()


def test_a_row_with_a_strategy_is_replayed_and_a_module_that_only_it_names_is_not_imported(
        imported: Store, tmp_path: Path) -> None:
    row, = onceclip.sweep(imported, out=tmp_path / "results", methods="gda", shots=2, seeds=1, inference="zlap")
    assert onceclip.fit(imported, spec_of(row, imported)).row["accuracy"] == row["accuracy"]
    with pytest.raises(MethodError, match="--import nowhere"):
        spec_of({**row, "asked": {**row["asked"], "inference": "nowhere:Mine"}}, imported)


def test_a_replay_and_the_card_it_saves_say_what_the_accuracy_is_of(run: Callable[..., Result], imported: Store,
                                                                    tmp_path: Path) -> None:
    row, = onceclip.sweep(imported, out=tmp_path / "results", methods="gda", shots=2, seeds=1, inference="stata")
    done = run("fit", imported.path, "--from-row", f"{tmp_path / 'results'}:1", "--out", tmp_path / "adapter")
    assert done.exit_code == 0, done.stderr
    words = f"read by stata; {100 * row['inference']['alone']['accuracy']:.2f} % without it"
    assert words in done.stdout
    assert words in (tmp_path / "adapter" / "README.md").read_text()


@pytest.mark.parametrize(("values", "words"), [
    ({"inference": "stata", "classes": "base"}, "leave --classes"), ({"batches": {"size": 3}}, "add --inference"),
    ({"inference": "stata", "refit": "all"}, "refit all"), ({"inference_values": {"alpha": 1}}, "add --inference")])
def test_runs_that_cannot_be_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        RunSpec("gda", **values)
