"""A store from a stranger: whatever its descriptions say is one line, and nothing outside of it is touched."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip import OnceclipError
from onceclip.stores import StoreDamaged, StoreError, open_store
from onceclip.stores.compact import compact
from onceclip.stores.schema import seal
from onceclip.stores.verification import verify


def use(path: Path) -> None:
    """All that a reader may ask for."""
    store = open_store(str(path))
    for name in (*store.row_arrays, "view", "preproj"):
        store.has(name)
    store.rows()
    store.embeddings()
    store.encoder_array("logit_scale")
    for name in store.texts:
        store.text(name)
    assert store.table.key[0]


@pytest.mark.parametrize("array", ["image/group", "image/embedding", "image/state", "image/key", "encoder/logit_scale",
                                   "text/default/prompt", "text/default"])
def test_a_damaged_description_of_an_array_is_one_line(store_copy: Path, array: str) -> None:
    """A flipped byte in JSON gives errors of many types: of json, of codecs, of zarr."""
    file, chance = store_copy / array / "zarr.json", random.Random(3)
    original, found = file.read_bytes(), 0
    for _ in range(40):
        place = chance.randrange(len(original))
        file.write_bytes(original[:place] + bytes([original[place] ^ 1 << chance.randrange(8)]) + original[place + 1:])
        try:
            use(store_copy)
        except OnceclipError as error:
            found += "\n" not in str(error)
    assert found > 15
    for text in ("", "{", "[]", "{}", "null", '{"zarr_format": 3}', "[" * 100_000):
        file.write_text(text)
        with pytest.raises(OnceclipError):
            use(store_copy)


def test_a_fill_value_that_its_type_cannot_hold_is_passed_over(store_copy: Path) -> None:
    """No row is made of it; a warning would be an error here."""
    whole, place = open_store(str(store_copy)).embeddings(), store_copy / "image" / "embedding" / "zarr.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "fill_value": -1e308}))
    np.testing.assert_array_equal(open_store(str(store_copy)).embeddings(), whole)
    assert verify(str(store_copy)).faults == []


@pytest.mark.parametrize("array", ["image/embedding", "image/state", "image/checksum", "text/default/class_ptr"])
def test_a_shape_that_is_made_up_ends_a_verification_at_once(store_copy: Path, array: str) -> None:
    """A store that is being filled lacks chunks, each of which is looked for: 2**40 of them would take years."""
    file = store_copy / array / "zarr.json"
    described = json.loads(file.read_text())
    described["shape"][0] = 2**40 * described["chunk_grid"]["configuration"]["chunk_shape"][0]
    file.write_text(json.dumps(described))
    told = [problem for problem in verify(str(store_copy)).faults if problem.where == array]
    assert "chunks" in told[0].what


def change(path: Path, values: dict[str, Any], without: str = "") -> None:
    """Change the root attributes, or leave one out, with a checksum that fits."""
    file = path / "zarr.json"
    root = json.loads(file.read_text())
    values = {**root["attributes"]["onceclip"], **values}
    root["attributes"]["onceclip"] = seal({name: value for name, value in values.items() if name != without})
    file.write_text(json.dumps(root))


OUTPUT = {"shape": [2], "dimensions": ["width"], "spec": {}}


@pytest.mark.parametrize("values", [
    {"encoder": []}, {"encoder": {"name": 5, "fingerprint": "0"}}, {"encoder": {"name": None, "fingerprint": "0"}},
    {"unit_rows": 0}, {"unit_rows": -5}, {"unit_rows": "16"}, {"dim": None}, {"dtype": "object"}, {"complete": 1},
    {"classes": [1, 2, 3, 4]}, {"classes": ["bar", "bar", "disc", "ring"]}, {"classes": "bar"}, {"classes": None},
    {"outputs": {"../../x": OUTPUT}}, {"outputs": {"x": {**OUTPUT, "shape": ["2"]}}}, {"outputs": []},
    {"texts": {"../../x": {"source": {}, "fingerprint": "0"}}}, {"texts": {"default": 5}}, {"fingerprint": None},
    {"schema": "1"}, {"schema": None},
], ids=str)
def test_attributes_of_wrong_types_are_one_line(store_copy: Path, values: dict[str, Any],
                                                run: Callable[..., Any]) -> None:
    change(store_copy, values)
    with pytest.raises(StoreDamaged) as caught:
        open_store(str(store_copy))
    assert "\n" not in str(caught.value)
    for command in ("info", "verify"):
        result = run(command, store_copy)
        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1), result.exception


@pytest.mark.parametrize("name", ["encoder", "classes", "texts", "complete", "unit_rows", "dim", "dtype", "schema"])
def test_an_attribute_that_is_missing_is_one_line(store_copy: Path, name: str) -> None:
    change(store_copy, {}, without=name)
    with pytest.raises(StoreDamaged) as caught:
        open_store(str(store_copy))
    assert "\n" not in str(caught.value)


def test_a_text_of_several_lines_that_a_message_quotes_is_one_line(store_copy: Path) -> None:
    file = store_copy / "zarr.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "zarr_format": "a\nb"}))
    with pytest.raises(StoreError, match="Got a b") as caught:
        open_store(str(store_copy))
    assert "\n" not in str(caught.value)


def test_labels_of_classes_that_are_not_named_are_damage(store_copy: Path, tmp_path: Path) -> None:
    change(store_copy, {"classes": ["bar", "cross"]})
    for reader in (use, lambda path: compact(str(path), str(tmp_path / "c.zarr")),
                   lambda path: list(open_store(str(path)).parts("state", "label"))):
        with pytest.raises(StoreDamaged, match="labels of classes that the store does not name"):
            reader(store_copy)


@pytest.mark.parametrize(("array", "changes"), [
    ("image/state", {"shape": [2**40]}), ("image/embedding", {"shape": [2**40, 64]}),
    ("image/embedding", {"shape": [60, 2**40]}), ("image/key", {"shape": [2**40]}),
    ("text/default/embedding", {"shape": [2**40, 64]}), ("text/default/prompt", {"shape": [2**40]}),
    ("text/default/class_ptr", {"shape": [2**40]}),
    ("image/key", {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**40]}}}),
    ("image/digest", {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**40, 16]}}}),
])
def test_shapes_are_claims(store_copy: Path, array: str, changes: dict[str, Any]) -> None:
    """They are held against the files before memory is taken for them."""
    file = store_copy / array / "zarr.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(StoreError) as caught:
        use(store_copy)
    assert "\n" not in str(caught.value)


def test_text_whose_arrays_do_not_fit_each_other_is_damage(store_copy: Path) -> None:
    import zarr

    zarr.open_group(str(store_copy), mode="r+")["text/default/class_ptr"][1:3] = np.array([10**9, 2])
    with pytest.raises(StoreDamaged, match="its arrays do not fit each other"):
        use(store_copy)
    assert verify(str(store_copy)).faults
