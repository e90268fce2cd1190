"""Result rows: what they say, that they are true, and that none is lost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import onceclip
from onceclip.pipeline.evaluation.metrics import metrics
from onceclip.pipeline.evaluation.statistics import Mean, mean_interval
from onceclip.pipeline.reporting.settings import read_results
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.results import NAME, append_row, append_rows, read_rows
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.runs.sweep import known
from onceclip.stores import Store

FIELDS = {"method", "shots", "seed", "hyperparameters", "select", "accuracy", "accuracy_val", "n_support", "n_test",
          "classes", "encoder", "text", "store", "seconds", "version"}


def test_a_result_row_has_every_field_and_survives_json(imported: Store) -> None:
    fitted = fit(imported, RunSpec("tip-adapter", 4, seed=3, values={"beta": 3}, select="val"))
    row = fitted.row
    assert set(row) >= FIELDS
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert (row["method"], row["shots"], row["seed"], row["select"]) == ("tip-adapter", 4, 3, "val")
    assert (row["n_support"], row["n_test"], row["classes"], row["n_val"]) == (16, 48, 4, 16)
    assert (row["store"], row["version"], row["text"]) == (imported.path, onceclip.__version__, "default")
    assert row["hyperparameters"]["beta"] == 3
    assert 0 < row["accuracy"] < 1
    assert 0 < row["accuracy_val"] < 1


def test_a_line_that_is_no_text_is_passed_over_as_one_that_was_cut_short(tmp_path: Path) -> None:
    append_row(tmp_path, {"run": "1"})
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'\xff\xfe\x00"\n{"run": "2", "meth')
    append_row(tmp_path, {"run": "3"})
    assert read_rows(tmp_path) == [{"run": "1"}, {"run": "3"}]


GOOD = {"run": "a", "method": "gda", "shots": 1, "seed": 1, "accuracy": 0.5, "accuracy_val": None, "store": "s.zarr"}


@pytest.mark.parametrize("line", [b"[" * 100_000 + b"]" * 100_000, b"[1]", b'"text"', b"{", b'{"a": ' * 50_000],
                         ids=["nested", "list", "text", "cut", "nested and cut"])
def test_a_line_that_is_no_row_is_passed_over_with_a_remark_and_stops_nothing(
        tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture, run: Callable[..., Any]) -> None:
    append_row(tmp_path, GOOD)
    with (tmp_path / NAME).open("ab") as file:
        file.write(line + b"\n")
    append_row(tmp_path, {**GOOD, "run": "b"})
    assert [row["run"] for row in read_rows(tmp_path)] == ["a", "b"]
    remark, = caplog.messages
    assert f"{tmp_path / NAME}: 1 line passed over" in remark
    assert "line 2" in remark
    assert run("report", tmp_path, "--out", tmp_path / "page.html").exit_code == 0


def test_halves_of_characters_in_a_row_are_question_marks(tmp_path: Path, run: Callable[..., Any]) -> None:
    (tmp_path / NAME).write_text(json.dumps({**GOOD, "store": "\udcff.zarr", "method": "\U0001f600"}) + "\n")
    row, = read_rows(tmp_path)
    assert (row["store"], row["method"]) == ("?.zarr", "\U0001f600")
    assert run("table", tmp_path).exit_code == 0


def test_a_row_that_names_no_store_has_its_place_in_a_table(tmp_path: Path, run: Callable[..., Any]) -> None:
    append_row(tmp_path, {**GOOD, "store": ""})
    append_row(tmp_path, {**GOOD, "run": "b"})
    told = run("table", tmp_path)
    assert told.exit_code == 0, told.output
    assert "?" in told.stdout


@pytest.mark.parametrize("values", [
    {"shots": None}, {"shots": {}}, {"shots": "some"}, {"shots": True}, {"shots": -1}, {"seed": "1"}, {"seed": None},
    {"fingerprints": []}, {"fingerprints": {"store": 3}}, {"asked": 3}, {"asked": {"values": []}},
    {"asked": {"shots": "x"}}, {"accuracy": "0.5"}, {"accuracy": math.nan}, {"accuracy": 5.0}, {"accuracy": True},
    {"accuracy_val": -0.1}, {"nll": math.inf}, {"method": None}, {"store": 5}, {"details": []},
    {"details": {"right": [1]}}, {"hyperparameters": None}, {"run": []}], ids=str)
def test_a_value_that_no_run_writes_is_one_line_with_file_line_and_key(
        tmp_path: Path, values: dict[str, Any], imported: Store, run: Callable[..., Any]) -> None:
    (tmp_path / NAME).write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, **values}) + "\n")
    key, = values
    for command in (("report", tmp_path, "--out", tmp_path / "page.html"), ("fit", "--from-row", f"{tmp_path}:1"),
                    ("sweep", imported.path, "--methods", "gda", "--shots", 1, "--seeds", 1, "--out", tmp_path)):
        done = run(*command)
        assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert f"{NAME}, line 2: {key!r} is " in done.stderr


@pytest.mark.parametrize("asked", [{}, {"method": "gda", "beta": 3}, {"method": "no-such"}, {"shots": 1}], ids=str)
def test_a_row_whose_request_is_no_run_is_one_line(tmp_path: Path, imported: Store, run: Callable[..., Any],
                                                   asked: dict[str, Any]) -> None:
    append_row(tmp_path, {**GOOD, "asked": asked, "store": imported.path})
    done = run("fit", "--from-row", f"{tmp_path}:1")
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1), done.stderr


@pytest.mark.parametrize("order", [1, -1])
def test_a_run_that_was_repeated_after_a_failure_counts_with_its_result(order: int, tmp_path: Path) -> None:
    """Rows of parts stand in files of their own, so that the later row may be read first."""
    good = {"run": "a", "method": "gda", "shots": 1, "seed": 1, "accuracy": 0.5, "accuracy_val": None, "store": "s"}
    append_rows(tmp_path, [good, {**good, "accuracy": None, "error": "diverged"}][::order])
    assert known(tmp_path) == {"a": good}
    assert read_results([tmp_path]).rows == (good,)


def test_a_draw_is_written_with_the_result(imported: Store) -> None:
    """CoOp#45, PLOT#3: which images were they? As keys, not as pickled objects with absolute paths."""
    fitted = fit(imported, RunSpec("tip-adapter", 2, seed=3))
    support = fitted.classifier.provenance["support"]
    assert len(support["keys"]) == 8
    assert set(support["keys"]) <= set(map(str, imported.table.key[imported.rows("train")]))
    assert support["fingerprint"] == fitted.row["fingerprints"]["support"]


