"""Support that nobody labelled: labels are not read, and nothing of val or test comes back through a bank."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import onceclip
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.tasks.support import NEAR_COPY, bank_of, near_copies
from onceclip.stores import Store, StoreMismatch, open_store

Arrays = dict[str, np.ndarray]


@pytest.fixture
def imported(arrays: Arrays, import_of: Callable[..., Store]) -> Store:
    """A store whose encoder has a name."""
    return import_of(arrays, encoder="clip")


@pytest.fixture
def bank(arrays: Arrays, import_of: Callable[..., Store]) -> Store:
    """Other images of the same encoder; ten of them are copies of test images, ten more nearly so."""
    random = np.random.default_rng(1)
    test = arrays["embedding"][arrays["split"] == "test"]
    near = test[10:20] + 0.01 * random.normal(size=(10, 16))
    others = arrays["embedding"][::2] + 2.0 * random.normal(size=(100, 16))
    rows = np.concatenate([test[:10], near, others]).astype(np.float32)
    return import_of({"embedding": rows, "label": np.zeros(len(rows), np.int64),
                      "class_names": np.array(["x", "y"]), "split": np.full(len(rows), "train"),
                      "logit_scale": arrays["logit_scale"]}, "bank", encoder="clip")


@pytest.mark.parametrize("support", ["upl:5", "fpl:5", "ifpl:5,rounds=3", "grip:3", "nola:5"])
def test_labels_of_the_pool_are_not_read(arrays: Arrays, imported: Store, import_of: Callable[..., Store],
                                         support: str) -> None:
    unknown = arrays["split"] != "test"
    label = np.where(unknown, (arrays["label"] * 7 + np.arange(200)) % 4, arrays["label"])
    other = import_of({**arrays, "label": label}, "other", encoder="clip")
    first, second = (onceclip.fit(store, "gda", support=support) for store in (imported, other))
    for name in ("accuracy", "n_support", "support_source"):
        assert first.row[name] == second.row[name]
    rows = imported.embeddings(imported.rows("test"))
    assert torch.equal(first.classifier.logits(rows), second.classifier.logits(rows))
    assert (first.row["shots"], first.row["n_val"], first.row["select"]) == (0, 0, "fixed")
    assert first.classifier.calibrated_on == ""


def test_nothing_of_val_or_test_comes_back_through_a_bank(imported: Store, bank: Store) -> None:
    kept = bank_of(imported, bank)
    assert kept.left_out == {"digest": 10, "group": 0, "near": 10}
    assert len(kept.pool) == 100
    later = np.concatenate([imported.rows("val"), imported.rows("test")])
    assert not near_copies(kept.pool.image, torch.from_numpy(imported.embeddings(later))).any()
    row = onceclip.fit(imported, "tip-adapter", support="retrieve:8", bank=bank.path).row
    assert row["support_source"]["left_out"] == {"digest": 10, "group": 0, "near": 10}
    assert row["support_source"]["bank"] == row["fingerprints"]["bank"] == bank.fingerprint
    assert row["support_source"]["near_copy"] == NEAR_COPY


def test_equal_pictures_of_the_store_itself_are_left_out_by_their_digest(store_path: Path) -> None:
    store = open_store(str(store_path))
    later = len(store.rows("val")) + len(store.rows("test"))
    kept = bank_of(store, store)
    assert kept.left_out["digest"] == later
    assert set(kept.rows.tolist()) <= set(store.rows("train").tolist())


def test_a_bank_of_another_encoder_or_of_nothing_else_is_refused(imported: Store, arrays: Arrays,
                                                                 import_of: Callable[..., Store]) -> None:
    with pytest.raises(StoreMismatch, match="use a store made by the same encoder"):
        bank_of(imported, import_of(arrays, "foreign", encoder="another"))
    test = {name: values[arrays["split"] == "test"] if values.shape[:1] == (200,) else values
            for name, values in arrays.items()}
    with pytest.raises(TaskError, match="has no image left"):
        bank_of(imported, import_of(test, "all-test", encoder="clip"))


def test_labelled_shots_and_guessed_rows_are_joined_and_no_image_is_in_both(imported: Store) -> None:
    fitted = onceclip.fit(imported, "gda", shots=4, support="upl:5")
    found = fitted.row["support_source"]
    assert fitted.row["n_support"] == 16 + found["rows"]
    assert found["pool"] == 120 - 16
    assert fitted.row["select"] == "val"


def test_a_run_of_before_keeps_its_identity_and_a_bank_counts_by_its_content(imported: Store, bank: Store,
                                                                            tmp_path: Path) -> None:
    assert {"support", "bank", "captions"}.isdisjoint(RunSpec("gda", 4).as_values())
    moved = shutil.copytree(bank.path, tmp_path / "moved.zarr")
    specs = [RunSpec("gda", 0, support="retrieve:4", bank=str(path)) for path in (bank.path, moved)]
    assert specs[0].contents(imported)["bank"] == bank.fingerprint
    assert RunSpec("gda", 0, support="upl:16").identity(imported) == RunSpec("gda", 0, support="upl").identity(imported)
    assert len({each.identity(imported) for each in specs}) == 1
    others = [RunSpec("gda", 0, support="retrieve:5", bank=bank.path), RunSpec("gda", 0, support="upl:4"),
              RunSpec("gda", 4, support="upl:4"), RunSpec("gda", 4)]
    assert len({each.identity(imported) for each in (specs[0], *others)}) == 5


@pytest.mark.parametrize(("arguments", "text"), [
    (("--method", "gda", "--support", "upl:x"), "k=x is not a whole number"),
    (("--method", "gda", "--support", "upll"), "did you mean 'upl'"),
    (("--method", "gda", "--support", "retrieve:4"), "takes images from a bank: add --bank STORE"),
    (("--method", "gda", "--bank", "bank"), "gda reads no bank"),
    (("--support", "upl:4"), "--support needs a --method"),
    (("--method", "gda", "--support", "upl", "--select", "val"), "--select val reads labelled validation images"),
    (("--method", "gda", "--support", "upl", "--shots", "2", "--select", "loo"), "takes guessed labels for true ones"),
    (("--method", "gda", "--support", "upl", "--classes", "base"), "--classes does not go with --support"),
    (("--method", "gda", "--support", "upl", "--refit", "val"), "--refit does not go with --support"),
    (("--method", "zs-lp", "--support", "upl", "--stream"), "--stream does not go with --support"),
    (("--method", "proker", "--support", "upl:4,weighted=true"), "proker cannot weigh its support rows"),
    (("--method", "gda", "--support", "upl", "--label-noise", "0.2"), "without --shots no label is read"),
    (("--method", "gda", "--support", "upl", "--captions", "x"), "names a text set of a bank: add --bank STORE"),
    (("--method", "gda+zero-shot", "--support", "upl"), "guessed labels are none: add --shots K"),
    (("--method", "gda", "--support", "nothing:Here"), "cannot import 'nothing'"),
    (("--method", "gda", "--support", "captions:4", "--bank", "bank"), "no text set 'captions'"),
    (("--method", "gda", "--support", "retrieve:4", "--bank", "nowhere.zarr"), "nowhere.zarr is not a store"),
])
def test_what_does_not_go_together_is_one_line(imported: Store, bank: Store, run: Callable[..., Any],
                                               arguments: tuple[str, ...], text: str) -> None:
    arguments = tuple(bank.path if each == "bank" else each for each in arguments)
    result = run("fit", imported.path, *arguments)
    assert result.exit_code == 1, result.output
    assert text in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_commands_say_where_rows_came_from_and_sweep_keeps_sources_apart(
        imported: Store, bank: Store, run: Callable[..., Any], run_json: Callable[..., Any], tmp_path: Path) -> None:
    result = run("fit", imported.path, "--method", "gda", "--support", "retrieve:4", "--bank", bank.path)
    assert "retrieve:4: 16 rows of 100 images of a bank" in result.stdout
    assert "20 images left out of the bank (10 digest, 10 near)" in result.stderr
    for support in ("upl:4", "fpl:4"):
        made = run_json("sweep", imported.path, "--methods", "zero-shot,gda", "--support", support, "--seeds", "1",
                        "--out", tmp_path / "results")
    rows = [json.loads(line) for line in (tmp_path / "results" / "results.jsonl").read_text().splitlines()]
    assert [(row["method"], row["shots"], row["asked"].get("support")) for row in rows] == [
        ("zero-shot", 0, "upl:4"), ("gda", 0, "upl:4"), ("zero-shot", 0, "fpl:4"), ("gda", 0, "fpl:4")]
    assert [cell["method"] for cell in made["tables"][0]["cells"]] == ["zero-shot", "gda fpl:4"]
    again = run("fit", "--from-row", f"{tmp_path / 'results'}:2")
    assert "the same accuracy as the row" in again.stderr, again.output


def test_a_source_that_a_row_names_is_not_imported(imported: Store, run: Callable[..., Any], tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taking.py").write_text(
        "import pathlib, torch\npathlib.Path('ran').touch()\n"
        "from onceclip.adapters.support import Choice, SupportSource\n"
        "class First(SupportSource):\n    def choose(self, text, pool, seed=0):\n"
        "        return Choice(torch.arange(4), torch.arange(4))\n")
    row = onceclip.fit(imported, "gda", support="taking:First").row
    assert row["support_source"]["rows"] == 4
    (tmp_path / "rows").mkdir()
    name = "taking_again"
    (tmp_path / f"{name}.py").write_text((tmp_path / "taking.py").read_text())
    (tmp_path / "ran").unlink()
    (tmp_path / "rows" / "results.jsonl").write_text(json.dumps(
        {**row, "asked": {**row["asked"], "support": f"{name}:First"}}) + "\n")
    result = run("fit", "--from-row", "rows:1")
    assert result.exit_code == 1
    assert f"add --import {name}" in result.stderr
    assert not (tmp_path / "ran").exists()


def test_captions_choose_images_and_those_without_one_are_left_out(store_path: Path, tmp_path: Path,
                                                                   run: Callable[..., Any]) -> None:
    bank = shutil.copytree(store_path, tmp_path / "bank.zarr")
    store = open_store(str(bank))
    bare = store.column("key")[bank_of(store, store).rows[0]]
    sentences = {key: [f"a drawing of a {key.split('/')[0]}"] for key in store.column("key").tolist() if key != bare}
    (tmp_path / "captions.json").write_text(json.dumps(sentences))
    result = run("text", bank, "--captions", tmp_path / "captions.json", "--name", "captions")
    assert result.exit_code == 0, result.output
    fit = ("fit", store_path, "--method", "gda", "--support", "captions:3", "--bank", bank)
    result = run(*fit, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["support_source"]
    assert found["left_out"]["without caption"] == 1
    assert (found["rows"], found["classes"]) == (12, 4)
    kept = tmp_path / "kept"
    more = run("fit", store_path, "--method", "x-more", "--bank", bank, "--out", kept)
    assert "images left out of the bank" in more.stderr, more.output
    assert "give an adapter of another method" in run("suggest", kept, store_path, "--label-errors").stderr
    wrong = run(*fit, "--captions", "default")
    assert "has prompts of classes, not captions of images" in wrong.stderr


def test_listed_validation_images_are_never_guessed_support(imported: Store, tmp_path: Path) -> None:
    """Those that a file lists may be of the train split, whose other images are the pool."""
    keys = [str(key) for key in imported.column("key")[imported.rows("train")]]
    val = [key for key in keys if key[2:4] in ("10", "11")]
    (tmp_path / "draw.json").write_text(json.dumps({"train": [key for key in keys if key[2:4] == "00"], "val": val}))
    row = onceclip.fit(imported, "gda", shots=1, draws=tmp_path / "draw.json", support="upl:5").row
    assert (row["n_val"], row["support_source"]["pool"]) == (8, 120 - 4 - 8)
