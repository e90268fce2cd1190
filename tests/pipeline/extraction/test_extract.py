"""Stage 1 on a fresh store: every image becomes one row, under its own name, class and split."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.sources import class_names
from onceclip.pipeline.sources.folder import list_images
from onceclip.stores import Store, open_store
from onceclip.stores.schema import SPLITS

Extract = Callable[..., Any]
FolderOf = Callable[..., Path]


def by_key(store: Store, rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
    rows = store.rows(labelled=False) if rows is None else rows
    return dict(zip(map(str, store.table.key[rows]), store.embeddings(rows), strict=True))


def classes_of(store: Store) -> dict[str, str]:
    return {str(key): store.classes[label] for key, label in zip(store.table.key, store.table.label, strict=True)}


def splits_of(store: Store) -> dict[str, str]:
    return {str(key): SPLITS[split] for key, split in zip(store.table.key, store.table.split, strict=True)}


def test_images_in_are_rows_plus_bad_images_out(image_folder: Path, tmp_path: Path, extract_demo: Extract) -> None:
    """thingsvision#3: 26,111 images in, 26,109 names, 26,107 rows."""
    root = Path(shutil.copytree(image_folder, tmp_path / "images"))
    for number in (3, 30):
        (root / "disc" / f"broken-{number}.png").write_bytes(b"no image")
    done = extract_demo(root, tmp_path / "s.zarr", unit_rows=16)
    store = open_store(str(tmp_path / "s.zarr"))
    files = {str(path.relative_to(root)) for path in root.rglob("*.*")}
    assert (done.images, done.encoded, done.bad) == (62, 60, 2)
    assert set(map(str, store.table.key)) == files
    assert set(by_key(store)) == files - set(done.bad_images)
    assert sum(done.classes.values()) == sum(done.splits.values()) == len(store.embeddings()) == 60


@pytest.mark.parametrize(("batch", "workers", "unit_rows"), [(1, 1, 60), (7, 3, 9), (64, 2, 1), (60, 4, 4096)])
def test_any_batch_size_gives_the_same_rows(image_folder: Path, store_path: Path, tmp_path: Path, extract_demo: Extract,
                                            batch: int, workers: int, unit_rows: int) -> None:
    """LAVIS#246: the loop drops every batch-size-th image and the last batch."""
    extract_demo(image_folder, tmp_path / "s.zarr", batch_size=batch, workers=workers, unit_rows=unit_rows)
    found, expected = open_store(str(tmp_path / "s.zarr")), open_store(str(store_path))
    assert list(found.table.key) == list(expected.table.key)
    assert found.fingerprint == expected.fingerprint
    np.testing.assert_allclose(found.embeddings(), expected.embeddings(), atol=2e-3, rtol=2e-3)


def test_stored_embeddings_are_the_encoders_own_raw_ones(image_folder: Path, store_path: Path, encoder: Any,
                                                         own_preprocess: Callable[..., np.ndarray]) -> None:
    """clip-retrieval#290, #264: stored vectors were normalised, or resized in another way, and nobody could tell."""
    stored = by_key(open_store(str(store_path)))
    assert len(stored) == 60
    for key, vector in list(stored.items())[::7]:
        with Image.open(image_folder / key) as image:
            plain = encoder.encode_images(own_preprocess(image))["embedding"][0]
        np.testing.assert_allclose(vector, plain, atol=1e-2 * np.abs(plain).max())
        assert abs(np.linalg.norm(plain) - 1) > 0.01  # so a normalised store would have been noticed


def test_embeddings_can_be_kept_in_full_precision(folder_of: FolderOf, tmp_path: Path, extract_demo: Extract) -> None:
    root = folder_of({"disc": 2, "ring": 2})
    extract_demo(root, tmp_path / "s.zarr", dtype="float32")
    assert open_store(str(tmp_path / "s.zarr")).embeddings().dtype == np.float32


def test_images_of_one_name_in_two_folders_are_two_rows(folder_of: FolderOf, glyph: Callable[..., Path], tmp_path: Path,
                                                        extract_demo: Extract) -> None:
    """clip-retrieval#329: equal stems overwrote each other, and upper-case .JPG was ignored."""
    root = folder_of({"disc": 1, "ring": 1})
    for name in ("disc/a.png", "disc/a.JPG", "ring/a.png", "ring/deep/er/a.Jpeg"):
        glyph(root / name, "bar", len(name) + ord(name[0]))
    extract_demo(root, tmp_path / "s.zarr")
    store = open_store(str(tmp_path / "s.zarr"))
    assert classes_of(store) == {"disc/00.png": "disc", "disc/a.png": "disc", "disc/a.JPG": "disc",
                                 "ring/00.png": "ring", "ring/a.png": "ring", "ring/deep/er/a.Jpeg": "ring"}
    assert len(store.rows()) == 6


