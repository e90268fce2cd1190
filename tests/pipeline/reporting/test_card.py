"""The card in a store: true, readable, and a person's as soon as a person changes it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from onceclip.stores import open_store
from onceclip.stores.verification import verify

Run = Callable[..., Any]


def test_a_card_says_what_the_store_holds_and_how_to_use_it(store_copy: Path, run: Run) -> None:
    result = run("info", store_copy, "--card")
    assert result.exit_code == 0, result.stderr
    text = (store_copy / "README.md").read_text("utf-8")
    store = open_store(str(store_copy))
    for part in ("# copy.zarr", "60 stored", store.fingerprint, store.encoder["fingerprint"], "| classes | 4 |",
                 "onceclip fit copy.zarr", "a photo of a bar.", "To be filled in by the owner",
                 "| cross | 8 | 3 | 4 | 0 |"):
        assert part in text
    assert str(store_copy.parent) not in text


def test_nothing_that_reads_the_store_minds_the_card(store_copy: Path, store_path: Path, run: Run,
                                                     image_folder: Path, extract_demo: Run) -> None:
    run("info", store_copy, "--card")
    assert verify(str(store_copy)).faults == []
    np.testing.assert_array_equal(open_store(str(store_copy)).embeddings(), open_store(str(store_path)).embeddings())
    with xarray.open_zarr(store_copy, group="image", consolidated=False) as data:
        assert data.sizes["image"] == 60
    assert extract_demo(image_folder, store_copy).encoded == 0
    assert run("compact", store_copy, store_copy.with_name("c.zarr"), "--shard-rows", 32).exit_code == 0
    zipped = shutil.make_archive(str(store_copy.with_name("z")), "zip", store_copy)
    assert verify(zipped).faults == []


def test_a_card_is_renewed_until_a_person_changes_it(store_copy: Path, run: Run) -> None:
    path = store_copy / "README.md"
    assert run("info", store_copy, "--card").exit_code == 0
    first = path.read_text("utf-8")
    assert run("info", store_copy, "--card").exit_code == 0
    assert path.read_text("utf-8") == first
    for changed in (first.replace("To be filled in", "CC0, as written"), "my own words\n", first + "more\n", ""):
        path.write_text(changed, "utf-8")
        result = run("info", store_copy, "--card")
        assert result.exit_code == 1
        assert "written or changed by hand" in result.stderr
        assert path.read_text("utf-8") == changed


@pytest.mark.parametrize("kind", ["zip", "adapter"])
def test_what_cannot_have_a_card_is_refused(kind: str, store_copy: Path, adapter_path: Path, run: Run) -> None:
    path = adapter_path if kind == "adapter" else Path(shutil.make_archive(str(store_copy), "zip", store_copy))
    before = sorted(path.parent.iterdir())
    result = run("info", path, "--card")
    assert result.exit_code == 1
    assert "only be read" in result.stderr or "only stores have a card" in result.stderr
    assert sorted(path.parent.iterdir()) == before


def test_a_card_goes_to_a_url_too() -> None:
    from onceclip.stores import StoreWriter
    from onceclip.stores.card import write_card

    url = "memory://cards/s.zarr"
    StoreWriter.create(url, {"name": "any", "fingerprint": "0"}, 4)
    write_card(url, "words")
    write_card(url, "other words")
    assert open_store(url).dim == 4
