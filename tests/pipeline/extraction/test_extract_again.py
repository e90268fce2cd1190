"""Stage 1 on a store that exists: only new content is encoded, by content alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.stores import Store, StoreError, StoreMismatch, open_store
from onceclip.stores.identity import digest

Extract = Callable[..., Any]
Consistent = Callable[[Path, Path], Store]


@pytest.fixture
def root(folder_of: Callable[..., Path]) -> Path:
    return folder_of({"disc": 10, "ring": 10})


@pytest.fixture
def path(root: Path, tmp_path: Path, extract_demo: Extract) -> Path:
    """A finished store of `root`, with a half-filled last unit."""
    extract_demo(root, tmp_path / "s.zarr", unit_rows=8)
    return tmp_path / "s.zarr"


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (digest(path.read_bytes()), path.stat().st_mtime_ns) for path in folder.rglob("*")
            if path.is_file()}


def split_by_content(store: Store) -> dict[bytes, int]:
    return {bytes(store.table.digest[row]): int(store.table.split[row]) for row in store.rows()}


def test_a_lock_that_a_killed_process_left_is_gone_after_a_second_run(root: Path, path: Path,
                                                                      extract_demo: Extract) -> None:
    """It may have been killed when the store was complete already."""
    lock = path.with_name(path.name + ".lock")
    lock.write_text("1")
    assert extract_demo(root, path).encoded == 0
    assert not lock.exists()


def test_a_second_run_encodes_nothing_and_changes_no_byte(root: Path, path: Path, extract_demo: Extract,
                                                          passed: list[int]) -> None:
    before = content(path)
    done = extract_demo(root, path)
    assert (done.encoded, done.reused, done.text["encoded"], passed) == (0, 20, 0, [])
    assert content(path) == before


def test_new_images_alone_are_encoded_and_old_splits_stay(root: Path, path: Path, extract_demo: Extract,
                                                          glyph: Callable[..., Path], passed: list[int],
                                                          consistent: Consistent) -> None:
    """DeepImageSearch#14: adding one image must not encode all of them again."""
    old = split_by_content(open_store(str(path)))
    for number in range(5):
        glyph(root / "disc" / f"0{number}-new.png", "cross", number)  # sorts between the old ones
    done = extract_demo(root, path)
    assert (done.images, done.encoded, done.reused, sum(passed)) == (25, 5, 20, 5)
    new = split_by_content(consistent(path, root))
    assert {each: new[each] for each in old} == old
    assert len(new) == 25


def test_a_grown_store_equals_one_made_at_once(root: Path, path: Path, extract_demo: Extract, tmp_path: Path,
                                               glyph: Callable[..., Path], consistent: Consistent) -> None:
    """zarr-python#2077: growing a half-filled last unit left NaN rows."""
    glyph(root / "ring" / "99.png", "ring", 99)
    extract_demo(root, path)
    extract_demo(root, tmp_path / "fresh.zarr", unit_rows=8)
    stores = [consistent(each, root) for each in (path, tmp_path / "fresh.zarr")]
    vectors = [dict(zip(store.table.key, store.embeddings(), strict=True)) for store in stores]
    for key, vector in vectors[0].items():
        np.testing.assert_allclose(vector, vectors[1][key], atol=2e-3)


def test_a_changed_image_alone_is_encoded_again(root: Path, path: Path, extract_demo: Extract,
                                                glyph: Callable[..., Path], passed: list[int],
                                                consistent: Consistent) -> None:
    before = open_store(str(path)).embeddings(np.array([3]))
    file = glyph(root / "disc" / "03.png", "cross", 77)
    done = extract_demo(root, path)
    assert (done.encoded, done.reused, done.removed, sum(passed)) == (1, 19, 0, 1)
    store = consistent(path, root)
    row = int(np.flatnonzero(store.table.key == str(file.relative_to(root)))[0])
    assert not np.allclose(store.embeddings(np.array([row])), before)


def test_a_store_that_was_opened_before_is_no_damaged_one(root: Path, path: Path, extract_demo: Extract,
                                                          glyph: Callable[..., Path]) -> None:
    store = open_store(str(path))
    store.embeddings()
    glyph(next(root.rglob("*.png")), "cross", 99)
    extract_demo(root, path)
    with pytest.raises(StoreError, match="was written since it was opened: open it again"):
        store.embeddings()


