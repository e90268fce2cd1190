"""What the tests of the pipeline share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.stores import Store, open_store
from onceclip.stores.identity import digest


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of images of every pass through the encoder."""
    from onceclip.pipeline.encoders import Encoder

    sizes: list[int] = []
    encode = Encoder.encode_images

    def counting(self: Encoder, pixels: Any, *rest: Any, **options: Any) -> dict[str, np.ndarray]:
        sizes.append(len(pixels))
        return encode(self, pixels, *rest, **options)

    monkeypatch.setattr(Encoder, "encode_images", counting)
    return sizes


@pytest.fixture(scope="session")
def own_preprocess(encoder: Any) -> Callable[..., np.ndarray]:
    """open_clip's own transform for the demo encoder, which onceclip does not use: an image to (1, 3, 32, 32)."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(**encoder.model.visual.preprocess_cfg), is_train=False)
    return lambda image: transform(image).numpy()[None]


@pytest.fixture(scope="session")
def consistent() -> Callable[[Path, Path], Store]:
    """Check that every PNG file of a folder has one stored row with its content and class, and nothing else has one."""

    def check(path: Path, root: Path) -> Store:
        store = open_store(str(path))
        rows = store.rows()
        found = {str(store.table.key[row]): (bytes(store.table.digest[row]), store.classes[store.table.label[row]])
                 for row in rows}
        assert len(found) == len(rows)
        assert found == {str(file.relative_to(root)): (digest(file.read_bytes()), file.parent.name)
                         for file in root.rglob("*.png")}
        assert len(store.embeddings(rows)) == len(rows)
        return store

    return check


@pytest.fixture(scope="session")
def arrays() -> dict[str, np.ndarray]:
    """Features made elsewhere: 4 classes of 50 rows that overlap, split 30/8/12, with text."""
    random = np.random.default_rng(7)
    centres = random.normal(size=(4, 16))
    label = np.repeat(np.arange(4), 50)
    return {
        "embedding": (centres[label] + 1.5 * random.normal(size=(200, 16))).astype(np.float32),
        "label": label,
        "split": np.tile(np.repeat(["train", "val", "test"], [30, 8, 12]), 4),
        "key": np.array([f"{name}/{number:02d}.png" for name in "abcd" for number in range(50)]),
        "text": (centres + random.normal(size=(4, 16))).astype(np.float32),
        "class_names": np.array(["ant", "bee", "cow", "dog"]),
        "logit_scale": np.float64(20.0),
    }


@pytest.fixture
def import_of(tmp_path: Path) -> Callable[..., Store]:
    """Make a store of arrays: import_of(arrays, "name", encoder=...)."""
    from onceclip.pipeline.extraction.import_arrays import import_arrays

    def make(arrays: dict[str, np.ndarray], name: str = "imported", **options: Any) -> Store:
        np.savez(tmp_path / f"{name}.npz", **arrays)
        import_arrays(tmp_path / f"{name}.npz", tmp_path / f"{name}.zarr", **options)
        return open_store(str(tmp_path / f"{name}.zarr"))

    return make


@pytest.fixture
def without_val(arrays: dict[str, np.ndarray], import_of: Callable[..., Store]) -> Store:
    """The store of `arrays` with its validation rows in the train split."""
    return import_of({**arrays, "split": np.where(arrays["split"] == "val", "train", arrays["split"])}, "no-val")


@pytest.fixture(scope="session")
def imported_path(arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of `arrays`; not to be changed."""
    from onceclip.pipeline.extraction.import_arrays import import_arrays

    path = tmp_path_factory.mktemp("arrays") / "imported.zarr"
    np.savez(path.with_suffix(".npz"), **arrays)
    import_arrays(path.with_suffix(".npz"), path)
    return path


@pytest.fixture
def imported(imported_path: Path, tmp_path: Path) -> Store:
    """A copy of it."""
    return open_store(str(shutil.copytree(imported_path, tmp_path / imported_path.name)))


MEANS = '''
"""Mean colours; slow if asked to be."""
import multiprocessing
import os
import time

from onceclip.pipeline.decoding.preparation import Preparation

lock = multiprocessing.get_context("spawn").RLock()  # as tqdm makes one: a process that is killed leaves it behind


class Means:
    name, dim = "means", 3
    preprocess, identity = Preparation(size=(8, 8), resize_mode="squash"), {"version": 1}

    def encode_image(self, pixels):
        time.sleep(float(os.environ.get("MEANS_SECONDS", 0)))
        return pixels.mean(dim=(2, 3))


def load():
    return Means()
'''


@pytest.fixture(scope="session")
def means_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module `means`, an encoder that loads in no time."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "means.py").write_text(MEANS)
    return folder


@pytest.fixture
def means(means_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its name, which this process and those that it starts can import."""
    monkeypatch.syspath_prepend(str(means_folder))
    monkeypatch.setenv("PYTHONPATH", str(means_folder), prepend=os.pathsep)
    return "means:load"


@pytest.fixture
def pictures(folder_of: Callable[..., Path]) -> Path:
    """48 pictures in 4 folders."""
    return folder_of({"bar": 12, "cross": 12, "disc": 12, "ring": 12})
