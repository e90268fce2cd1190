"""Arrays that cannot be imported: one line that names the file and the array, and nothing written."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from onceclip import OnceclipError
from onceclip.pipeline.errors import ArrayError
from onceclip.pipeline.extraction.import_arrays import import_arrays

EMBEDDING = np.ones((6, 4), np.float32) * np.arange(1, 7, dtype=np.float32)[:, None]
GOOD = {"embedding": EMBEDDING, "label": np.array([0, 1, 0, 1, 0, -1]), "split": np.array(["train", "val", "test"] * 2)}
MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "no embedding": ({"embedding": None}, "embedding"),
    "one axis": ({"embedding": np.ones(6, np.float32)}, "embedding"),
    "integers": ({"embedding": np.ones((6, 4), np.int64)}, "embedding"),
    "no rows": ({"embedding": np.ones((0, 4), np.float32)}, "embedding"),
    "nan": ({"embedding": np.where(EMBEDDING == 3, np.nan, EMBEDDING)}, "row 2"),
    "short label": ({"label": np.zeros(5, np.int64)}, "label"),
    "label of numbers": ({"label": np.zeros(6)}, "label"),
    "label below -1": ({"label": np.full(6, -2)}, "label"),
    "label that class_names lack": ({"label": np.array(["a", "b"] * 3), "class_names": np.array(["a", "c"])}, "'b'"),
    "no columns": ({"embedding": np.ones((6, 0), np.float32)}, "embedding"),
    "beyond float32": ({"embedding": np.where(EMBEDDING == 3, 1e300, EMBEDDING.astype(np.float64))}, "row 2"),
    "all zeros": ({"embedding": np.zeros((6, 4), np.float32)}, "zeros"),
    "text of zeros": ({"text": np.array([[1, 2, 3, 4], [0, 0, 0, 0]], np.float32)}, "text"),
    "view of zeros": ({"view": np.zeros((6, 2, 4), np.float32)}, "view"),
    "empty class name": ({"class_names": np.array(["a", " "])}, "empty"),
    "scale zero": ({"logit_scale": np.float64(0)}, "logit_scale"),
    "scale negative": ({"logit_scale": np.float64(-5)}, "logit_scale"),
    "scale beyond float32": ({"logit_scale": np.float64(1e308)}, "logit_scale"),
    "unknown split": ({"split": np.array(["train", "dev", "test"] * 2)}, "'dev'"),
    "short split": ({"split": np.array(["train"])}, "split"),
    "key twice": ({"key": np.array(["a", "b", "c", "d", "e", "a"])}, "key"),
    "short key": ({"key": np.array(["a"])}, "key"),
    "view of other width": ({"view": np.ones((6, 2, 5), np.float32)}, "view"),
    "view of two axes": ({"view": np.ones((6, 4), np.float32)}, "view"),
    "view of integers": ({"view": np.ones((6, 2, 4), np.int64)}, "view"),
    "view with nan": ({"view": np.full((6, 2, 4), np.nan, np.float32)}, "view"),
    "text of other width": ({"text": np.ones((2, 5), np.float32)}, "text"),
    "text of one class": ({"text": np.ones((1, 4), np.float32)}, "text"),
    "text with nan": ({"text": np.full((2, 4), np.nan, np.float32)}, "text"),
    "few class names": ({"class_names": np.array(["a"])}, "class_names"),
    "class names twice": ({"class_names": np.array(["a", "a"])}, "twice"),
    "scale of two": ({"logit_scale": np.ones(2)}, "logit_scale"),
    "scale nan": ({"logit_scale": np.float64("nan")}, "logit_scale"),
    "unknown array": ({"labels": np.zeros(6)}, "labels"),
}


def test_a_single_array_is_no_npz_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", EMBEDDING)
    with pytest.raises(ArrayError, match=r"a folder of \.npy files \(it is no \.npz file\): it needs"):
        import_arrays(tmp_path / "a.npy", tmp_path / "a.zarr")


@pytest.mark.parametrize("case", MALFORMED)
def test_arrays_that_do_not_fit_are_one_line_that_names_them(tmp_path: Path, case: str) -> None:
    change, named = MALFORMED[case]
    arrays = {name: values for name, values in {**GOOD, **change}.items() if values is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ArrayError) as caught:
        import_arrays(tmp_path / "a.npz", tmp_path / "s.zarr")
    assert named in str(caught.value)
    assert "a.npz" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize("kind", ["npz", "folder"])
@pytest.mark.parametrize("cut", [False, True], ids=["huge", "without its end"])
def test_a_header_that_is_none_or_claims_more_than_its_file_holds_is_one_line(tmp_path: Path, kind: str,
                                                                              cut: bool) -> None:
    """The memory for what is claimed is not taken."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 4)})
    content = header.getvalue() + EMBEDDING.tobytes()
    if cut:
        content = content.replace(b")", b" ", 1).replace(b"}", b" ", 1)
    if kind == "npz":
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
            file.writestr("embedding.npy", content)
    else:
        (tmp_path / "a.npz").mkdir()
        (tmp_path / "a.npz" / "embedding.npy").write_bytes(content)
    with pytest.raises(ArrayError, match=r"a\.npz cannot be read"):
        import_arrays(tmp_path / "a.npz", tmp_path / "s.zarr")


