"""Embeddings that exist already, and the store that is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onceclip.pipeline.errors import ArrayError
from onceclip.pipeline.extraction import splits
from onceclip.pipeline.words import counted, listing
from onceclip.stores import NotAStore, Output, Store, StoreWriter, Table, TextSet, open_store, write_lock
from onceclip.stores.identity import DIGEST_BYTES, digest
from onceclip.stores.rows import unusable_rows
from onceclip.stores.schema import BAD, SPLITS, STORED, TODO, UNIT_ROWS
from onceclip.stores.storage import occupied

Values = Callable[[slice], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Features:
    """What a store is made of.

    encoder: what made them, with `name` and `fingerprint`. dtype: of the stored values. key, label, split: a row each.
    classes: names, in label order. values: gives, for some rows, "embedding" (rows, dim) and every output.
    drawn: whether rows without a split are to be given one. texts: text sets by name. group, digest: of each row, where
    they are known; else rows are in no group, and their digests are those of the embeddings.
    """

    encoder: dict[str, Any]
    dtype: str
    key: np.ndarray
    label: np.ndarray
    split: np.ndarray
    classes: list[str]
    values: Values
    drawn: bool
    outputs: Mapping[str, Output] = field(default_factory=dict)
    texts: Mapping[str, TextSet] = field(default_factory=dict)
    group: np.ndarray | None = None
    digest: np.ndarray | None = None


def make_store(path: str, features: Features, unit_rows: int = UNIT_ROWS) -> Store:
    """Write a store, unit by unit; one that was cut short is written anew by the same call.

    Rows whose embedding is not finite, or zeros as other programs write them for what they could not read, are
    recorded as bad.
    Raises StoreError if something else stands at the path.
    """
    n = len(features.key)
    empty = np.full(n, "", object)
    table = Table(features.key, features.label.astype(np.int32), features.split, np.full(n, TODO, np.int8),
                  np.zeros((n, DIGEST_BYTES), np.uint8), empty, empty if features.group is None else features.group)
    with write_lock(path):
        writer = _writer(path, features, unit_rows)
        writer.plan(table, features.classes)
        for number in range(-(-n // writer.unit_rows)):
            rows = slice(number * writer.unit_rows, min((number + 1) * writer.unit_rows, n))
            values = dict(features.values(rows))
            embedding = values.pop("embedding")
            why = unusable_rows(embedding)
            good = why == ""
            content = np.stack([np.frombuffer(digest(row.tobytes()), np.uint8) for row in embedding]) \
                if features.digest is None else features.digest[rows]
            writer.commit(number, np.where(good[:, None], embedding, np.nan), content,
                          np.where(good, "", "its embedding is " + why).astype(object),
                          np.where(good, STORED, BAD).astype(np.int8), values)
        for name, text in features.texts.items():
            writer.put_text(name, text)
        written = open_store(path).table
        split = splits.draw_splits(written.label, written.split, written.state, written.digest, written.group) \
            if features.drawn else features.split
        return writer.finish(split, split_source={"how": "drawn" if features.drawn else "imported"})


def _writer(path: str, features: Features, unit_rows: int) -> StoreWriter:
    dim = int(features.encoder["dim"])
    try:
        present = open_store(path) if occupied(path) else None
    except NotAStore:
        present = None  # whatever else stands there, `create` refuses
    if present is None or present.complete:
        return StoreWriter.create(path, features.encoder, dim, features.dtype, unit_rows, features.outputs)
    attributes = present.attributes
    wanted = (features.encoder, dim, features.dtype, unit_rows, dict(features.outputs))
    if wanted != (present.encoder, dim, attributes["dtype"], attributes["unit_rows"], present.outputs):
        raise ArrayError(f"{path} is an unfinished store of something else: give another path, or delete it first")
    return StoreWriter.open(path, features.encoder)


def summary(store: Store, text: bool, seconds: float, remarks: list[str]) -> dict[str, Any]:
    """What was done, as JSON values."""
    table = store.table
    bad = np.flatnonzero(table.state == BAD)
    if len(bad):
        remarks.append(f"{counted(len(bad), 'row')} stored as bad, the first is {table.key[bad[0]]} "
                       f"({table.reason[bad[0]]})")
    empty = np.setdiff1d(np.arange(len(store.classes)), table.label[table.state == STORED]).tolist()
    if empty:
        remarks.append(f"{counted(len(empty), 'class', 'classes')} without a row: "
                       f"{listing([store.classes[number] for number in empty])}")
    return {"store": store.path, "images": len(table), "dim": store.dim, "classes": len(store.classes),
            "text": text, "bad": len(bad),
            "splits": {name: len(store.rows(name)) for name in SPLITS}, "encoder": store.encoder, "seconds": seconds,
            "remarks": remarks}
