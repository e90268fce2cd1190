"""Damaged stores: an error that says so, never a wrong number and never rows that went missing in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onceclip import OnceclipError
from onceclip.stores import StoreDamaged, open_store
from onceclip.stores.schema import SPLITS

COLUMNS = ("embedding", "key", "label", "split", "state", "digest")


def chunk_files(store: Path, array: str) -> list[Path]:
    return sorted(path for path in (store / array / "c").rglob("*") if path.is_file())


def flip(path: Path, position: int = 10) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 0x40
    path.write_bytes(content)


def use_everything(path: Path) -> None:
    """What a fit looks at, and more."""
    store = open_store(str(path))
    assert len(store.table) == len(store.column("checksum")) == 60
    assert len(store.embeddings(store.rows())) == 60, "rows went missing without a word"
    assert sum(len(store.rows(split)) for split in SPLITS) == 60, "rows went missing without a word"
    store.text()


@pytest.mark.parametrize("array", [*(f"image/{name}" for name in COLUMNS), "text/default/embedding",
                                   "text/default/prompt"])
def test_a_flipped_byte_is_an_error_and_never_a_number(store_copy: Path, array: str) -> None:
    """Without a checksum zarr gives wrong numbers in silence, with its default compressor too (lessons.md, part D)."""
    flip(chunk_files(store_copy, array)[-1])
    with pytest.raises(StoreDamaged, match="damaged") as caught:
        use_everything(store_copy)
    assert str(store_copy) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("array", [*(f"image/{name}" for name in COLUMNS), "text/default/embedding"])
def test_a_deleted_chunk_is_an_error_and_never_a_fill_value(store_copy: Path, array: str) -> None:
    """zarr-python#486, #587: a missing chunk reads as fill values, NaN rows or labels -1, with no error."""
    chunk_files(store_copy, array)[0].unlink()
    with pytest.raises(OnceclipError):
        use_everything(store_copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "{\"zarr_format\": 3}"])
def test_metadata_cut_short_is_a_named_error(store_copy: Path, text: str) -> None:
    """SciStudio#167: a crash leaves half a file."""
    (store_copy / "zarr.json").write_text(text)
    with pytest.raises(OnceclipError):
        open_store(str(store_copy))


def test_only_the_damaged_unit_is_lost(store_copy: Path, store_path: Path) -> None:
    whole = open_store(str(store_path)).embeddings()
    flip(chunk_files(store_copy, "image/embedding")[0])
    np.testing.assert_array_equal(open_store(str(store_copy)).embeddings(np.arange(16, 60)), whole[16:])
