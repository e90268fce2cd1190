"""torchvision's data sets by name: fabricated in their own layout, never downloaded."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.sources import SourceOptions, open_source
from onceclip.stores import open_store

datasets = pytest.importorskip("torchvision.datasets")


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10 as its archive unpacks, with 6 images a batch; torchvision knows the real files by their MD5."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        batch = {"data": random.integers(0, 256, (6, 3072), np.uint8), "labels": list(range(6))}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    return folder.parent


def test_images_of_an_array_are_read_as_they_are_with_class_names_and_splits(
        cifar: Path, tmp_path: Path, extract_demo: Callable[..., Any]) -> None:
    records = open_source("torchvision:CIFAR10", SourceOptions(root=str(cifar))).records
    assert len(records) == 36
    assert [(each.key, each.label, each.split) for each in records[28:32]] == [
        ("train/000028", "deer", "train"), ("train/000029", "dog", "train"), ("test/000000", "airplane", "test"),
        ("test/000001", "automobile", "test")]
    for split, first in ((True, 0), (False, 30)):
        dataset = datasets.CIFAR10(cifar, train=split)
        for number in range(len(dataset)):
            image = Image.open(io.BytesIO(records[first + number].content.read()))
            np.testing.assert_array_equal(np.asarray(image), np.asarray(dataset[number][0]))
    assert len(pickle.dumps(records[0].content)) < 4000  # one image, not the array that it is part of
    done = extract_demo("torchvision:CIFAR10", tmp_path / "s.zarr", source=SourceOptions(root=str(cifar)))
    assert (done.encoded, done.bad, done.splits) == (36, 0, {"train": 30, "val": 0, "test": 6})
    assert extract_demo("torchvision:CIFAR10", tmp_path / "s.zarr", source=SourceOptions(root=str(cifar))).encoded == 0


@pytest.fixture
def flowers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, glyph: Callable[..., Path]) -> Path:
    """Flowers102 as its archives unpack, with 12 images."""
    from scipy.io import savemat

    folder = tmp_path / "data" / "flowers-102"
    for number in range(1, 13):
        glyph(folder / "jpg" / f"image_{number:05d}.jpg", "disc", number)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 1, 1, 1, 2, 2, 2, 2, 102, 102, 102, 102]])})
    savemat(folder / "setid.mat", {"trnid": np.array([[1, 5, 9, 10]]), "valid": np.array([[2, 6]]),
                                   "tstid": np.array([[3, 4, 7, 8, 11, 12]])})
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)
    return folder.parent


def test_images_in_files_are_the_files(flowers: Path) -> None:
    records = open_source("torchvision:Flowers102", SourceOptions(root=str(flowers))).records
    assert [each.split for each in records] == ["train"] * 4 + ["val"] * 2 + ["test"] * 6
    assert records[0].key == "flowers-102/jpg/image_00001.jpg"
    assert records[0].content.read() == (flowers / records[0].key).read_bytes()
    assert records[0].label == datasets.Flowers102.classes[0] == "pink primrose"
    expected = [number for split in ("train", "val", "test") for _, number in datasets.Flowers102(flowers, split)]
    assert [each.label for each in records] == [datasets.Flowers102.classes[number] for number in expected]


def test_a_folder_data_set_is_the_folder(folder_of: Callable[..., Path]) -> None:
    root = folder_of({"disc": 3, "ring": 2})
    records = open_source("torchvision:ImageFolder", SourceOptions(root=str(root))).records
    assert [(each.key, each.label, each.split) for each in records] == [
        (each.key, each.label, None) for each in open_source(str(root)).records]
    assert records[4].content.read() == (root / "ring/01.png").read_bytes()


def test_any_data_set_of_images_and_numbers_is_read_item_by_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.FakeData.__init__, "__defaults__", (12, (3, 20, 10), 3, None, None, 0))
    records = open_source("torchvision:FakeData").records
    plain = datasets.FakeData()
    assert [each.label for each in records] == [str(plain[number][1]) for number in range(12)]
    for number, record in enumerate(records):
        assert record.content.reading == "process"  # the decode processes import no torch
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(record.content.read()))),
                                      np.asarray(plain[number][0]))


def test_equal_class_names_stay_two_classes(cifar: Path) -> None:
    """ImageNet has two classes called crane."""
    names = ["crane", "maillot", "crane", *"defghij"]
    (cifar / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    records = open_source("torchvision:CIFAR10", SourceOptions(root=str(cifar))).records
    assert [each.label for each in records[:4]] == ["crane (0)", "maillot", "crane (2)", "d"]


def test_items_without_a_class_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.FakeData, "__getitem__", lambda self, number: (Image.new("L", (4, 4)), None))
    with pytest.raises(SourceError, match="not an image and a class number"):
        open_source("torchvision:FakeData")


def test_only_its_own_source_imports_torchvision(folder_of: Callable[..., Path]) -> None:
    code = ("import sys; from onceclip.pipeline.sources import open_source; open_source(sys.argv[1]);"
            "print({'torch', 'torchvision', 'av'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code, folder_of({"disc": 2, "ring": 2})], capture_output=True,
                          text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
def test_the_command_lists_a_data_set(cifar: Path, tmp_path: Path, run_json: Callable[..., Any]) -> None:
    done = run_json("extract", "torchvision:CIFAR10", tmp_path / "s.zarr", "--root", cifar, "--model", "demo")
    assert (done["images"], done["warnings"]) == (36, [])
    assert open_store(str(tmp_path / "s.zarr")).classes == ("airplane", "automobile", "bird", "cat", "deer", "dog")
