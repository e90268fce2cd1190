"""Stores with captions that tests of retrieval share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.stores import Store, StoreWriter, Table, TextSet, open_store
from onceclip.stores.schema import STORED, TODO

ENCODER = {"name": "made", "fingerprint": "0" * 32}


@pytest.fixture(scope="session")
def make_store() -> Callable[..., Store]:
    """Write a store: rows (rows, dim), their groups and splits, and captions (dim,) by item."""

    def make(path: Path, rows: np.ndarray, captions: dict[str, list[np.ndarray]], group: list[str] | None = None,
             split: np.ndarray | None = None, by: str = "key", unit_rows: int = 16, **names: Any) -> Store:
        count, dim = rows.shape
        writer = StoreWriter.create(str(path), ENCODER, dim, "float32", unit_rows)
        key = np.array(names.get("key") or [f"{number:04d}.png" for number in range(count)], object)
        columns = (np.full(count, -1, np.int32), np.zeros(count, np.int8) if split is None else split.astype(np.int8))
        digest, reason = np.arange(count * 16, dtype=np.uint32).view(np.uint8)[:count * 16].reshape(count, 16), \
            np.full(count, "", object)
        writer.plan(Table(key, *columns, np.full(count, TODO, np.int8), digest, reason,
                          np.array(group if group else [""] * count, object)), [])
        for number in range(-(-count // unit_rows)):
            where = slice(number * unit_rows, min((number + 1) * unit_rows, count))
            size = where.stop - where.start
            writer.commit(number, rows[where], digest[where], reason[where], np.full(size, STORED, np.int8))
        writer.finish(columns[1])
        add(path, captions, by)
        return open_store(str(path))

    def add(path: Path, captions: dict[str, list[np.ndarray]], by: str = "key", name: str = "captions") -> None:
        vectors = [vector for several in captions.values() for vector in several]
        pointer = np.concatenate([[0], np.cumsum([len(each) for each in captions.values()])]).astype(np.int64)
        writer = StoreWriter.open(str(path), ENCODER)
        writer.put_text(name, TextSet(np.array(vectors, np.float32), tuple(captions), pointer,
                                      np.full(len(vectors), -1, np.int32),
                                      tuple(f"sentence {number}" for number in range(len(vectors))),
                                      ENCODER["fingerprint"], {"kind": "caption", "by": by}))

    make.add = add  # type: ignore[attr-defined]
    return make


@pytest.fixture(scope="session")
def videos_store(make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Store:
    """30 videos of 1 to 4 noisy frames with 1 to 3 captions each, some rows of them in every split."""
    random = np.random.default_rng(3)
    sizes = 1 + np.arange(30) % 4
    names = [f"{number:02d}.mp4" for number in range(30)]
    centre = random.normal(size=(30, 12))
    group = [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]
    item = np.repeat(np.arange(30), sizes)
    rows = (centre[item] + random.normal(size=(len(item), 12))) * random.uniform(0.5, 2, (len(item), 1))
    captions = {name: [centre[number] + random.normal(size=12) for _ in range(1 + number % 3)]
                for number, name in enumerate(names)}
    return make_store(tmp_path_factory.mktemp("videos") / "s.zarr", rows.astype(np.float32), captions, group,
                      item % 3, "group")
