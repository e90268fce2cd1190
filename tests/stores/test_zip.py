"""A store in a zip file: read as it is, moved, unzipped elsewhere, and never written."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip import OnceclipError
from onceclip.stores import NotAStore, StoreError, StoreWriter, open_store
from onceclip.stores.verification import repair, verify

Run = Callable[..., Any]


@pytest.fixture(params=["", "pets.zarr", "deep/inside/any name"])
def zipped(request: pytest.FixtureRequest, store_path: Path, tmp_path: Path) -> Path:
    """The shared store zipped with its files at the top, or in a folder of some name; the folder is gone."""
    tree = tmp_path / "tree"
    shutil.copytree(store_path, tree / request.param)
    path = Path(shutil.make_archive(str(tmp_path / "moved" / "pets.zarr"), "zip", tree))
    shutil.rmtree(tree)
    return path


def test_a_zipped_store_reads_like_the_folder_it_was(zipped: Path, store_path: Path) -> None:
    found, expected = open_store(str(zipped)), open_store(str(store_path))
    np.testing.assert_array_equal(found.embeddings(), expected.embeddings())
    np.testing.assert_array_equal(found.embeddings(np.array([59, 3])), expected.embeddings(np.array([59, 3])))
    assert found.table.key.tolist() == expected.table.key.tolist()
    assert found.text().fingerprint == expected.text().fingerprint
    assert verify(str(zipped)).faults == []


def test_a_store_zipped_moved_and_unzipped_is_the_same_store(zipped: Path, store_path: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(zipped) as file:
        file.extractall(tmp_path / "elsewhere")
    place = next(each.parent.parent for each in (tmp_path / "elsewhere").rglob("image/zarr.json"))
    moved, expected = open_store(str(place)), open_store(str(store_path))
    assert moved.fingerprint == expected.fingerprint
    np.testing.assert_array_equal(moved.embeddings(), expected.embeddings())
    assert verify(str(place)).faults == []


def test_every_reading_command_takes_a_zip(zipped: Path, store_path: Path, run_json: Run, tmp_path: Path) -> None:
    ignored = {"store", "path", "seconds", "seconds_total", "adapter"}

    def both(*arguments: Any) -> None:
        found, expected = (run_json(*[place if each == "STORE" else each for each in arguments])
                           for place in (zipped, store_path))
        assert {name: found[name] for name in set(found) - ignored} == \
               {name: expected[name] for name in set(expected) - ignored}

    adapter = tmp_path / "adapter"
    both("info", "STORE")
    both("verify", "STORE")
    both("fit", "STORE", "--method", "tip-adapter", "--shots", 2, "--out", adapter, "--overwrite")
    both("evaluate", adapter, "STORE")
    both("predict", adapter, "STORE", "--split", "test")


def test_a_zip_is_never_written(zipped: Path, image_folder: Path, tmp_path: Path, run: Run) -> None:
    before = zipped.read_bytes()
    encoder = open_store(str(zipped)).encoder
    with pytest.raises(StoreError, match="a zip file, which can only be read: unzip it"):
        StoreWriter.open(str(zipped), encoder)
    with pytest.raises(StoreError, match="exists already"):
        StoreWriter.create(str(zipped), encoder, 64)
    result = run("extract", image_folder, zipped, "--model", "demo")
    assert result.exit_code == 1
    assert "zip file, which can only be read: unzip it" in result.stderr
    assert zipped.read_bytes() == before
    assert not list(zipped.parent.glob("*.lock"))


def test_damage_inside_a_zip_is_an_error_and_never_a_number(store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w") as file:  # stored, not compressed: a flipped byte is one byte of one chunk
        for each in sorted(store_path.rglob("*")):
            if each.is_file():
                file.write(each, each.relative_to(store_path))
    content = bytearray(path.read_bytes())
    chunk = (store_path / "image" / "embedding" / "c" / "1" / "0").read_bytes()
    content[content.index(chunk) + 10] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        open_store(str(path)).embeddings()
    found = verify(str(path))
    assert [(fault.where, fault.unit) for fault in found.faults] == [("image/embedding, chunk 1/0", 1)]
    with pytest.raises(StoreError, match="can only be read"):
        repair(str(path), found)
    path.write_bytes(content[:len(content) // 2])
    with pytest.raises(OnceclipError, match=r"s\.zip"):
        open_store(str(path))


def test_a_zip_of_something_else_is_no_store(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("notes.txt", "notes")
    with pytest.raises(NotAStore, match=r"other\.zip is not a store"):
        open_store(str(tmp_path / "other.zip"))
