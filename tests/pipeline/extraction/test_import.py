"""Features made elsewhere: they become a store, or one line says what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.pipeline.errors import ArrayError
from onceclip.pipeline.evaluation.evaluate import evaluate
from onceclip.pipeline.extraction.import_arrays import import_arrays
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec
from onceclip.stores import Store, StoreMismatch, open_store
from onceclip.stores.schema import SPLITS, STORED

Arrays = dict[str, np.ndarray]
ImportOf = Callable[..., Store]


def without(arrays: Arrays, *names: str) -> Arrays:
    return {name: values for name, values in arrays.items() if name not in names}


def test_arrays_become_rows_with_their_labels_splits_and_keys(imported: Store, arrays: Arrays) -> None:
    np.testing.assert_array_equal(imported.embeddings(), arrays["embedding"])
    assert imported.classes == ("ant", "bee", "cow", "dog")
    np.testing.assert_array_equal(imported.table.label, arrays["label"])
    assert [SPLITS[split] for split in imported.table.split] == arrays["split"].tolist()
    assert imported.table.key.tolist() == arrays["key"].tolist()
    np.testing.assert_array_equal(imported.text().embedding, arrays["text"])
    assert imported.encoder["logit_scale"] == pytest.approx(20.0)


def test_a_folder_of_npy_files_gives_the_same_store(imported: Store, arrays: Arrays, tmp_path: Path) -> None:
    folder = tmp_path / "arrays"
    folder.mkdir()
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    import_arrays(folder, tmp_path / "other.zarr")
    other = open_store(str(tmp_path / "other.zarr"))
    assert other.fingerprint == imported.fingerprint
    assert other.text().fingerprint == imported.text().fingerprint
    np.testing.assert_array_equal(other.embeddings(), imported.embeddings())


def test_units_do_not_change_what_is_stored(imported: Store, arrays: Arrays, import_of: ImportOf) -> None:
    other = import_of(arrays, "units", unit_rows=7)
    assert other.fingerprint == imported.fingerprint
    np.testing.assert_array_equal(other.embeddings(), imported.embeddings())


def test_views_stay_with_their_images(arrays: Arrays, import_of: ImportOf) -> None:
    """cross_modal_adaptation: with several views only the last one survived in the file (lessons.md, part C)."""
    views = np.stack([arrays["embedding"] + number for number in (1, 2, 3)], axis=1)
    store = import_of({**arrays, "view": views}, unit_rows=16)
    rows = np.array([150, 3, 77])
    np.testing.assert_array_equal(store.embeddings(rows, "view"), views[rows])
    assert store.array("view").shape == (200, 3, 16)
    assert fit(store, RunSpec("tip-adapter", 2)).row["n_support"] == 8


def test_several_prompts_per_class_stay_with_their_class(arrays: Arrays, import_of: ImportOf) -> None:
    text = np.arange(4 * 3 * 16, dtype=np.float32).reshape(4, 3, 16)
    found = import_of({**arrays, "text": text}).text()
    np.testing.assert_array_equal(found.class_index, np.repeat(np.arange(4), 3))
    np.testing.assert_array_equal(found.of_classes(("cow",)).embedding, text[2])


def test_rows_without_a_label_are_kept_and_not_used(arrays: Arrays, import_of: ImportOf) -> None:
    label = arrays["label"].copy()
    label[:5] = -1
    store = import_of({**arrays, "label": label})
    assert (len(store.rows()), len(store.rows(labelled=False))) == (195, 200)


def test_splits_are_drawn_where_none_are_given(arrays: Arrays, import_of: ImportOf) -> None:
    store = import_of(without(arrays, "split"))
    assert [len(store.rows(name)) for name in SPLITS] == [100, 40, 60]
    empty = import_of({**arrays, "split": np.full(200, "")}, "empty")
    assert empty.fingerprint == store.fingerprint


def test_rows_without_a_split_beside_others_are_said(arrays: Arrays, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{**arrays, "split": np.where(np.arange(200) < 3, "", arrays["split"])})
    assert "3 rows of a class without a split, which nothing is fitted or tested on" in import_arrays(
        tmp_path / "a.npz", tmp_path / "a.zarr")["remarks"]


def test_half_precision_is_kept(arrays: Arrays, import_of: ImportOf) -> None:
    assert import_of({**arrays, "embedding": arrays["embedding"].astype(np.float16)}).embeddings().dtype == np.float16


def test_a_scalar_in_an_array_of_one_is_a_scalar(arrays: Arrays, import_of: ImportOf) -> None:
    assert import_of({**arrays, "logit_scale": np.array([20.0])}).encoder["logit_scale"] == pytest.approx(20.0)


def test_names_in_bytes_are_read_as_text(arrays: Arrays, import_of: ImportOf) -> None:
    names = {name: arrays[name].astype("S") for name in ("class_names", "key", "split")}
    store = import_of({**arrays, **names})
    assert store.classes == ("ant", "bee", "cow", "dog")
    assert store.table.key.tolist() == arrays["key"].tolist()


def test_labels_that_are_identifiers_make_a_class_of_each_number_that_occurs(import_of: ImportOf) -> None:
    """They may be far above the number of rows; a class for every number below would take all memory."""
    store = import_of({"embedding": np.eye(6, 8, dtype=np.float32), "label": np.array([7, 1 << 40, 7, 1 << 40, -1, 7])})
    assert store.classes == ("7", "1099511627776")
    assert store.table.label.tolist() == [0, 1, 0, 1, -1, 0]


def test_labels_may_be_names_and_splits_as_folders_are_called(arrays: Arrays, import_of: ImportOf) -> None:
    names = arrays["class_names"][arrays["label"]]
    spelled = np.where(arrays["split"] == "val", "valid", np.char.upper(arrays["split"]))
    given = import_of(arrays, "given")
    for label in (names, names.astype("S")):
        store = import_of({**without(arrays, "text"), "label": label, "split": spelled}, f"names{label.dtype.kind}")
        assert store.classes == given.classes
        assert store.table.label.tolist() == given.table.label.tolist()
        assert store.table.split.tolist() == given.table.split.tolist()


def test_rows_of_zeros_are_bad_images(arrays: Arrays, tmp_path: Path) -> None:
    """Other programs write zeros for images that they could not read (fiftyone)."""
    embedding = arrays["embedding"].copy()
    embedding[[3, 9]] = 0
    np.savez(tmp_path / "a.npz", **{**arrays, "embedding": embedding})
    done = import_arrays(tmp_path / "a.npz", tmp_path / "a.zarr")
    store = open_store(str(tmp_path / "a.zarr"))
    assert done["bad"] == 2
    assert "2 rows stored as bad, the first is a/03.png (its embedding is zeros)" in done["remarks"]
    assert np.flatnonzero(store.table.state != STORED).tolist() == [3, 9]


def test_a_logit_scale_that_looks_like_a_logarithm_is_taken_and_said(arrays: Arrays, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{**arrays, "logit_scale": np.float32(4.6052)})
    done = import_arrays(tmp_path / "a.npz", tmp_path / "a.zarr")
    assert done["encoder"]["logit_scale"] == pytest.approx(4.6052)
    assert any("give its exponential" in each for each in done["remarks"])


def test_odd_classes_are_said(arrays: Arrays, tmp_path: Path, run: Callable[..., Any]) -> None:
    """As of folders (docs/sources.md)."""
    names, text = np.array(["ant", "hot dog", "Hot_dog", "nan"]), arrays["text"].copy()
    text[1] = text[0]
    np.savez(tmp_path / "a.npz", **{**arrays, "class_names": names, "text": text})
    done = run("import", tmp_path / "a.npz", tmp_path / "a.zarr")
    assert done.exit_code == 0
    assert "different classes: 'hot dog', 'Hot_dog'; if they are one" in done.stderr
    assert "with the same prompts, which text cannot tell apart: 'ant', 'hot dog'" in done.stderr
    assert "'nan' is a class" in done.stderr
    assert open_store(str(tmp_path / "a.zarr")).classes == tuple(names)


def test_unnamed_encoders_never_match_and_equal_names_do(arrays: Arrays, import_of: ImportOf) -> None:
    """clip-retrieval#325, moflo#648: two models of one width cannot be told apart by their vectors."""
    other = {**arrays, "embedding": arrays["embedding"] + 1}
    unnamed = fit(import_of(arrays, "a"), RunSpec("tip-adapter", 2)).classifier
    assert evaluate(unnamed, import_of(arrays, "same"))["n"] == 48
    with pytest.raises(StoreMismatch):
        evaluate(unnamed, import_of(other, "b"))
    named = fit(import_of(arrays, "c", encoder="ViT-B-32/openai"), RunSpec("tip-adapter", 2)).classifier
    assert evaluate(named, import_of(other, "d", encoder="ViT-B-32/openai"))["n"] == 48
    with pytest.raises(StoreMismatch, match="ViT-B-32/openai"):
        evaluate(named, import_of(other, "e", encoder="ViT-B-32/laion"))


