"""How a run chooses where nobody says it, and fitting once more on all labelled images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.adapters import METHODS, load_classifier
from onceclip.pipeline.decoding.views import Views
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.extraction.outputs import OutputOptions
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.results import append_row, read_rows
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.runs.specs import make_specs
from onceclip.pipeline.runs.summary import tables
from onceclip.pipeline.runs.sweep import sweep
from onceclip.pipeline.tasks.draws import Draw
from onceclip.pipeline.tasks.tasks import task_of
from onceclip.stores import Store, open_store

Run = Callable[..., Any]


@pytest.mark.parametrize(("method", "shots", "policy"), [("gda", "all", "loo"), ("gda", 2, "fixed"),
                                                         ("clip-adapter", "all", "fixed")])
def test_without_validation_images_fit_leaves_out_images_or_says_that_nothing_chose(
        without_val: Store, run: Run, method: str, shots: Any, policy: str) -> None:
    quick = ("--set", "epochs=2") if method == "clip-adapter" else ()
    done = run("fit", without_val.path, "--method", method, "--shots", shots, *quick, "--json")
    row = json.loads(done.stdout)
    assert (row["select"], row["asked"]["select"]) == (policy, None)
    assert ("hyperparameters are defaults" in done.stderr) == (policy == "fixed")
    assert (row["accuracy_val"] is not None) == (policy == "loo")


def test_with_validation_images_fit_and_sweep_choose_on_them(imported: Store, run: Run, run_json: Run,
                                                             tmp_path: Path) -> None:
    done = run("fit", imported.path, "--method", "gda", "--shots", 4, "--json")
    row = json.loads(done.stdout)
    assert (row["select"], row["n_val"], done.stderr) == ("val", 16, "")
    run_json("sweep", imported.path, "--methods", "gda", "--shots", 4, "--seeds", 1, "--out", tmp_path / "results")
    swept, = read_rows(tmp_path / "results")
    assert (swept["select"], swept["asked"]["select"], swept["run"]) == ("val", None, row["run"])
    assert swept["hyperparameters"] == row["hyperparameters"]
    by_hand = run_json("fit", imported.path, "--method", "gda", "--shots", 4, "--select", "val")
    assert by_hand["hyperparameters"] == row["hyperparameters"]


def test_a_sweep_goes_on_where_there_are_no_validation_images(without_val: Store, tmp_path: Path) -> None:
    rows = sweep([without_val], make_specs(["zero-shot", "gda", "lp++"], [4, None], [1], {}), tmp_path)
    assert not any("error" in row for row in rows)
    assert [row["select"] for row in rows if row["method"] == "gda"] == ["loo", "loo"]


@pytest.mark.parametrize(("refit", "number"), [("val", "152 of train, val"), ("all", "200 of train, val, test")])
def test_the_card_says_what_the_classifier_was_fitted_on_in_the_end(imported: Store, run: Run, tmp_path: Path,
                                                                    refit: str, number: str) -> None:
    done = run("fit", imported.path, "--method", "gda", "--refit", refit, "--out", tmp_path / "a")
    card = (tmp_path / "a" / "README.md").read_text()
    assert f"| fitted on | 120 training images, all shots, seed 1, then on all {number} |" in card
    assert ("not measured: no test images were left to score; " in card) == (refit == "all"), done.output
    assert f", then on all of {number[7:]}" in run("info", tmp_path / "a").stdout


def test_runs_asked_for_as_before_keep_their_identity() -> None:
    assert RunSpec("gda", 4).as_values() == {
        "method": "gda", "shots": 4, "seed": 1, "values": {}, "text": "default", "select": None,
        "class_weights": "unit-mean", "search": "grid", "narrow": False, "validated": False, "stream": False}
    assert RunSpec("gda", refit="val").as_values()["refit"] == "val"


def test_a_row_of_the_former_default_is_repeated_as_it_was(imported: Store, tmp_path: Path, run: Run) -> None:
    row = fit(imported, RunSpec("gda", 4, select="fixed")).row
    append_row(tmp_path, {**row, "asked": {**row["asked"], "select": None}})
    done = run("fit", "--from-row", f"{tmp_path}:1", "--json")
    assert done.exit_code == 0, done.stderr
    again = json.loads(done.stdout)
    assert (again["accuracy"], again["hyperparameters"]) == (row["accuracy"], row["hyperparameters"])
    assert "the same accuracy as the row" in done.stderr


def test_refit_val_fits_on_train_and_val_and_is_scored(imported: Store, run: Run, run_json: Run,
                                                       tmp_path: Path) -> None:
    plain = run_json("fit", imported.path, "--method", "gda")
    row = run_json("fit", imported.path, "--method", "gda", "--refit", "val", "--out", tmp_path / "adapter")
    assert row["hyperparameters"] == plain["hyperparameters"]
    assert (row["n_support"], row["n_val"], row["n_refit"], row["n_test"], row["refit"]) == (120, 32, 152, 48, "val")
    assert row["accuracy"] is not None
    assert row["run"] != plain["run"]
    scores = run_json("evaluate", tmp_path / "adapter", imported.path)
    assert scores["accuracy"] == row["accuracy"]
    assert load_classifier(tmp_path / "adapter").provenance["refit"]["splits"] == ["train", "val"]
    text = run("fit", imported.path, "--method", "gda", "--refit", "val").stdout
    assert "120 training images of 4 classes, then on all 152 of train and val" in text
    assert run("fit", "--from-row", f"{tmp_path / 'adapter'}:1").exit_code == 0


def test_refit_all_has_no_test_accuracy_and_says_so(imported: Store, run: Run, run_json: Run, tmp_path: Path) -> None:
    plain = run_json("fit", imported.path, "--method", "gda")
    out = tmp_path / "adapter"
    done = run("fit", imported.path, "--method", "gda", "--refit", "all", "--out", out)
    assert done.exit_code == 0, done.stderr
    assert f"none, for the test images were fitted on; {100 * plain['accuracy']:.2f} % before that" in done.stdout
    row, = read_rows(out)
    assert (row["accuracy"], row["nll"], row["details"], row["n_test"], row["n_refit"]) == (None, None, None, 0, 200)
    assert (row["accuracy_before_refit"], row["remark"]) == (
        plain["accuracy"], "no test accuracy: the test images were fitted on")
    refused = run("evaluate", out, imported.path)
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (1, 1)
    assert "fitted on the test images" in refused.stderr
    assert "fitted on the val images" in run("evaluate", out, imported.path, "--split", "val").stderr
    assert run("evaluate", out, imported.path, "--split", "train").exit_code == 0
    assert run("predict", out, imported.path).exit_code == 0
    replayed = run("fit", "--from-row", f"{out}:1", "--json")
    assert replayed.exit_code == 0, replayed.stderr
    assert json.loads(replayed.stdout)["asked"]["refit"] == "all"
    table, = tables([row, plain])
    assert table.reasons == {"no test accuracy: the test images were fitted on": {"gda": 1}}


def test_what_is_fitted_again_is_the_method_on_those_rows(imported: Store) -> None:
    fitted = fit(imported, RunSpec("gda", refit="all"))
    label = imported.column("label")
    by_hand = METHODS["gda"](**fitted.row["hyperparameters"])
    rows = np.flatnonzero(label >= 0)
    task = task_of(imported, imported.text("default").of_classes(imported.classes), "unit-mean", Draw(rows, ()))
    values = imported.embeddings(rows)
    np.testing.assert_allclose(fitted.classifier.logits(values).numpy(), by_hand.fit(task).logits(values).numpy(),
                               rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("spec", "words"), [({"shots": 4, "refit": "val"}, "--shots 4 asks for few"),
                                             ({"refit": "test"}, "there are: none, val, all"),
                                             ({"refit": "all", "classes": "base"}, "use --refit val")])
def test_what_a_refit_cannot_be_is_one_line(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        RunSpec("gda", **spec)


def test_pictures_that_stand_in_the_test_split_too_are_not_fitted_on(
        folder_of: Callable[..., Path], tmp_path: Path, extract_demo: Callable[..., Any]) -> None:
    root = folder_of({f"{split}/{kind}": 3 for split in ("train", "val", "test") for kind in ("disc", "ring")})
    (root / "val" / "disc" / "00.png").write_bytes((root / "test" / "disc" / "00.png").read_bytes())
    extract_demo(root, tmp_path / "s.zarr")
    store = open_store(str(tmp_path / "s.zarr"))
    assert [fit(store, RunSpec("gda", refit=refit)).row["n_refit"] for refit in ("val", "all")] == [11, 18]


def test_views_of_test_images_alone_do_not_keep_all_images_from_being_fitted_on(
        folder_of: Callable[..., Path], tmp_path: Path, extract_demo: Callable[..., Any]) -> None:
    """The method was chosen on training images without views; those of some others are no part of it."""
    root = folder_of({f"{split}/{kind}": 2 for split in ("train", "val", "test") for kind in ("disc", "ring")})
    outputs = {split: OutputOptions(Views(number=2), views_for=(split,)) for split in ("test", "train")}
    for split, views in outputs.items():
        extract_demo(root, tmp_path / f"{split}.zarr", outputs=views)
    store = open_store(str(tmp_path / "test.zarr"))
    again = fit(store, RunSpec("gda", refit="all"))
    assert again.row["n_refit"] == 12
    rows, text = np.concatenate([store.rows(split) for split in ("train", "val", "test")]), store.text("default")
    task = task_of(store, text.of_classes(store.classes), "unit-mean", Draw(rows, ()), views=False)
    by_hand = METHODS["gda"](**again.row["hyperparameters"]).fit(task).logits(store.embeddings(rows))
    np.testing.assert_allclose(again.classifier.logits(store.embeddings(rows)), by_hand, rtol=1e-3, atol=1e-3)
    with pytest.raises(TaskError, match="has views of train images and none of test, val images"):
        fit(open_store(str(tmp_path / "train.zarr")), RunSpec("gda", refit="all"))