def test_a_file_that_unpacks_to_far_more_than_it_has_is_refused(tmp_path: Path) -> None:
    with (zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
          file.open("embedding.npy", "w", force_zip64=True) as member):
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (1 << 19, 256)})
        for _ in range(512):
            member.write(bytes(1 << 20))
    with pytest.raises(ArrayError, match="unpacks to"):
        import_arrays(tmp_path / "a.npz", tmp_path / "s.zarr")


def test_a_missing_embedding_lists_what_there_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", label=GOOD["label"], features=EMBEDDING)
    with pytest.raises(ArrayError, match=r"features, label|label, features"):
        import_arrays(tmp_path / "a.npz", tmp_path / "s.zarr")


def damaged(content: bytes, kind: str) -> bytes:
    return {"cut": content[: len(content) // 2], "empty": b"", "text": b"label,embedding\n", 
            "zip": b"PK\x03\x04 no zip", "flipped": content.replace(EMBEDDING.tobytes()[:16], b"\xff" * 16)}[kind]


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "zip", "flipped"])
def test_a_damaged_file_is_one_line(tmp_path: Path, kind: str) -> None:
    np.savez(tmp_path / "a.npz", **GOOD)
    (tmp_path / "a.npz").write_bytes(damaged((tmp_path / "a.npz").read_bytes(), kind))
    with pytest.raises(ArrayError, match=r"a\.npz") as caught:
        import_arrays(tmp_path / "a.npz", tmp_path / "s.zarr")
    assert "\n" not in str(caught.value)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    """No pickle anywhere: MultiDimensionalFeatures#14 stopped loading, and a pickle runs whatever it holds."""
    np.savez(tmp_path / "a.npz", **{**GOOD, "key": np.array([f"k{row}" for row in range(6)], dtype=object)})
    with pytest.raises(ArrayError, match="allow_pickle"):
        import_arrays(tmp_path / "a.npz", tmp_path / "s.zarr")


@pytest.mark.parametrize("kind", ["store", "group", "array", "folder", "file"])
def test_what_stands_at_the_stores_path_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    np.savez(tmp_path / "a.npz", **GOOD)
    path = tmp_path / "there"
    if kind == "store":
        import_arrays(tmp_path / "a.npz", path)
    elif kind == "group":
        zarr.create_group(str(path)).create_group("mine")
    elif kind == "array":
        zarr.create_array(str(path), shape=(3,), dtype="float32")
    elif kind == "folder":
        path.mkdir()
        (path / "thesis.txt").write_text("years of work")
    else:
        path.write_text("years of work")
    before = {each: each.read_bytes() for each in [path, *path.rglob("*")] if each.is_file()}
    with pytest.raises(OnceclipError, match="there") as caught:
        import_arrays(tmp_path / "a.npz", path)
    assert "\n" not in str(caught.value)
    assert {each: each.read_bytes() for each in [path, *path.rglob("*")] if each.is_file()} == before