def test_methods_that_never_look_at_text_run_on_a_store_without_any(
        imported: Store, arrays: Arrays, import_of: ImportOf, tmp_path: Path, run: Callable[..., Any],
        run_json: Callable[..., Any]) -> None:
    """What they reach is what they reach beside a text; every command goes on with it."""
    path = import_of(without(arrays, "text"), "bare").path
    fit = ("--shots", "4", "--seed", "2", "--out", tmp_path / "adapter")
    row = run_json("fit", path, "--method", "linear-probe", *fit)
    assert row["accuracy"] == run_json("fit", imported.path, "--method", "linear-probe", *fit[:4])["accuracy"]
    assert (row["fingerprints"]["text"], row["classes"]) == ("", 4)
    assert run("fit", "--from-row", f"{tmp_path / 'adapter'}:1").exit_code == 0
    assert run_json("evaluate", tmp_path / "adapter", path)["accuracy"] == row["accuracy"]
    assert len(run_json("predict", tmp_path / "adapter", path, "--split", "test")["predictions"]) == 48
    swept = ("sweep", path, "--methods", "linear-probe,lpclip", "--shots", "1,4", "--seeds", "1,2", "--out",
             tmp_path / "swept")
    assert run(*swept).exit_code == 0
    assert run(*swept[:-2], "--classes", "base", "--out", tmp_path / "base").exit_code == 0
    assert run("report", tmp_path / "swept", "--out", tmp_path / "r.html").exit_code == 0
    refused = run("sweep", path, "--methods", "linear-probe,tip-adapter", "--out", tmp_path / "swept")
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (1, 1)
    assert "no text set 'default'" in refused.stderr
    assert "linear-probe and onceclip.FewShotClassifier do without" in refused.stderr


