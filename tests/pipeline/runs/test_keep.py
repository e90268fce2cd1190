"""Curves and predictions beside the rows: they are those of the runs, and change no number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.nn.functional import cross_entropy

import onceclip
from onceclip.adapters.training.history import recording
from onceclip.pipeline.errors import ResultError
from onceclip.pipeline.runs.fit import fit, fit_group
from onceclip.pipeline.runs.keep import Keep, read_curves, read_predictions
from onceclip.pipeline.runs.results import read_rows
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.workers import Part
from onceclip.stores import Store

ALL = Keep(curves=True, predictions=True)
QUICK = {"epochs": 6, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def store(imported_path: Path) -> Store:
    return onceclip.open_store(imported_path)


def test_a_curve_ends_where_the_classifier_is(store: Store) -> None:
    spec = RunSpec("linear-probe-adamw", 8, 1, QUICK, select="fixed", validated=True)
    fitted = fit(store, spec, keep=ALL)
    curve, task = fitted.kept["curve"], onceclip.make_task(store, 8, 1, select="val")
    assert len(curve["train_loss"]) == len(curve["val_loss"]) == curve["kept"] == 6
    for name, rows in (("train_loss", task.support), ("val_loss", task.val)):
        loss = float(cross_entropy(fitted.classifier.logits(rows.embedding), rows.label))
        assert curve[name][-1] == pytest.approx(loss, rel=1e-4)
        assert curve[name][-1] < curve[name][0]


def test_the_kept_epoch_is_the_best_on_validation_rows(store: Store) -> None:
    spec = RunSpec("clip-adapter", 4, 1, {"epochs": 30, "learning_rate": 0.3, "keep": "best", "patience": 5},
                   select="fixed", validated=True)
    fitted = fit(store, spec, keep=ALL)
    curve = fitted.kept["curve"]
    best = max(range(len(curve["val_loss"])), key=lambda epoch: (curve["val_accuracy"][epoch],
                                                                 -curve["val_loss"][epoch]))
    assert curve["kept"] == best + 1
    assert len(curve["val_loss"]) == min(30, best + 1 + 5)
    assert fitted.row["accuracy_val"] == pytest.approx(curve["val_accuracy"][best], rel=1e-5)


def test_the_curve_of_a_run_does_not_depend_on_those_beside_it(store: Store) -> None:
    specs = [RunSpec("clip-adapter", 4, 1, {**QUICK, "learning_rate": rate}, select="fixed")
             for rate in (0.01, 0.02, 0.03)]
    together = fit_group(store, specs, keep=ALL)
    alone = fit(store, specs[1], keep=ALL)
    assert together[1].kept["curve"] == alone.kept["curve"]  # type: ignore[union-attr]
    assert together[0].kept["curve"] != alone.kept["curve"]  # type: ignore[union-attr]


def test_nothing_is_recorded_where_nobody_asks(store: Store) -> None:
    with recording(False) as recorder:
        fit(store, RunSpec("clip-adapter", 2, 1, QUICK, select="fixed"))
    assert recorder.found == {}


def test_a_sweep_keeps_both_without_changing_a_number_and_repeats_what_lacks_them(
        store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more: dict[str, Any] = {"methods": ["zero-shot", "clip-adapter"], "shots": 2, "seeds": [1, 2], "out": tmp_path,
                            "grids": {"clip-adapter.epochs": [5]}}
    first = onceclip.sweep(store, **more)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.jsonl", "stores.json"]
    kept = onceclip.sweep(store, curves=True, keep_predictions=True, **more)
    assert [row["accuracy"] for row in kept] == [row["accuracy"] for row in first]
    assert [row["nll"] for row in kept] == [row["nll"] for row in first]
    assert len(read_rows(tmp_path)) == 8
    assert onceclip.sweep(store, curves=True, keep_predictions=True, **more) == kept
    assert onceclip.sweep(store, **more) == kept
    assert len(read_rows(tmp_path)) == 8  # nothing was made again
    curves = read_curves(tmp_path)
    assert [len(curves[row["run"]].get("train_loss", [])) for row in kept] == [0, 0, 5, 5]
    assert all("curve" not in row and "predicted" not in row for row in read_rows(tmp_path))
    for row in kept:
        found = read_predictions(tmp_path, row)
        assert found.right.mean() == row["accuracy"]
        assert found.label.tolist() == store.column("label")[store.rows("test")].tolist()
    assert len({read_predictions(tmp_path, row).keys for row in kept}) == 1


def test_predictions_are_the_classifiers_answers_row_by_row(store: Store, tmp_path: Path) -> None:
    row, = onceclip.sweep(store, methods="gda", shots=2, seeds=3, out=tmp_path, keep_predictions=True)
    classifier = fit(store, RunSpec("gda", 2, 3)).classifier
    predicted = classifier.predict(store.embeddings(store.rows("test")))
    assert [store.classes[place] for place in read_predictions(tmp_path, row).predicted] == predicted


def test_parts_write_curves_of_their_own_and_all_are_read(store: Store, tmp_path: Path) -> None:
    more: dict[str, Any] = {"methods": ["clip-adapter"], "shots": 2, "seeds": [1, 2], "select": "fixed",
                            "grids": {"epochs": [3]}, "out": tmp_path, "curves": True, "keep_predictions": True}
    for number in (1, 2):
        onceclip.sweep(store, part=Part(number, 2), **more)
    assert {path.name for path in tmp_path.glob("curves*")} == {"curves.1-of-2.jsonl", "curves.2-of-2.jsonl"}
    rows = onceclip.sweep(store, **more)
    assert set(read_curves(tmp_path)) == {row["run"] for row in rows}
    assert len(read_rows(tmp_path)) == 2


def test_what_is_missing_or_damaged_is_said(store: Store, tmp_path: Path) -> None:
    row, other = onceclip.sweep(store, methods="gda", shots=2, seeds=[1, 2], out=tmp_path, keep_predictions=True)
    with pytest.raises(ResultError, match=r"no predictions of gda .* repeat the sweep with --keep-predictions"):
        read_predictions(tmp_path, {**row, "run": "0" * 32})
    with pytest.raises(ResultError, match="no predictions of gda"):
        read_predictions(tmp_path, {**row, "run": "../../etc"})
    chunk = tmp_path / "predictions.zarr" / row["run"] / "c" / "0"
    content = bytearray(chunk.read_bytes())
    content[0] ^= 1
    chunk.write_bytes(content)
    (tmp_path / "predictions.zarr" / other["run"] / "c" / "0").unlink()
    for each in (row, other):
        with pytest.raises(ResultError, match="are damaged"):
            read_predictions(tmp_path, each)


def test_a_line_of_curves_that_no_training_writes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "curves.jsonl").write_text(json.dumps({"run": "a", "train_loss": [1.0]}) + '\n{"run": "b", "tra')
    assert set(read_curves(tmp_path)) == {"a"}  # the last line was cut by a kill
    (tmp_path / "curves.jsonl").write_text(json.dumps({"run": "a", "train_loss": ["<script>"]}))
    with pytest.raises(ResultError, match=r"curves\.jsonl, line 1: no curve"):
        read_curves(tmp_path)


def test_the_report_draws_losses_and_accuracy_by_hyperparameter(store: Store, tmp_path: Path,
                                                               run: Callable[..., Any]) -> None:
    done = run("sweep", store.path, "--methods", "clip-adapter,tip-adapter", "--shots", "2,4", "--seeds", "1,2",
               "--grid", "ratio=0.2,0.6", "--grid", "clip-adapter.epochs=3", "--grid", "beta=1,20", "--curves", "--out",
               tmp_path / "results")
    assert done.exit_code == 0, done.stderr
    assert run("report", tmp_path / "results", "--out", tmp_path / "page.html").exit_code == 0
    page = (tmp_path / "page.html").read_text()
    assert "Losses of clip-adapter" in page
    assert "3 epochs of 2 runs: train loss from" in page
    for name in ("tip-adapter by beta", "clip-adapter by ratio"):
        assert f"<title>{name}</title>" in page
    assert "clip-adapter by epochs" not in page  # all runs have the same
    rows = [row for row in read_rows(tmp_path / "results")
            if row["method"] == "tip-adapter" and row["hyperparameters"]["beta"] == 20 and row["shots"] == 4]
    mean = sum(row["accuracy"] for row in rows) / len(rows)
    assert f"20 at 4 shots: {100 * mean:.1f} %" in page


def test_fit_keeps_the_curve_beside_the_adapter(store: Store, tmp_path: Path, run_json: Callable[..., Any]) -> None:
    row = run_json("fit", store.path, "--method", "clip-adapter", "--shots", 2, "--set", "epochs=4", "--curves",
                   "--out", tmp_path / "adapter")
    assert len(read_curves(tmp_path / "adapter")[row["run"]]["train_loss"]) == 4
