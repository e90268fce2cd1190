"""Tables of a paper: the right means, marked and written in forms that other programs read."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import onceclip
from onceclip.pipeline.errors import ResultError
from onceclip.pipeline.reporting.hyperparameters import ablations_of
from onceclip.pipeline.reporting.settings import Results, settings_of
from onceclip.pipeline.runs.results import append_rows

STORES = ("x/pets.zarr", "x/cars_1.zarr")


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    """Write rows of (method, store number, shots, seed, accuracy, further fields) into a results folder."""

    def make(*lines: tuple[Any, ...], name: str = "results") -> Path:
        append_rows(tmp_path / name, [
            {"method": method, "store": STORES[store], "shots": shots, "seed": seed, "accuracy": accuracy,
             "accuracy_val": None, "text": "default", "run": str((method, store, shots, seed, further)),
             **dict(*further)} for method, store, shots, seed, accuracy, *further in lines])
        return tmp_path / name

    return make


@pytest.fixture
def two_stores(rows: Callable[..., Path]) -> Path:
    return rows(("zero-shot", 0, 1, 1, 0.5), ("zero-shot", 0, 1, 2, 0.5), ("zero-shot", 1, 1, 1, 0.7),
                ("zero-shot", 1, 1, 2, 0.7), ("gda", 0, 1, 1, 0.6), ("gda", 0, 1, 2, 0.8), ("gda", 1, 1, 1, 0.6),
                ("gda", 1, 1, 2, 0.7), ("gda", 1, 1, 3, 0.99), ("tip-adapter", 0, 1, 1, 0.9))


def test_means_over_stores_are_of_the_seeds_that_all_stores_have(two_stores: Path) -> None:
    frame = pd.read_csv(io.StringIO(onceclip.table(two_stores, "csv", interval=True))).set_index("method")
    assert list(frame.columns) == ["shots", "pets", "pets ±", "cars_1", "cars_1 ±", "mean", "mean ±"]
    assert frame.loc["gda", "cars_1"] == pytest.approx((0.6 + 0.7 + 0.99) / 3)
    assert frame.loc["gda", "mean"] == pytest.approx((0.6 + 0.75) / 2)
    # Student's t of two seed means 0.6 and 0.75: t(0.975, 1) * s / sqrt(2)
    assert frame.loc["gda", "mean ±"] == pytest.approx(12.7062 * 0.15 / math.sqrt(2) / math.sqrt(2), rel=1e-4)
    assert math.isnan(frame.loc["tip-adapter", "mean"])  # one store lacks it
    assert math.isnan(frame.loc["tip-adapter", "pets ±"])  # one seed has no interval


def test_the_best_is_bold_and_the_second_underlined_in_every_column(two_stores: Path) -> None:
    lines = onceclip.table(two_stores).splitlines()
    assert lines[0] == r"| shots | method | pets | cars 1 | mean |"
    assert lines[2:] == ["| 1 | zero-shot | 50.0 | <u>70.0</u> | <u>60.0</u> |",
                         "| 1 | gda | <u>70.0</u> | **76.3** | **67.5** |",
                         "| 1 | tip-adapter | **90.0** | – | – |"]


def test_what_looks_equal_is_marked_alike_and_less_is_better_of_losses(rows: Callable[..., Path]) -> None:
    folder = rows(("a", 0, 1, 1, 0.60001, {"nll": 0.9}), ("b", 0, 1, 1, 0.60002, {"nll": 0.4}),
                  ("c", 0, 1, 1, 0.3, {"nll": 0.8}))
    lines = onceclip.table(folder, score=["accuracy", "nll"]).splitlines()[2:]
    assert lines == ["| 1 | a | **60.0** | 0.900 |", "| 1 | b | **60.0** | **0.400** |",
                     "| 1 | c | <u>30.0</u> | <u>0.800</u> |"]
    assert "**60.00**" not in onceclip.table(folder, digits=3)


def test_a_harmonic_mean_over_stores_is_that_of_the_means(rows: Callable[..., Path]) -> None:
    """CoCoOp's table: its last line is the harmonic mean of the mean accuracies, not a mean of harmonic means."""
    folder = rows(*((("gda", store, 4, 1, base, {"accuracy_new": new, "harmonic_mean": 2 * base * new / (base + new),
                                                "asked": {"classes": "base"}}))
                    for store, base, new in ((0, 0.9, 0.3), (1, 0.5, 0.7))))
    frame = pd.read_csv(io.StringIO(onceclip.table(folder, "csv", score="harmonic_mean")))
    assert frame["mean"].tolist() == [pytest.approx(2 * 0.7 * 0.5 / 1.2)]
    assert frame["pets"].tolist() == [pytest.approx(0.45)]
    scores = pd.read_csv(io.StringIO(onceclip.table(folder, "csv", score=["accuracy", "harmonic_mean"])))
    assert scores["accuracy"].tolist() == [pytest.approx(0.7)]
    assert scores["harmonic_mean"].tolist() == frame["mean"].tolist()


