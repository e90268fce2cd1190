"""Result rows: what they say, that they are true, and that none is lost."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss

import onceclip
from onceclip.pipeline.evaluation.metrics import metrics
from onceclip.pipeline.reporting.settings import read_results
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.results import NAME, append_row, append_rows, mean_interval, read_rows
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
    append_row(tmp_path, {"run": 1})
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'\xff\xfe\x00"\n{"run": 2, "meth')
    append_row(tmp_path, {"run": 3})
    assert read_rows(tmp_path) == [{"run": 1}, {"run": 3}]


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


def test_scores_equal_those_of_scikit_learn(imported: Store) -> None:
    fitted = fit(imported, RunSpec("tip-adapter", 4))
    rows = imported.rows("test")
    probability = fitted.classifier.logits(imported.embeddings(rows)).double().softmax(dim=1).numpy()
    label = imported.table.label[rows]
    assert fitted.row["accuracy"] == pytest.approx(accuracy_score(label, probability.argmax(1)), abs=1e-9)
    assert fitted.row["macro_recall"] == pytest.approx(balanced_accuracy_score(label, probability.argmax(1)), abs=1e-9)
    probability /= probability.sum(1, keepdims=True)
    assert fitted.row["nll"] == pytest.approx(log_loss(label, probability, labels=range(4)), rel=1e-5)


def test_macro_recall_counts_classes_and_not_rows() -> None:
    logits = torch.eye(3)[[0, 0, 0, 0, 0, 1]] * 9
    found = metrics(logits, torch.tensor([0, 0, 0, 0, 1, 1]))
    assert found["accuracy"] == pytest.approx(5 / 6)
    assert found["macro_recall"] == pytest.approx((1 + 0.5) / 2)  # class 2 has no rows


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


def test_lines_of_a_results_file_are_whole_json_objects(tmp_path: Path) -> None:
    for number in range(3):
        append_row(tmp_path / "new" / "folder", {"method": "é\n", "number": number})
    lines = (tmp_path / "new" / "folder" / NAME).read_text("ascii").splitlines()
    assert [json.loads(line)["number"] for line in lines] == [0, 1, 2]
