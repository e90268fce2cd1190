"""Strategies in sweeps: they share the fit of a run, have rows of their own, and tables that keep them apart."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
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
from onceclip.pipeline.runs.specs import make_specs
from onceclip.pipeline.runs.summary import tables
from onceclip.pipeline.words import percent
from onceclip.stores import Store
from onceclip.stores.schema import Output

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
    lines = onceclip.results(tmp_path / "results").groupby("method")["accuracy"].count()
    assert lines["gda"] == 1
    assert lines["gda + stata alpha=3.0 (transductive), batches (size 10, number 4, classes 1-4, seed 1)"] == 1
    page = run("report", tmp_path / "results", "--out", tmp_path / "page.html")
    assert page.exit_code == 0, page.stderr
    assert "gda + stata alpha=3.0 (transductive)" in (tmp_path / "page.html").read_text()


def test_a_row_with_a_strategy_is_replayed_and_a_module_that_only_it_names_is_not_imported(
        imported: Store, tmp_path: Path) -> None:
    row, = onceclip.sweep(imported, out=tmp_path / "results", methods="gda", shots=2, seeds=1, inference="zlap")
    assert onceclip.fit(imported, spec_of(row, imported)).row["accuracy"] == row["accuracy"]
    with pytest.raises(MethodError, match="--import nowhere"):
        spec_of({**row, "asked": {**row["asked"], "inference": "nowhere:Mine"}}, imported)


def test_a_strategy_that_is_named_twice_is_one() -> None:
    assert len(make_specs(["gda"], [4], [1], inferences=["stata", "none", "stata"])) == 2


def test_runs_on_other_views_of_the_same_images_are_other_runs(imported: Store) -> None:
    alone, spec = RunSpec("gda", 4), RunSpec("gda", 4, inference="mta")
    others = [copy(imported), copy(imported)]
    for number, store in enumerate(others, 2):
        store.outputs = {"view": Output((number, imported.dim), ("view", "dim"), {"number": number})}
    assert len({alone.identity(each) for each in (imported, *others)}) == 1
    assert len({spec.identity(each) for each in (imported, *others)}) == 3


def test_an_adapter_of_a_replayed_row_says_what_it_reaches_by_itself(run: Callable[..., Result], imported: Store,
                                                                     tmp_path: Path) -> None:
    row, = onceclip.sweep(imported, out=tmp_path / "results", methods="gda", shots=2, seeds=1, inference="onzeta")
    done = run("fit", imported.path, "--from-row", f"{tmp_path / 'results'}:1", "--out", tmp_path / "adapter")
    alone = percent(row["inference"]["alone"]["accuracy"])
    assert percent(row["accuracy"]) != alone
    assert done.stdout.startswith("gda + onzeta, ")
    assert f"by itself        {alone}; onzeta is no part" in done.stdout
    assert "interval" not in done.stdout
    assert f"{alone} of " in (tmp_path / "adapter" / "README.md").read_text()


@pytest.mark.parametrize(("values", "words"), [
    ({"inference": "stata", "classes": "base"}, "leave --classes"), ({"batches": {"size": 3}}, "add --inference"),
    ({"inference": "stata", "refit": "all"}, "refit all"), ({"inference_values": {"alpha": 1}}, "add --inference")])
def test_runs_that_cannot_be_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        RunSpec("gda", **values)
