"""What is on disk, as other programs see it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

from onceclip.stores import open_store
from onceclip.stores.schema import STORED

DIMENSIONS = {
    "image/embedding": ("image", "dim"), "image/key": ("image",), "image/label": ("image",), "image/split": ("image",),
    "image/state": ("image",), "image/checksum": ("image",), "image/reason": ("image",),
    "image/digest": ("image", "byte"), "image/group": ("image",),
    "text/default/embedding": ("prompt", "dim"), "text/default/class_ptr": ("class_end",),
    "text/default/template_id": ("prompt",), "text/default/prompt": ("prompt",), "encoder/logit_scale": (),
}
DTYPES = {"image/embedding": "float16", "image/label": "int32", "image/split": "int8", "image/state": "int8",
          "image/digest": "uint8", "text/default/embedding": "float32", "text/default/class_ptr": "int64"}


@pytest.fixture
def group(store_path: Path) -> zarr.Group:
    return zarr.open_group(str(store_path), mode="r", zarr_format=3)


@pytest.fixture
def arrays(group: zarr.Group) -> dict[str, zarr.Array]:
    return {name: node for name, node in group.members(max_depth=None) if isinstance(node, zarr.Array)}


def metadata(store: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    files = sorted(store.rglob("zarr.json"))
    assert files
    for path in files:
        yield path, json.loads(path.read_text(encoding="utf-8"))


def test_a_store_holds_these_arrays_with_these_dimensions(arrays: dict[str, zarr.Array]) -> None:
    assert {name: array.metadata.dimension_names or () for name, array in arrays.items()} == DIMENSIONS


def test_arrays_have_the_documented_types(arrays: dict[str, zarr.Array]) -> None:
    assert {name: str(arrays[name].dtype) for name in DTYPES} == DTYPES


def test_fill_values_say_not_there_and_are_never_a_plausible_number(arrays: dict[str, zarr.Array]) -> None:
    """zarr-python#486: with a fill value of zero nobody can tell zeros from nothing."""
    assert np.isnan(arrays["image/embedding"].fill_value)
    assert np.isnan(arrays["text/default/embedding"].fill_value)
    assert [arrays[f"image/{name}"].fill_value for name in ("label", "split", "state")] == [-1, -1, -1]


def test_every_chunk_of_every_array_carries_a_checksum(store_path: Path) -> None:
    arrays = [values for _, values in metadata(store_path) if values["node_type"] == "array"]
    assert len(arrays) == len(DIMENSIONS)
    assert all(values["codecs"][-1]["name"] == "crc32c" for values in arrays)


def test_metadata_is_not_consolidated(store_path: Path) -> None:
    """ngff-zarr#737: a consolidated copy goes stale when a store grows."""
    assert [path for path, values in metadata(store_path) if values.get("consolidated_metadata")] == []


def test_a_store_names_its_schema_encoder_and_classes(group: zarr.Group) -> None:
    values = group.attrs["onceclip"]
    assert (values["schema"], values["kind"], values["complete"]) == (1, "features", True)
    assert values["classes"] == ["bar", "cross", "disc", "ring"]
    assert set(values["encoder"]) >= {"name", "fingerprint", "dim", "logit_scale", "preprocess", "weights",
                                      "quick_gelu"}


def test_xarray_and_plain_zarr_read_the_same_numbers(store_path: Path, group: zarr.Group) -> None:
    store = open_store(str(store_path))
    with xarray.open_zarr(store_path, group="image", consolidated=False) as data:
        assert dict(data.sizes) == {"image": 60, "dim": store.dim, "byte": 16}
        seen = {name: data[name].values for name in ("embedding", "state", "key")}
    assert (seen["state"] == STORED).all()
    np.testing.assert_array_equal(seen["embedding"], group["image/embedding"][...])
    np.testing.assert_array_equal(seen["embedding"], store.embeddings())
    assert list(seen["key"]) == list(store.table.key)


def test_no_metadata_names_a_place_on_the_machine_that_made_the_store(store_path: Path, image_folder: Path) -> None:
    """CoOp's cached splits hold absolute paths and are stale as soon as the data moves (PLOT#3)."""
    for path, _ in metadata(store_path):
        text = path.read_text(encoding="utf-8")
        assert str(image_folder) not in text
        assert str(Path.home()) not in text
        assert str(Path(__file__).parents[2]) not in text


def test_a_store_can_be_copied_elsewhere_and_is_the_same_store(store_path: Path, tmp_path: Path) -> None:
    moved = open_store(str(shutil.copytree(store_path, tmp_path / "far" / "away.zarr")))
    original = open_store(str(store_path))
    assert moved.fingerprint == original.fingerprint
    np.testing.assert_array_equal(moved.embeddings(), original.embeddings())
