"""Rows in trackers: each once, whatever was interrupted; and a tracker that fails costs no row."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

import onceclip
from onceclip.pipeline.runs.results import read_rows
from onceclip.pipeline.runs.trackers import ROW, RUN, Entry, Log, without_secrets
from onceclip.stores import Store


@pytest.fixture
def runs_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """All runs of MLflow's file store in tmp_path/runs."""
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)

    def find() -> list[Any]:
        client = MlflowClient(str(tmp_path / "runs"))
        return list(client.search_runs([client.get_experiment_by_name("onceclip").experiment_id]))

    return find


def test_rows_become_runs_once_and_what_was_missed_comes_later(
        imported: Store, tmp_path: Path, runs_of: Any, caplog: pytest.LogCaptureFixture) -> None:
    place = f"mlflow:{tmp_path / 'runs'}"
    how: dict[str, Any] = {"methods": ["zero-shot", "tip-adapter"], "shots": [2], "out": tmp_path / "results",
                           "select": "val", "search": "optuna:6"}
    rows = onceclip.sweep(imported, seeds=[1], **how)
    again = onceclip.sweep(imported, seeds=[1, 2], log=place, **how)
    assert [row for row in again if row["seed"] == 1] == rows  # which were there, and are told now
    assert onceclip.sweep(imported, seeds=[1, 2], log=[place, place], **how) == again
    assert rows[1]["settings_tried"] == 6
    assert rows[1]["asked"]["search"] == "optuna:6"
    found = {run.data.tags[RUN]: run for run in runs_of()}
    assert len(found) == len(runs_of()) == len(again) == 4
    for row in again:
        run = found[row["run"]]
        assert run.info.status == "FINISHED"
        assert run.data.metrics["accuracy"] == row["accuracy"]
        assert run.data.params["method"] == row["method"]
        assert run.data.params["shots"] == "2"
        assert {name: float(run.data.params[f"hyperparameters.{name}"]) for name in ("alpha", "beta")
                if name in row["hyperparameters"]} == {name: row["hyperparameters"][name] for name in ("alpha", "beta")
                                                       if name in row["hyperparameters"]}
        assert run.data.tags[ROW] == Entry.of(row).key
        assert str(tmp_path) not in json.dumps([run.data.params, run.data.tags])

    log = Log([place])
    rmtree(tmp_path / "runs" / found[rows[0]["run"]].info.experiment_id)  # the tracker dies in the middle of a sweep
    log.add([{**rows[0], "seed": 9}])
    log.close([{**rows[0], "seed": 9}, *again], tmp_path)
    line, = (record.getMessage() for record in caplog.records)
    assert "1 row is not logged" in line
    assert "the same command again" in line
    log = Log([place])
    log.close(read_rows(tmp_path / "results"), tmp_path)
    assert len(runs_of()) == 4


def test_a_run_that_was_cut_short_is_finished_and_one_without_a_result_is_marked(
        imported: Store, tmp_path: Path, runs_of: Any) -> None:
    row, = onceclip.sweep(imported, methods=["zero-shot"], shots=[2], seeds=[1], out=tmp_path / "results")
    failed = {"method": "gda", "shots": 2, "seed": 1, "accuracy": None, "store": "s3://key:word@host/pets.zarr?token=3",
              "error": "s3://key:word@host/pets.zarr?token=3 is gone", "fingerprints": {"text": ""}, "run": "a",
              "asked": {"method": "gda", "bank": "s3://key:word@host/bank.zarr"}}
    log = Log([f"mlflow:{tmp_path / 'runs'}"])
    tracker, = log._trackers.values()
    tracker._client.set_terminated = lambda *_: None  # type: ignore[attr-defined] # killed just before
    log.add([row])
    assert [run.info.status for run in runs_of()] == ["RUNNING"]
    log = Log([f"mlflow:{tmp_path / 'runs'}"])
    log.add([row, failed])
    log.add([row, failed])
    found = {run.data.tags[RUN]: run for run in runs_of()}
    assert len(runs_of()) == 2
    assert found[row["run"]].info.status == "FINISHED"
    assert found["a"].info.status == "FAILED"
    assert found["a"].data.tags["error"] == "s3://***@host/pets.zarr?*** is gone"
    assert "word" not in json.dumps([found["a"].data.params, found["a"].data.tags])


def test_offline_runs_of_wandb_lie_in_the_folder_once(imported: Store, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    place = f"wandb-offline:{tmp_path / 'runs'}"
    rows = onceclip.sweep(imported, methods=["zero-shot"], shots=[2], seeds=[1], out=tmp_path / "results", log=place)
    for _ in range(2):
        assert onceclip.sweep(imported, methods=["zero-shot"], shots=[2], seeds=[1], out=tmp_path / "results",
                              log=place) == rows
        file, = (tmp_path / "runs").glob("wandb/offline-run-*/*.wandb")
        (tmp_path / "runs" / "onceclip.jsonl").unlink()  # as of a process that was killed
    assert file.name == f"run-{Entry.of(rows[0]).key}.wandb"
    content = file.read_bytes()
    assert b"zero-shot" in content
    assert str(tmp_path).encode() not in content


@pytest.mark.parametrize(("place", "words"), [
    ("tensorboard:runs", "mlflow:PLACE or wandb-offline:PLACE"),
    ("mlflow:https://me:secret@nowhere.invalid/a?token=secret", "nothing was run"),
    ("mlflow:ftp://me:secret@host", "nothing was run")])
def test_a_log_that_cannot_be_opened_is_refused_before_any_run_and_its_password_is_not_shown(
        run: Any, imported: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, words: str) -> None:
    if place.startswith("mlflow"):
        pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = run("sweep", imported.path, "--methods", "zero-shot", "--seeds", "1", "--log", place, "--out",
                 tmp_path / "results")
    assert result.exit_code
    assert words in result.output
    assert "secret" not in result.output
    assert not (tmp_path / "results").exists()


def test_passwords_and_keys_of_urls_are_left_out() -> None:
    assert without_secrets("at https://me:pass@host:80/a?key=1&b=2, s3://bucket/x@y and a@b?c") == (
        "at https://***@host:80/a?*** s3://bucket/x@y and a@b?c")


def test_hyperparameters_of_an_average_are_told_by_names_and_in_numbers_that_mlflow_takes(
        imported: Store, tmp_path: Path, runs_of: Any) -> None:
    row, = onceclip.sweep(imported, methods="lp+++zero-shot", shots=2, seeds=1, out=tmp_path / "results",
                          log=f"mlflow:{tmp_path / 'runs'}")
    run, = runs_of()
    assert run.info.status == "FINISHED"
    assert float(run.data.params["hyperparameters.lp__ weight"]) == row["hyperparameters"]["lp++ weight"]
    many = {f"name{number}": number for number in range(250)}
    Log([f"mlflow:{tmp_path / 'runs'}"]).add([{**row, "seed": 2, "hyperparameters": many}])
    assert max(len(run.data.params) for run in runs_of()) > 250