def test_latex_and_html_hold_the_numbers_and_escape_names(rows: Callable[..., Path]) -> None:
    folder = rows(("my<x>_method & co", 1, 2, 1, 0.25), ("b", 1, 2, 1, 0.5), ("b", 1, 4, 1, 0.5))
    latex = onceclip.table(folder, "latex")
    assert latex.startswith("\\begin{tabular}{lrr}\n\\toprule\nmethod & 2 shots & 4 shots \\\\\n\\midrule\n")
    assert r"my<x>\_method \& co & \underline{25.0} & -- \\" in latex
    assert len({line.count(" & ") for line in latex.replace(r"\&", "").splitlines() if line.endswith(r"\\")}) == 1
    page = onceclip.table(folder, "html")
    assert "<tr><td>my&lt;x&gt;_method &amp; co</td><td><u>25.0</u></td><td>–</td></tr>" in page


def test_a_name_that_is_a_formula_stays_text_in_csv(rows: Callable[..., Path]) -> None:
    assert "\n%3Dcmd()," in onceclip.table(rows(("=cmd()", 0, 1, 1, 0.5)), "csv")


def test_rows_of_an_inference_are_lines_of_their_own(rows: Callable[..., Path]) -> None:
    folder = rows(("gda", 0, 1, 1, 0.5), ("gda", 0, 1, 1, 0.7, {"inference": {"name": "stata", "transductive": True}}),
                  ("gda", 0, 1, 1, 0.6, {"inference": {"name": "tda"}}))
    assert onceclip.results(folder).set_index("method")["accuracy"].to_dict() == {
        "gda": 0.5, "gda + stata (transductive)": 0.7, "gda + tda": 0.6}


def test_the_frame_has_the_runs_that_count_and_no_failures(rows: Callable[..., Path]) -> None:
    grid = {"select": "fixed", "asked": {"select": "fixed", "values": {"alpha": 1.0}}}
    folder = rows(("gda", 0, 1, 1, 0.5, {**grid, "accuracy_val": 0.9}), ("gda", 0, 1, 1, 0.8, {
        **grid, "accuracy_val": 0.7, "hyperparameters": {"alpha": 2.0}}), ("gda", 0, 2, 1, None, grid))
    frame = onceclip.results(folder)
    assert frame[["store", "method", "shots", "seed", "accuracy"]].values.tolist() == [["pets", "gda", 1, 1, 0.5]]


def test_draws_that_are_all_the_same_have_no_interval(rows: Callable[..., Path]) -> None:
    folder = rows(("gda", 0, "all", 1, 0.5), ("gda", 0, "all", 2, 0.6),
                  *(("gda", 0, 4, seed, 0.5 + seed / 10, {"fingerprints": {"support": "same"}}) for seed in (1, 2)))
    assert "±" not in onceclip.table(folder, interval=True)


@pytest.mark.parametrize(("options", "message"), [
    ({"score": "nll"}, "no run has the score nll: there are: accuracy"),
    ({"methods": ["gad"]}, "no line 'gad' in the results"),
    ({"shots": 7}, "no run with a result is left"), ({"score": "acuracy"}, "acuracy"),
    ({"columns": "stores", "score": ["accuracy", "accuracy"]}, "has one score")])
def test_what_is_not_there_is_said_in_one_line(two_stores: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(onceclip.OnceclipError, match=re.escape(message)):
        onceclip.table(two_stores, **options)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="holds no result rows"):
        onceclip.results(tmp_path)


def test_the_command_prints_and_writes_the_table(two_stores: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    shown = run("table", two_stores, "--columns", "shots", "--methods", "gda,zero-shot")
    assert shown.stdout.splitlines()[2:] == ["| gda | **67.5** |", "| zero-shot | <u>60.0</u> |"]
    assert run("table", two_stores, "--format", "latex", "--out", tmp_path / "table.tex").exit_code == 0
    assert (tmp_path / "table.tex").read_text() == onceclip.table(two_stores, "latex") + "\n"
    assert run("table", tmp_path / "nothing").exit_code == 1


def test_accuracy_by_hyperparameter_is_never_a_mean_over_strategies() -> None:
    rows = [{"method": "gda", "store": "pets.zarr", "shots": 4, "seed": 1, "accuracy": alpha / 10 + gain,
             "accuracy_val": 0.5, "select": "fixed", "asked": {"values": {"alpha": alpha}, "select": "fixed"}, **more}
            for alpha in (1.0, 2.0) for gain, more in ((0.0, {}), (0.5, {"inference": {"name": "stata"}}))]
    setting, = settings_of(Results((), tuple(rows), {}, {}, {}))
    assert {each.method: [mean.value for mean in each.cells.values()] for each in ablations_of(setting)} == {
        "gda": pytest.approx([0.1, 0.2]), "gda + stata": pytest.approx([0.6, 0.7])}


def test_columns_of_shots_say_that_they_are(rows: Callable[..., Path]) -> None:
    folder = rows(("gda", 0, 1, 1, 0.6), ("gda", 0, "all", 1, 0.8))
    assert onceclip.table(folder, columns="shots").splitlines()[0] == "| method | 1 shot | all shots |"