def test_a_touched_image_is_not_encoded_again(root: Path, path: Path, extract_demo: Extract, passed: list[int]) -> None:
    (root / "disc" / "03.png").touch()
    assert extract_demo(root, path).encoded == 0
    assert passed == []


def test_renamed_images_and_class_folders_are_moved_rows(root: Path, path: Path, extract_demo: Extract,
                                                         passed: list[int], consistent: Consistent) -> None:
    old = split_by_content(open_store(str(path)))
    (root / "disc" / "03.png").rename(root / "disc" / "zz.png")
    (root / "ring").rename(root / "circle")
    done = extract_demo(root, path)
    assert (done.encoded, done.reused, done.moved, done.removed, passed) == (0, 20, 11, 0, [])
    assert list(done.classes) == ["circle", "disc"]
    assert split_by_content(consistent(path, root)) == old
    assert open_store(str(path)).text().classes == ("circle", "disc")


def test_removed_images_leave_and_come_back(root: Path, path: Path, extract_demo: Extract,
                                            consistent: Consistent) -> None:
    image = (root / "disc" / "03.png").read_bytes()
    (root / "disc" / "03.png").unlink()
    done = extract_demo(root, path)
    assert (done.images, done.encoded, done.removed) == (19, 0, 1)
    consistent(path, root)
    (root / "disc" / "03.png").write_bytes(image)
    assert extract_demo(root, path).images == 20
    consistent(path, root)


def test_an_image_renamed_over_another_stays_settled(root: Path, path: Path, extract_demo: Extract,
                                                     passed: list[int], consistent: Consistent) -> None:
    (root / "disc" / "00.png").rename(root / "disc" / "05.png")
    done = extract_demo(root, path)
    assert (done.encoded, done.moved, done.removed) == (0, 1, 1)
    again = extract_demo(root, path)
    assert (again.encoded, again.moved, again.removed, passed) == (0, 0, 0, [])
    consistent(path, root)


def test_images_whose_names_were_swapped_are_known_by_content(root: Path, path: Path, extract_demo: Extract,
                                                              consistent: Consistent) -> None:
    first, second, aside = (root / "disc" / name for name in ("00.png", "05.png", "aside"))
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    extract_demo(root, path)
    consistent(path, root)
    assert extract_demo(root, path).encoded == 0


def test_a_copied_image_has_a_row_of_its_own(root: Path, path: Path, extract_demo: Extract) -> None:
    (root / "ring" / "copy.png").write_bytes((root / "disc" / "00.png").read_bytes())
    extract_demo(root, path)
    store = open_store(str(path))
    twins = [row for row in store.rows() if store.table.key[row] in ("ring/copy.png", "disc/00.png")]
    assert len(twins) == 2
    assert len(set(store.table.split[twins])) == 1, "equal content must not stand on both sides"


def test_another_encoder_is_refused_before_anything_changes(root: Path, path: Path, extract_demo: Extract,
                                                            other_encoder: str) -> None:
    """NeMo-Retriever#2346: plausible-looking results that are wrong, with no error."""
    before = content(path)
    with pytest.raises(StoreMismatch, match="they differ in name, weights: extract into another store"):
        extract_demo(root, path, model=other_encoder)
    assert content(path) == before


def test_every_image_is_counted_once_also_a_bad_one_that_is_known(root: Path, path: Path, extract_demo: Extract,
                                                                  glyph: Callable[..., Path]) -> None:
    (root / "disc" / "bad.png").write_bytes(b"no image")
    glyph(root / "disc" / "new.png", "disc", 77)
    for counts in ((22, 1, 20, 1, 0), (22, 0, 21, 1, 0)):
        done = extract_demo(root, path)
        assert (done.images, done.encoded, done.reused, done.bad, done.moved) == counts
    (root / "disc" / "bad.png").rename(root / "disc" / "worse.png")
    done = extract_demo(root, path)
    assert (done.images, done.encoded, done.reused, done.bad, done.moved) == (22, 0, 21, 1, 0)