def test_keys_and_names_are_one_line_each_as_those_of_files_are(arrays: Arrays, import_of: ImportOf,
                                                                tmp_path: Path) -> None:
    """Others take names from the disk as they are, with what no line and no text in UTF-8 can hold."""
    key, names = arrays["key"].astype("<U20"), arrays["class_names"].astype("<U20")
    key[:3], names[:2] = ("a\nb", "caf\udce9", "50 %25"), ("ant\tred", "bee")
    np.savez(tmp_path / "other.npz", text=arrays["text"][:, None], class_names=names)
    store = import_of({**arrays, "key": key, "class_names": names, "label": names[arrays["label"]]}, "odd",
                      text_sets={"other": tmp_path / "other.npz"})
    assert store.table.key[:3].tolist() == ["a%0Ab", "caf%E9", "50 %25"]
    assert store.classes == store.text("other").classes == ("ant%09red", "bee", "cow", "dog")
    assert store.table.label.tolist() == arrays["label"].tolist()


def test_arrays_are_read_from_this_machine(arrays: Arrays, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    import_arrays(f"file://{tmp_path}/a.npz", tmp_path / "a.zarr")
    assert len(open_store(str(tmp_path / "a.zarr")).rows()) == 200
    with pytest.raises(ArrayError, match=r"s3://bucket/a\.npz is a URL"):
        import_arrays("s3://bucket/a.npz", tmp_path / "b.zarr")
