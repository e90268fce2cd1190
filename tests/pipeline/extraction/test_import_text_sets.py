"""Text sets made elsewhere, imported beside the images: joined by name, and used like embedded ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onceclip
from onceclip.pipeline.errors import ArrayError


@pytest.fixture
def npz(arrays: dict[str, np.ndarray], tmp_path: Path) -> Path:
    np.savez(tmp_path / "features.npz", **arrays)
    return tmp_path / "features.npz"


def test_a_set_is_joined_by_name_whatever_its_order(npz: Path, arrays: dict[str, np.ndarray], tmp_path: Path,
                                                    run: Callable[..., Any]) -> None:
    order = [2, 0, 3, 1]
    text = np.stack([arrays["text"], arrays["text"] + 1], axis=1)
    np.savez(tmp_path / "cupl.npz", text=text[order], class_names=arrays["class_names"][order])
    np.save(tmp_path / "plain.npy", arrays["text"])
    done = run("import", npz, tmp_path / "a.zarr", "--encoder", "mine", "--text-set", f"cupl={tmp_path / 'cupl.npz'}",
               "--text-set", f"plain={tmp_path / 'plain.npy'}")
    assert done.exit_code == 0, done.output
    store = onceclip.open_store(tmp_path / "a.zarr")
    assert store.texts == ["cupl", "default", "plain"]
    assert store.text("cupl").embedding.tolist() == text.reshape(-1, 16).tolist()
    assert store.text("plain").fingerprint == store.text("default").fingerprint
    assert onceclip.verify(tmp_path / "a.zarr").faults == []
    rows = onceclip.sweep(store, methods=["zero-shot"], shots=1, seeds=1, out=tmp_path / "results", text="cupl",
                          class_weights=["unit-mean", "raw-mean", "score-mean"])
    assert [(row["text"], row["class_weights"]) for row in rows] == [
        ("cupl", rule) for rule in ("unit-mean", "raw-mean", "score-mean")]
    assert len({row["nll"] for row in rows}) == 3


def test_a_store_of_text_sets_alone_has_text(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "features.npz", **{name: each for name, each in arrays.items() if name != "text"})
    np.save(tmp_path / "other.npy", arrays["text"])
    done = onceclip.import_arrays(tmp_path / "features.npz", tmp_path / "a.zarr",
                                  text_sets={"other": tmp_path / "other.npy"})
    assert done["text"]
    assert onceclip.fit(tmp_path / "a.zarr", "gda", 2, text="other").row["n_support"] == 8


@pytest.mark.parametrize(("content", "message"), [
    ({"text": np.ones((3, 16), np.float32), "class_names": ["ant", "bee", "cow"]}, "no text for 1 class of .*dog"),
    ({"text": np.ones((4, 8), np.float32)}, r"shape \(4, 8\)"),
    ({"text": np.ones((3, 16), np.float32)}, "has 3 classes"), ({"text": np.ones((4, 16), np.int64)}, "type int64"),
    ({"text": np.zeros((4, 16), np.float32)}, "rows that are zeros"),
    ({"text": np.full((4, 16), np.nan, np.float32)}, "not finite"),
    ({"words": np.ones(3)}, "cannot be read as a text set"),
    ({"text": np.ones((4, 16), np.float32), "class_names": ["a", "a", "b", "c"]}, "3 class names"),
    ({"text": np.array([object()] * 4)}, "cannot be read as a text set")])
def test_files_that_are_no_text_set_make_no_store(npz: Path, tmp_path: Path, content: dict[str, Any],
                                                  message: str) -> None:
    np.savez(tmp_path / "set.npz", **content)
    with pytest.raises(ArrayError, match=message):
        onceclip.import_arrays(npz, tmp_path / "a.zarr", text_sets={"set": tmp_path / "set.npz"})
    assert not (tmp_path / "a.zarr").exists()


def test_names_that_no_set_can_have_are_refused(npz: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 16), np.float32))
    for name, message in (("../x", "use up to 64 letters"), ("default", "choose another"), ("", "is not NAME=FILE")):
        done = run("import", npz, tmp_path / "a.zarr", "--text-set", f"{name}={tmp_path / 'a.npy'}")
        assert done.exit_code != 0
        assert message in done.stderr
    twice = ("--text-set", f"a={tmp_path / 'a.npy'}") * 2
    assert "'a' is given twice" in run("import", npz, tmp_path / "a.zarr", *twice).stderr
    assert not (tmp_path / "a.zarr").exists()


def test_equal_sentences_of_two_encoders_are_two_sets(npz: Path, tmp_path: Path,
                                                      arrays: dict[str, np.ndarray]) -> None:
    """Their fingerprints were one, so that a sweep took results of the one for those of the other."""
    prompts = np.array([f"a {name}" for name in arrays["class_names"]])
    found = []
    for encoder in ("x", "y"):
        np.savez(tmp_path / f"{encoder}.npz", text=arrays["text"], class_names=arrays["class_names"], prompt=prompts,
                 class_ptr=np.arange(5), template_id=np.zeros(4, int), encoder=encoder, source="{}")
        onceclip.import_arrays(npz, tmp_path / f"{encoder}.zarr", "mine", {"set": tmp_path / f"{encoder}.npz"})
        found.append(onceclip.open_store(tmp_path / f"{encoder}.zarr").text("set").fingerprint)
    assert found[0] != found[1]
    np.savez(tmp_path / "nan.npz", **{**np.load(tmp_path / "x.npz"), "source": '{"seed": NaN}'})
    with pytest.raises(ArrayError, match="is no text set of `onceclip export`"):
        onceclip.import_arrays(npz, tmp_path / "z.zarr", "mine", {"set": tmp_path / "nan.npz"})
