"""`onceclip report RESULTS`: the page of a real sweep."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from onceclip.pipeline.reporting.pages import mean as words
from onceclip.pipeline.reporting.pages import write_results_report
from onceclip.pipeline.runs.results import read_rows
from onceclip.pipeline.runs.summary import BASELINE, tables


@pytest.fixture(scope="module")
def results(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder of a real sweep."""
    from click.testing import CliRunner

    from onceclip.cli import main

    folder = tmp_path_factory.mktemp("report") / "results"
    done = CliRunner().invoke(main, ["sweep", str(store_path), "--methods", "zero-shot,tip-adapter,gda", "--shots",
                                     "1,4", "--seeds", "1-3", "--out", str(folder)])
    assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def real(results: Path, read_page: Callable[[Path], Any]) -> Any:
    """The page of a real sweep."""
    write_results_report([results], results.parent / "page.html")
    return read_page(results.parent / "page.html")


def test_the_page_is_one_well_formed_file_that_loads_and_runs_nothing(real: Any) -> None:
    real.assert_self_contained()
    assert real.html.startswith("<!DOCTYPE html>")
    drawings = [values for tag, values in real.tags if tag == "svg" and values.get("role") == "img"]
    assert len(drawings) >= 6
    assert all(values["aria-label"] for values in drawings)
    assert "prefers-color-scheme: dark" in real.html
    assert "@media print" in real.html


def test_every_number_of_the_summary_stands_in_the_tables_to_the_digit(results: Path, real: Any) -> None:
    table, = tables(read_rows(results))
    accuracy, difference = real.table("Test accuracy"), real.table("Difference to")
    assert set(accuracy) == {"shots", *table.names}
    assert accuracy["shots"] == [str(number) for number in table.shots]
    for name in table.names:
        assert accuracy[name] == [words(table.accuracy[name, number]) for number in table.shots]
    for name in set(table.names) - {BASELINE}:
        assert difference[name] == [words(table.to_baseline[name, number], True) for number in table.shots]
    for number in table.shots:
        best = max(table.names, key=lambda name, number=number: table.accuracy[name, number].value)
        assert words(table.accuracy[best, number]).partition(" ")[0] + " %" in real.text


def test_the_rows_that_stand_for_a_seed_are_those_of_the_summary(store_path: Path, tmp_path: Path,
                                                                 run: Callable[..., Any]) -> None:
    from onceclip.pipeline.reporting.settings import read_results, settings_of

    done = run("sweep", store_path, "--methods", "zero-shot,tip-adapter", "--shots", "2", "--seeds", "1-3", "--grid",
               "beta=1,20", "--out", tmp_path / "grid")
    assert done.exit_code == 0, done.stderr
    setting, = settings_of(read_results([tmp_path / "grid"]))
    assert {key: fmean(each["accuracy"] for each in seeds.values()) for key, seeds in setting.chosen.items()} \
        == pytest.approx({key: mean.value for key, mean in setting.table.accuracy.items()})


def test_a_command_of_the_page_repeats_its_run(real: Any, run: Callable[..., Any]) -> None:
    commands = [cell for label, rows in real.tables if label.startswith("Commands") for cells in rows for cell in cells
                if cell.startswith("onceclip ")]
    assert len(commands) == 2
    done = run(*shlex.split(commands[-1])[1:])
    assert done.exit_code == 0, done.stderr
    assert "the same accuracy as the row" in done.stderr


def test_provenance_names_what_made_the_numbers(results: Path, store_path: Path, real: Any) -> None:
    from onceclip.stores import open_store

    store, found = open_store(str(store_path)), read_rows(results)
    for needed in (store.fingerprint, store.encoder["fingerprint"], store.text().fingerprint, store.encoder["weights"],
                   *{each["fingerprints"]["support"] for each in found}):
        assert needed in real.text


def test_the_same_results_give_the_same_page(results: Path, tmp_path: Path, real: Any) -> None:
    write_results_report([results], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == real.html


def test_options_of_an_adapters_page_are_wrong_usage_elsewhere(results: Path, tmp_path: Path,
                                                               run: Callable[..., Any]) -> None:
    assert run("report", results, "--split", "val", "--out", tmp_path / "page.html").exit_code == 2
    assert run("report", results).exit_code == 2
