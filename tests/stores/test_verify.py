"""`verify` finds what is wrong with a store, and what it lets pass changes no value."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip import OnceclipError
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec
from onceclip.stores import StoreError, open_store
from onceclip.stores.verification import repair, verify


def contents(path: Path) -> dict[str, Any]:
    """Every value of a store that a command may use."""
    store = open_store(str(path))
    table, text = store.table, store.text()
    columns = {name: getattr(table, name).tolist() for name in table.__dataclass_fields__}
    return {"fingerprint": store.fingerprint, "encoder": store.encoder, "classes": store.classes, **columns,
            "embedding": store.embeddings().tobytes(), "text": text.embedding.tobytes(), "prompts": text.prompts}


def test_a_sound_store_has_no_fault(store_path: Path) -> None:
    found = verify(str(store_path))
    assert (found.faults, found.images) == ([], 60)
    assert found.chunks == sum(1 for path in store_path.rglob("*") if path.is_file() and path.name != "zarr.json")


def test_every_flipped_byte_is_found_or_changes_nothing(store_path: Path, tmp_path: Path) -> None:
    """No peer detects a flipped byte: 50 places, weighed by size, in data and in descriptions."""
    before = contents(store_path)
    files = sorted(path.relative_to(store_path) for path in store_path.rglob("*") if path.is_file())
    sizes = [(store_path / path).stat().st_size for path in files]
    chance = random.Random(5)
    copy = Path(shutil.copytree(store_path, tmp_path / "copy.zarr"))
    refused = 0
    for path in chance.choices(files, [size**0.5 for size in sizes], k=50):
        original = (store_path / path).read_bytes()
        place = chance.randrange(len(original))
        (copy / path).write_bytes(original[:place] + bytes([original[place] ^ 1 << chance.randrange(8)])
                                  + original[place + 1:])
        try:
            sound = not verify(str(copy)).faults
        except OnceclipError:
            sound = False
        if sound:
            assert contents(copy) == before, f"{path} at byte {place} changes a value and nobody says so"
        else:
            refused += 1
        (copy / path).write_bytes(original)
    assert refused > 25


@pytest.mark.parametrize("array", ["embedding", "state", "digest", "reason", "label", "key"])
def test_a_damaged_or_missing_chunk_is_named(store_copy: Path, array: str) -> None:
    chunk = next(path for path in sorted((store_copy / "image" / array / "c").rglob("*")) if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-3])
    assert any(f"image/{array}, chunk 0" in fault.where for fault in verify(str(store_copy)).faults)
    chunk.unlink()
    assert [fault.what for fault in verify(str(store_copy)).faults] == ["is missing"]


def test_a_damaged_store_is_refused_by_fit(store_copy: Path) -> None:
    for chunk in (store_copy / "image" / "embedding" / "c").rglob("*"):
        if chunk.is_file():
            content = bytearray(chunk.read_bytes())
            content[5] ^= 4
            chunk.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        fit(open_store(str(store_copy)), RunSpec("tip-adapter", 2))


def test_repair_has_the_next_extraction_encode_the_damaged_unit_alone(
        image_folder: Path, store_path: Path, store_copy: Path, extract_demo: Callable[..., Any]) -> None:
    chunk = store_copy / "image" / "embedding" / "c" / "1" / "0"
    chunk.write_bytes(b"\0" * chunk.stat().st_size)
    found = verify(str(store_copy))
    assert {fault.unit for fault in found.faults} == {1}
    assert repair(str(store_copy), found) == 1
    done = extract_demo(image_folder, store_copy)
    assert (done.encoded, done.reused) == (16, 44)
    assert verify(str(store_copy)).faults == []
    mended, sound = open_store(str(store_copy)), open_store(str(store_path))
    assert mended.fingerprint == sound.fingerprint
    np.testing.assert_allclose(mended.embeddings(), sound.embeddings(), atol=2e-3)


def test_what_no_extraction_mends_is_not_called_repaired(store_copy: Path) -> None:
    next((store_copy / "text" / "default" / "embedding" / "c").rglob("0")).joinpath("0").unlink()
    with pytest.raises(StoreError, match="cannot mend"):
        repair(str(store_copy), verify(str(store_copy)))


def test_equal_pictures_in_two_splits_are_told(folder_of: Callable[..., Path], tmp_path: Path,
                                               extract_demo: Callable[..., Any]) -> None:
    """RemoteCLIP#13: duplicates across train and test."""
    root = folder_of({"train/disc": 3, "train/ring": 3, "test/disc": 2, "test/ring": 2})
    shutil.copy(root / "train" / "disc" / "00.png", root / "test" / "disc" / "again.png")
    extract_demo(root, tmp_path / "s.zarr")
    found = verify(str(tmp_path / "s.zarr"))
    assert found.faults == []
    assert [remark.where for remark in found.remarks] == ["train/disc/00.png (train) and test/disc/again.png (test)"]


def test_an_unfinished_extraction_is_a_fault(store_copy: Path) -> None:
    from onceclip.stores import StoreWriter

    writer = StoreWriter.open(str(store_copy), open_store(str(store_copy)).encoder)
    writer.update(complete=False)
    assert [fault.where for fault in verify(str(store_copy)).faults] == ["image/state"]


def test_two_writers_never_meet(image_folder: Path, tmp_path: Path, extract_demo: Callable[..., Any],
                                run_process: Callable[..., Any]) -> None:
    from onceclip.stores import write_lock

    with write_lock(str(tmp_path / "s.zarr")):
        done = run_process("extract", image_folder, tmp_path / "s.zarr", "--model", "demo")
    assert done.returncode == 1
    assert "is being written by another process" in done.stderr
    assert extract_demo(image_folder, tmp_path / "s.zarr").encoded == 60
    assert not (tmp_path / "s.zarr.lock").exists()


def test_repair_of_an_unfinished_store_keeps_what_it_has(store_copy: Path) -> None:
    from onceclip.stores import StoreWriter

    writer = StoreWriter.open(str(store_copy), open_store(str(store_copy)).encoder)
    state = writer.store.column("state").copy()
    state[3] = -1
    writer.update(complete=False)
    writer.store.array("state")[...] = state
    assert repair(str(store_copy), verify(str(store_copy))) == 0
    assert open_store(str(store_copy)).column("state").tolist() == state.tolist()


def test_equal_pictures_in_two_classes_are_told_by_extract_and_verify(folder_of: Callable[..., Path], tmp_path: Path,
                                                                      run: Callable[..., Any]) -> None:
    """One of the labels must be wrong; within a class they are no matter."""
    root = folder_of({"disc": 3, "ring": 3})
    for copy in ("ring/copy.png", "disc/copy.png"):
        shutil.copy(root / "disc" / "00.png", root / copy)
    done = run("extract", root, tmp_path / "s.zarr", "--model", "demo")
    assert "1 picture in several classes, some of which must be wrong: disc/" in done.stderr
    remark, = [each for each in verify(str(tmp_path / "s.zarr")).remarks if "classes" in each.what]
    assert (remark.what, "(disc) and ring/copy.png (ring)" in remark.where) == (
        "are the same picture in different classes", True)
