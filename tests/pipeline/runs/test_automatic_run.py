"""`fit STORE` without a method: the average of several, as a run, a row, an adapter and a line of a sweep."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onceclip
from onceclip.adapters import load_classifier
from onceclip.pipeline.runs.results import read_rows
from onceclip.stores import Store

Run = Callable[..., Any]
MEMBERS = ["zero-shot", "gda", "linear-probe", "lp++", "clip-adapter"]


def test_fit_of_a_store_alone_averages_methods_and_says_what_each_reached(imported: Store, run: Run, run_json: Run,
                                                                          tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    done = run("fit", imported.path, "--out", out)
    assert (done.exit_code, done.stderr) == (0, "")
    row, = read_rows(out)
    assert (row["method"], row["select"], row["n_support"], row["n_val"]) == ("automatic", "val", 120, 32)
    *members, average = row["reached"]
    assert [each["method"] for each in members] == MEMBERS
    assert average["accuracy"] == row["accuracy_val"]
    for each in members:
        assert f"{each['method']:<16} {100 * each['accuracy']:6.2f} % of validation images" in done.stdout
    ahead = 100 * (average["accuracy"] - members[0]["accuracy"])
    assert f"{ahead:+.2f} points to zero-shot" in done.stdout
    assert row["accuracy"] >= run_json("fit", imported.path, "--method", "zero-shot")["accuracy"]

    scores = run_json("evaluate", out, imported.path)
    assert (scores["accuracy"], scores["method"]) == (row["accuracy"], "automatic")
    replayed = run("fit", "--from-row", f"{out}:1", "--json")
    assert "the same accuracy as the row" in replayed.stderr
    again = json.loads(replayed.stdout)
    assert (again["run"], again["hyperparameters"]) == (row["run"], row["hyperparameters"])


def test_a_sweep_takes_it_as_a_method_and_python_as_the_default(imported: Store, run_json: Run, tmp_path: Path) -> None:
    run_json("sweep", imported.path, "--methods", "zero-shot,automatic", "--shots", "all", "--seeds", 1, "--out",
             tmp_path)
    _, row = read_rows(tmp_path)
    fitted = onceclip.fit(imported)
    assert (fitted.row["run"], fitted.row["accuracy"]) == (row["run"], row["accuracy"])


def test_without_validation_images_training_images_are_held_out(without_val: Store, run: Run) -> None:
    done = run("fit", without_val.path)
    assert done.exit_code == 0, done.stderr
    assert "% of training images held out, weight" in done.stdout
    one = run("fit", without_val.path, "--shots", 1)
    assert "lp++ alone, for there are no labelled images to compare methods on" in one.stdout


def test_a_store_without_text_gets_a_linear_probe(arrays: dict[str, np.ndarray], run_json: Run,
                                                  import_of: Callable[..., Store]) -> None:
    store = import_of({name: each for name, each in arrays.items() if name not in ("text", "logit_scale")}, "no-text")
    assert [each["method"] for each in run_json("fit", store.path)["reached"]] == ["linear-probe", "automatic"]


def test_it_is_fitted_again_on_all_labels(imported: Store, run: Run, run_json: Run, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    row = run_json("fit", imported.path, "--refit", "all", "--out", out)
    assert (row["accuracy"], row["n_refit"]) == (None, 200)
    classifier = load_classifier(out)
    label = imported.column("label")
    known = (classifier.logits(imported.embeddings()).argmax(dim=1).numpy() == label).mean()
    assert known >= row["accuracy_before_refit"]
    assert run("predict", out, imported.path).exit_code == 0
    assert run("fit", "--from-row", f"{out}:1").exit_code == 0


@pytest.mark.parametrize(("options", "words"), [
    ("--set alpha=2", "leave --set and --select out"), ("--select loo", "leave --set and --select out"),
    ("--search random:3", "--search: an average"), ("--narrow", "--narrow: an average"),
    ("--method gda --select fixed --search random:3 --narrow", "--search and --narrow: nothing is searched")])
def test_what_would_choose_nothing_is_refused(imported: Store, run: Run, options: str, words: str) -> None:
    done = run("fit", imported.path, *options.split())
    assert done.exit_code in (1, 2)
    assert words in done.stderr
