"""Stores of several encoders on the same images: joined by the digests of files, and by nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onceclip
from onceclip.stores import Store, StoreError, StoreMismatch, open_store


@pytest.fixture(scope="module")
def other_path(image_folder: Path, extract_demo: Callable[..., Any], other_encoder: str,
               tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images under other keys and in another order, by another encoder; two of them twice."""
    root = tmp_path_factory.mktemp("other")
    for number, file in enumerate(sorted(image_folder.rglob("*.*"), reverse=True)):
        (root / "images" / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / "images" / file.parent.name / f"{number:03d}{file.suffix}")
    extract_demo(root / "images", root / "other.zarr", other_encoder)
    return root / "other.zarr"


@pytest.fixture
def joined(store_path: Path, other_path: Path) -> Store:
    return open_store(str(store_path)).join(open_store(str(other_path)), "dino")


def test_rows_are_those_of_the_same_picture_whatever_it_is_called(joined: Store, other_path: Path) -> None:
    other, rows = open_store(str(other_path)), joined.rows()[::3]
    digests = other.column("digest")
    for row, values in zip(rows, joined.embeddings(rows, "dino/embedding"), strict=True):
        same = np.flatnonzero((digests == joined.column("digest")[row]).all(axis=1))
        assert any(np.array_equal(values, other.embeddings(same[place:place + 1])[0]) for place in range(len(same)))
    assert np.array_equal(joined.embeddings(rows), open_store(joined.path).embeddings(rows))
    assert joined.has("dino/embedding")
    assert not joined.has("dino/view")
    assert not joined.has("clip/embedding")


def test_a_store_that_lacks_an_image_or_has_another_file_is_refused(joined: Store, folder_of: Callable[..., Path],
                                                                    extract_demo: Callable[..., Any],
                                                                    tmp_path: Path) -> None:
    folder = folder_of({"bar": 3, "ring": 3})
    extract_demo(folder, tmp_path / "own.zarr")
    own = open_store(str(tmp_path / "own.zarr"))
    with pytest.raises(StoreMismatch, match=r"of 6 images of .* it lacks 6, such as 'bar/00.png' \(not there\)"):
        own.join(joined, "big")
    other = shutil.copytree(folder, tmp_path / "changed")
    (other / "bar" / "00.png").write_bytes((other / "ring" / "00.png").read_bytes())
    extract_demo(other, tmp_path / "changed.zarr")
    with pytest.raises(StoreMismatch, match=r"it lacks 1, such as 'bar/00.png' \(another file there\)"):
        own.join(open_store(str(tmp_path / "changed.zarr")), "changed")
    with pytest.raises(StoreError, match="cannot be called 'a/b'"):
        own.join(own, "a/b")


def test_fit_and_evaluate_take_the_embeddings_of_the_joined_encoder(store_path: Path, other_path: Path, tmp_path: Path,
                                                                    run_json: Callable[..., Any],
                                                                    run: Callable[..., Any]) -> None:
    join = ("--join", f"dino={other_path}")
    row = run_json("fit", store_path, "--method", "labelling-network", "--shots", "4", *join, "--inputs",
                   "dino/embedding", "--set", "epochs=5", "--select", "fixed", "--out", tmp_path / "adapter")
    assert row["fingerprints"]["join dino"] == open_store(str(other_path)).fingerprint
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["inputs"] == ["dino/embedding"]
    assert "reads            dino/embedding" in run("info", tmp_path / "adapter").stdout
    assert run_json("evaluate", tmp_path / "adapter", store_path, *join)["accuracy"] == row["accuracy"]
    assert "no image/dino/embedding" in run("evaluate", tmp_path / "adapter", store_path).stderr
    foreign = ("--join", f"dino={store_path}")
    assert "the adapter's input 'dino' belongs to encoder" in run("evaluate", tmp_path / "adapter", store_path,
                                                                  *foreign).stderr
    assert "leave --join clip=... out, or call it dino" in run("evaluate", tmp_path / "adapter", store_path, "--join",
                                                               f"clip={other_path}").stderr
    alone = onceclip.fit(open_store(str(other_path)), "zero-shot").row
    assert alone["run"] != row["run"]
    for arguments, text in ((("--method", "gda", *join, "--inputs", "dino/embedding"), "gda takes its own inputs"),
                            (("--method", "gda", "--join", "dino"), "give NAME=STORE"),
                            (("--method", "gda", *join), "gda reads nothing of the joined store 'dino'"),
                            (("--method", "labelling-network", *join, *join, "--inputs", "dino/embedding"), "twice"),
                            (("--method", "labelling-network", "--inputs", "dino/embedding"), "'dino/embedding'")):
        result = run("fit", store_path, *arguments)
        assert result.exit_code == 1
        assert text in result.stderr, result.stderr


