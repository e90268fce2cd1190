"""Calibrated probabilities from fit to result row: from validation rows or the support, never from test rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onceclip.adapters import load_classifier
from onceclip.adapters.selection.rule import best_temperature
from onceclip.pipeline.evaluation.evaluate import evaluate
from onceclip.pipeline.evaluation.metrics import metrics
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.runs.sweep import sweep
from onceclip.stores import Store, open_store


@pytest.mark.parametrize("select", ["val", "val-full", "fixed"])
def test_labels_of_test_rows_change_no_temperature(arrays: dict[str, np.ndarray], import_of: Callable[..., Store],
                                                   select: str) -> None:
    test = arrays["split"] == "test"
    other = {**arrays, "label": arrays["label"].copy()}
    other["label"][test] = np.random.default_rng(1).permutation(other["label"][test])
    plain, shuffled = (fit(import_of(each, place), RunSpec("tip-adapter", 4, select=select))
                       for each, place in ((arrays, "plain"), (other, "shuffled")))
    assert plain.classifier.temperature == shuffled.classifier.temperature != 1
    assert plain.classifier.calibrated_on == ("loo" if select == "fixed" else "val")
    assert plain.row["nll_calibrated"] != shuffled.row["nll_calibrated"]


def test_a_row_says_what_calibration_did_and_evaluate_says_the_same(imported: Store) -> None:
    fitted = fit(imported, RunSpec("tip-adapter", 8, select="val-full"))
    rows = imported.rows("test")
    logits = fitted.classifier.logits(imported.embeddings(rows))
    label = torch.from_numpy(imported.column("label")[rows].astype(np.int64))
    expected = metrics(logits / fitted.classifier.temperature, label)
    for found in (fitted.row, evaluate(fitted.classifier, imported)):
        assert found["temperature"] == fitted.classifier.temperature
        assert [found["nll_calibrated"], found["ece_calibrated"]] == [expected["nll"], expected["ece"]]
    assert fitted.row["nll"] == metrics(logits, label)["nll"] > fitted.row["nll_calibrated"]


def test_the_temperature_of_val_is_that_of_the_drawn_validation_images(imported: Store) -> None:
    classifier = fit(imported, RunSpec("tip-adapter", 2, select="val")).classifier
    keys = classifier.provenance["val"]["keys"]
    rows = np.flatnonzero([str(key) in keys for key in imported.table.key])
    label = torch.from_numpy(imported.column("label")[rows].astype(np.int64))
    assert len(rows) == 8
    assert classifier.temperature == pytest.approx(
        best_temperature(classifier.logits(imported.embeddings(rows)), label), rel=1e-4)


def test_zero_shot_is_calibrated_on_the_support_that_it_never_sees(imported: Store) -> None:
    classifier = fit(imported, RunSpec("zero-shot", 4, select="fixed")).classifier
    keys = classifier.provenance["support"]["keys"]
    rows = np.flatnonzero([str(key) in keys for key in imported.table.key])
    label = torch.from_numpy(imported.column("label")[rows].astype(np.int64))
    assert classifier.calibrated_on == "loo"
    assert classifier.temperature == pytest.approx(
        best_temperature(classifier.logits(imported.embeddings(rows)), label), rel=1e-4)


@pytest.mark.parametrize(("method", "shots"), [("tip-adapter", 1), ("clip-adapter", 4)])
def test_without_rows_that_can_tell_an_adapter_stays_uncalibrated(imported: Store, method: str, shots: int,
                                                                  tmp_path: Path) -> None:
    values = {"epochs": 2} if method == "clip-adapter" else {}
    fitted = fit(imported, RunSpec(method, shots, values=values, select="fixed"))
    assert [fitted.row[name] for name in ("temperature", "nll_calibrated", "ece_calibrated")] == [None] * 3
    fitted.classifier.save(tmp_path)
    assert "uncalibrated" in (tmp_path / "README.md").read_text()
    assert load_classifier(tmp_path).temperature == 1


def test_a_sweep_does_not_spend_time_on_temperatures(imported: Store, tmp_path: Path) -> None:
    row, = sweep([imported], [RunSpec("tip-adapter", 4, select="val")], tmp_path)
    alone = fit(imported, RunSpec("tip-adapter", 4, select="val")).row
    assert row["temperature"] is row["nll_calibrated"] is None
    same = ("accuracy", "nll", "hyperparameters", "run")
    assert [row[name] for name in same] == [alone[name] for name in same]


def test_probabilities_of_predict_are_calibrated(imported: Store, run_json: Callable[..., Any], tmp_path: Path) -> None:
    classifier = fit(imported, RunSpec("tip-adapter", 8, select="val-full")).classifier
    classifier.save(tmp_path / "adapter")
    found = run_json("predict", tmp_path / "adapter", imported.path, "--split", "test", "--top-k", 4)["predictions"]
    rows = open_store(imported.path).embeddings(imported.rows("test"))
    expected = classifier.probabilities(rows)
    assert classifier.temperature != 1
    for answer, values in zip(found, expected.tolist(), strict=True):
        assert [each["probability"] for each in answer["top"]] == sorted(values, reverse=True)
    assert [answer["class"] for answer in found] == classifier.predict(rows)