def test_calibration_error_of_an_example_worked_out_by_hand() -> None:
    confidence = [0.9, 0.9, 0.9, 0.9, 0.61, 0.61]
    right = [True, True, True, False, True, False]
    logits = torch.tensor([[math.log(each), math.log(1 - each)] for each in confidence], dtype=torch.float64)
    label = torch.tensor([0 if each else 1 for each in right])
    expected = (abs(4 * 0.9 - 3) + abs(2 * 0.61 - 1)) / 6
    assert metrics(logits, label)["ece"] == pytest.approx(expected, abs=1e-6)


def test_no_rows_have_no_scores() -> None:
    assert set(metrics(torch.empty(0, 3), torch.empty(0, dtype=torch.int64)).values()) == {None}


def test_the_interval_of_a_mean_is_students() -> None:
    mean = mean_interval([0.5, 0.6, 0.7])
    assert (mean.value, mean.runs) == (pytest.approx(0.6), 3)
    assert mean.half_width == pytest.approx(4.302652729911275 * 0.1 / math.sqrt(3))
    assert mean_interval([0.4]).half_width is None
    assert mean_interval([0.5, 0.6, 0.7], interval=False) == Mean(pytest.approx(0.6), None, 3)  # type: ignore[arg-type]


def test_lines_of_a_results_file_are_whole_json_objects(tmp_path: Path) -> None:
    for number in range(3):
        append_row(tmp_path / "new" / "folder", {"method": "é\n", "number": number})
    lines = (tmp_path / "new" / "folder" / NAME).read_text("ascii").splitlines()
    assert [json.loads(line)["number"] for line in lines] == [0, 1, 2]