def test_numeric_class_folders_sort_as_numbers(folder_of: FolderOf, tmp_path: Path, extract_demo: Extract) -> None:
    """vision#714, ImageNetV2#10: 0, 1, 10, 100, 2 - and class 2 is really 100."""
    root = folder_of({str(number): 1 for number in (0, 1, 2, 10, 100, 11)})
    done = extract_demo(root, tmp_path / "s.zarr")
    assert list(done.classes) == ["0", "1", "2", "10", "11", "100"]
    assert open_store(str(tmp_path / "s.zarr")).classes == ("0", "1", "2", "10", "11", "100")


@pytest.mark.parametrize("names", [("①", "②"), ("m²", "m2²"), ("٣", "٤"), ("ä", "日本")])
def test_class_folders_may_be_called_anything(folder_of: FolderOf, names: tuple[str, str]) -> None:
    records = list_images(folder_of(dict.fromkeys(names, 2)))
    assert set(class_names(records)) == set(names)
    assert len(records) == 4


@pytest.mark.parametrize(("train", "val", "test"), [("train", "val", "test"), ("Train", "VALID", "Test"),
                                                    ("training", "validation", "testing")])
def test_split_folders_give_the_splits_in_any_case(folder_of: FolderOf, tmp_path: Path, extract_demo: Extract,
                                                   train: str, val: str, test: str) -> None:
    root = folder_of({f"{train}/disc": 3, f"{train}/ring": 2, f"{val}/disc": 1, f"{val}/ring": 1, f"{test}/ring": 2})
    done = extract_demo(root, tmp_path / "s.zarr")
    assert done.splits == {"train": 5, "val": 2, "test": 2}
    store = open_store(str(tmp_path / "s.zarr"))
    folders = {train: "train", val: "val", test: "test"}
    assert splits_of(store) == {key: folders[key.split("/")[0]] for key in map(str, store.table.key)}


def test_a_test_folder_with_fewer_classes_than_train_keeps_their_numbers(folder_of: FolderOf, tmp_path: Path,
                                                                         extract_demo: Extract) -> None:
    """ultralytics#13936, vision#1674: train has 4 classes, test 3, the ids shift; an empty class folder crashes."""
    root = folder_of({"train/bar": 2, "train/cross": 2, "train/disc": 2, "train/ring": 2,
                      "test/cross": 1, "test/ring": 1, "test/disc": 1})
    (root / "test" / "bar").mkdir()
    extract_demo(root, tmp_path / "s.zarr")
    store = open_store(str(tmp_path / "s.zarr"))
    assert store.classes == ("bar", "cross", "disc", "ring")
    assert all(key.split("/")[1] == name for key, name in classes_of(store).items())


def test_a_stray_picture_beside_split_folders_does_not_make_them_classes(folder_of: FolderOf) -> None:
    root = folder_of({"train/disc": 2, "train/ring": 2, "test/disc": 1, "test/ring": 1, ".": 1})
    try:
        found = class_names(list_images(root))
    except SourceError:
        return
    assert found == ["disc", "ring"]


def test_names_that_are_not_utf_8_keep_their_rows(folder_of: FolderOf, glyph: Callable[..., Path], tmp_path: Path,
                                                  extract_demo: Extract) -> None:
    """fs2es-indexer#22: surrogates not allowed."""
    import os

    root = folder_of({"disc": 1, os.fsdecode(b"caf\xe9"): 2})
    glyph(root / "disc" / "50%\n.png", "bar", 5)
    done = extract_demo(root, tmp_path / "s.zarr")
    assert list(done.classes) == ["caf%E9", "disc"]
    assert set(by_key(open_store(str(tmp_path / "s.zarr")))) == {"caf%E9/00.png", "caf%E9/01.png", "disc/00.png",
                                                                 "disc/50%25%0A.png"}


def test_hidden_files_and_folders_are_passed_over(folder_of: FolderOf) -> None:
    root = folder_of({"disc": 1, "ring": 1, ".thumbs": 1, "__MACOSX/disc": 1})
    (root / "disc" / "._00.png").write_bytes(b"resource fork")
    assert [record.key for record in list_images(root)] == ["disc/00.png", "ring/00.png"]


def test_a_folder_that_links_to_itself_is_walked_once(folder_of: FolderOf) -> None:
    root = folder_of({"disc": 1, "ring": 1})
    (root / "disc" / "loop").symlink_to(root)
    assert len(list_images(root)) == 2