def test_methods_of_two_encoders_are_one_run_of_every_command(store_path: Path, other_path: Path, tmp_path: Path,
                                                              run_json: Callable[..., Any],
                                                              run: Callable[..., Any]) -> None:
    join, rules = ("--join", f"dino={other_path}"), ("mean", "confidence", "weight", "synergy")
    names = ["gda", *(f"{rule}:gda+dino/gda" for rule in rules)]
    run_json("sweep", store_path, "--methods", ",".join(names), "--shots", "4", "--seeds", "1", *join, "--out",
             tmp_path / "results")
    rows = [json.loads(line) for line in (tmp_path / "results" / "results.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == names
    assert ["join dino" in row["fingerprints"] for row in rows] == [False, *[True] * 4]
    assert "join" not in rows[0]["asked"]
    assert [each["method"] for each in rows[1]["reached"]] == ["gda", "dino/gda", "ensemble"]
    assert "0 to be done" in run("sweep", store_path, "--methods", ",".join(names), "--shots", "4", "--seeds", "1",
                                 *join, "--out", tmp_path / "results", "--dry-run").stdout
    assert "the same accuracy as the row" in run("fit", "--from-row", f"{tmp_path / 'results'}:5").stderr

    # The members are those of each store alone, on the same images.
    store, other = open_store(str(store_path)), open_store(str(other_path))
    joined = store.join(other, "dino")
    fitted = onceclip.fit(joined, "mean:zero-shot+dino/zero-shot", 4, select="val").classifier
    test = joined.rows("test")
    parts = [onceclip.fit(each, "zero-shot", 4).classifier for each in (store, other)]
    temperatures = [fitted.hyperparameters[f"{name} temperature"] for name in ("zero-shot", "dino/zero-shot")]
    values = [joined.embeddings(test, name) for name in ("embedding", "dino/embedding")]
    expected = sum((part.logits(each) / temperature).log_softmax(1) / 2
                   for part, each, temperature in zip(parts, values, temperatures, strict=True))
    assert np.allclose(fitted.logits(np.concatenate(values, axis=1)), expected, atol=1e-3)

    adapter = tmp_path / "adapter"
    row = run_json("fit", store_path, "--method", names[4], "--shots", "4", *join, "--out", adapter)
    assert (row["accuracy"], row["run"]) == (rows[4]["accuracy"], rows[4]["run"])
    assert run_json("evaluate", adapter, store_path, *join)["accuracy"] == row["accuracy"]
    predicted = run_json("predict", adapter, store_path, "--split", "test", *join)
    assert predicted["n"] == row["n_test"]
    page = run_json("report", adapter, store_path, *join, "--out", tmp_path / "page.html")
    assert page["accuracy"] == row["accuracy"]
    assert run("suggest", adapter, store_path, *join, "--label-errors").exit_code == 0
    for command, further in (("evaluate", ()), ("predict", ()), ("report", ("--out", tmp_path / "no.html")),
                             ("suggest", ("--label-errors",))):
        result = run(command, adapter, store_path, *further)
        assert result.exit_code == 1
        assert "join the store that has it with --join dino=STORE" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    image = next(path for path in store_path.parent.rglob("*.png"))
    for arguments, text in ((("predict", adapter, image), "give the store with --join dino=STORE"),
                            (("predict", adapter, image, *join), "--join joins stores of the same images"),
                            (("suggest", adapter, image, "--label-next", "1"), "give the store with --join dino=STORE"),
                            (("fit", store_path, "--method", names[1]), "add --join dino=STORE"),
                            (("fit", store_path, "--method", "mean:gda+tip-adapter", *join), "reads nothing of the"),
                            (("fit", store_path, "--method", names[1], *join, "--stream"), "leave out --stream"),
                            (("sweep", store_path, "--methods", "gda", *join, "--out", tmp_path / "none"),
                             "the sweep reads nothing of the joined store 'dino'"),
                            (("fit", store_path, "--method", names[3], *join, "--select", "fixed"), "validation")):
        result = run(*arguments)
        assert result.exit_code == 1, result.output
        assert text in result.stderr, result.stderr


def test_a_joined_run_has_the_identity_of_contents_and_one_without_keeps_its_own(store_path: Path, other_path: Path,
                                                                               tmp_path: Path) -> None:
    store, moved = open_store(str(store_path)), shutil.copytree(other_path, tmp_path / "moved.zarr")
    specs = [onceclip.RunSpec("labelling-network", 4, join=(f"dino={path}",), inputs=("dino/embedding",))
             for path in (other_path, moved)]
    plain = onceclip.RunSpec("labelling-network", 4)
    assert onceclip.RunSpec("labelling-network", 4, join=f"dino={other_path}", inputs="dino/embedding") == specs[0]
    assert specs[0].identity(store) != plain.identity(store)
    assert {"join", "inputs"}.isdisjoint(plain.as_values())
    given = onceclip.RunSpec("labelling-network", 4, inputs=("dino/embedding",))
    here, there = (given.contents(store.join(each, "dino")) for each in (open_store(str(other_path)), store))
    assert here["join dino"] == open_store(str(other_path)).fingerprint != there["join dino"]
    assert "join dino" not in plain.contents(store.join(store, "dino"))
