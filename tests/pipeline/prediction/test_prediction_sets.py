"""Prediction sets from a fitted adapter to the files that predict writes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onceclip
from onceclip.adapters import set_rule
from onceclip.stores import Store


@pytest.fixture(scope="module")
def store(arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("sets")
    np.savez(folder / "arrays.npz", **{**arrays, "embedding": np.where(
        np.arange(200)[:, None] == 49, 0, arrays["embedding"])})  # one bad image, of the test split
    onceclip.import_arrays(folder / "arrays.npz", folder / "imported.zarr", "mine")
    return onceclip.open_store(folder / "imported.zarr")


@pytest.mark.parametrize(("method", "shots", "select", "rows"), [
    ("gda", 8, None, 16), ("tip-adapter", 8, "loo", 32), ("zero-shot", 8, None, 16), ("gda+tip-adapter", 8, None, 16)])
def test_an_adapter_has_scores_of_the_rows_that_calibrated_it(store: Store, method: str, shots: int, select: str | None,
                                                              rows: int) -> None:
    classifier = onceclip.fit(store, method, shots=shots, select=select).classifier
    assert [len(each) for each in classifier.conformity.values()] == [rows, rows]
    assert classifier.calibrated_on == ("loo" if select == "loo" else "val")


def test_evaluate_counts_sets_and_predict_writes_the_same_ones(store: Store, tmp_path: Path,
                                                               run: Callable[..., Any],
                                                               run_json: Callable[..., Any]) -> None:
    onceclip.fit(store, "gda", shots=8, out=tmp_path / "adapter")
    scores = run_json("evaluate", tmp_path / "adapter", store.path, "--coverage", 0.9)
    lac, aps = scores["sets"]
    assert (lac["kind"], aps["kind"], scores["calibrated_on"]) == ("lac", "aps", "val")
    truth = dict(zip(map(str, store.column("key")), store.column("label").tolist(), strict=True))
    for found in (lac, aps):
        done = run("predict", tmp_path / "adapter", store.path, "--split", "test", "--coverage", 0.9, "--set-kind",
                   found["kind"], "--out", tmp_path / "labels.csv")
        assert done.exit_code == 0, done.output
        rows = list(csv.DictReader((tmp_path / "labels.csv").read_text().splitlines()))
        sets = {row["image"]: json.loads(row["set"]) for row in rows}
        good = [row for row in rows if row["state"] == "ok"]
        assert len(good) == len(rows) - 1
        assert [sets[row["image"]] for row in rows if row["state"] == "bad"] == [[]]
        assert all(sets[row["image"]][0] == row["class"] for row in good)
        held = [store.classes[truth[row["image"]]] in sets[row["image"]] for row in good]
        assert np.mean(held) == pytest.approx(found["coverage"])
        assert np.mean([len(sets[row["image"]]) for row in good]) == pytest.approx(found["size"])
    for ending in ("jsonl", "parquet"):
        assert run("predict", tmp_path / "adapter", store.path, "--coverage", 0.9, "--out",
                   tmp_path / f"labels.{ending}").exit_code == 0
    assert "set" in json.loads((tmp_path / "labels.jsonl").read_text().splitlines()[0])
    assert "of one" in run("evaluate", tmp_path / "adapter", store.path, "--coverage", 0.9).stdout
    plain = run("predict", tmp_path / "adapter", store.path, "--out", tmp_path / "plain.csv")
    assert plain.exit_code == 0
    assert "set" not in (tmp_path / "plain.csv").read_text().splitlines()[0].split(",")


def test_rows_of_fit_and_sweep_count_the_sets_that_evaluate_counts(store: Store, tmp_path: Path,
                                                                   run: Callable[..., Any]) -> None:
    """Rows that lack them are made again, for another probability too; a method without scores has none."""
    done = run("fit", store.path, "--method", "gda", "--shots", "8", "--coverage", "0.9", "--out", tmp_path / "adapter")
    assert "sets of 90.00 % (aps, on val rows)" in done.stdout
    row = json.loads((tmp_path / "adapter" / "results.jsonl").read_text())
    assert row["sets"] == onceclip.evaluate(tmp_path / "adapter", store, coverage=0.9)["sets"]

    def swept(**further: Any) -> list[dict[str, Any]]:
        return onceclip.sweep(store, methods=["gda", "linear-probe-adamw"], shots=8, seeds=[1],
                              out=tmp_path / "results", select=None, **further)

    assert "sets" not in swept()[0]
    rows = swept(coverage=0.9)
    assert rows[0]["sets"] == row["sets"]
    assert rows[0]["accuracy"] == row["accuracy"]
    assert swept(coverage=0.9) == swept() == rows
    assert swept(coverage=0.5)[0]["sets"][0]["coverage_asked"] == 0.5
    frame = onceclip.results(tmp_path / "results")
    assert frame["coverage_lac"][0] == swept()[0]["sets"][0]["coverage"]
    bare = run("fit", store.path, "--method", "linear-probe-adamw", "--shots", "2", "--select", "fixed", "--set",
               "epochs=2", "--coverage", "0.9")
    assert "sets             none" in bare.stdout
    refused = run("sweep", store.path, "--methods", "gda", "--inference", "stata", "--coverage", "0.9", "--out",
                  tmp_path)
    assert refused.exit_code == 1
    assert "leave --inference out" in refused.stderr


def test_from_python_predictions_have_sets_where_a_coverage_is_asked_for(store: Store) -> None:
    classifier = onceclip.fit(store, "gda", shots=8).classifier
    found = onceclip.predict(classifier, store, split="test", coverage=0.8)
    rows = store.embeddings(store.rows("test"))
    expected = set_rule(classifier, 0.8).members(classifier.logits(rows)).sum(dim=1).tolist()
    assert [len(each.set or ()) for each in found if each.state == "ok"] == expected
    assert onceclip.predict(classifier, store, split="test")[0].set is None


def test_what_has_no_sets_is_refused_in_one_line(store: Store, tmp_path: Path, run: Callable[..., Any]) -> None:
    onceclip.fit(store, "linear-probe-adamw", shots=2, select="fixed", out=tmp_path / "bare", values={"epochs": 2})
    onceclip.fit(store, "gda", shots=8, out=tmp_path / "adapter")
    for command, message in (
            (["evaluate", tmp_path / "bare", store.path, "--coverage", "0.9"], "has no scores to make sets with"),
            (["predict", tmp_path / "bare", store.path, "--coverage", "0.9"], "has no scores to make sets with"),
            (["evaluate", tmp_path / "adapter", store.path, "--coverage", "0.9", "--classes", "ant,bee",
              "--only-its-classes"], "sets are of all classes")):
        done = run(*command)
        assert done.exit_code == 1
        assert message in done.stderr
