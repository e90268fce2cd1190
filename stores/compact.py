"""A copy of a store with few large files: finished chunks joined into shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import zarr

from onceclip.stores.errors import StoreError
from onceclip.stores.lock import write_lock
from onceclip.stores.schema import SHARD_BYTES, TODO, Output, arrays_of, read_whole
from onceclip.stores.storage import damage, occupied
from onceclip.stores.store import Store, open_store
from onceclip.stores.table import Table
from onceclip.stores.writer import StoreWriter

SHARD_ROWS = 262144
_OWN = {"unit_rows", "chunk_rows", "complete", "fingerprint", "checksum", "texts", "outputs", "compaction", "columns"}


@dataclass(frozen=True)
class Compaction:
    """What was done. units: shards of embeddings that were written now. reused: those that were there already."""

    store: str
    images: int
    shard_rows: int
    units: int
    reused: int
    bytes: int


def compact(path: str, new: str, shard_rows: int | None = None,
            progress: Callable[[float], None] = lambda fraction: None) -> Compaction:
    """Copy a store and join its finished chunks into shards, each checked against its checksum on the way.

    A copy that was cut short says that it is unfinished; the same call goes on with it.
    shard_rows: rows per shard of embeddings, a multiple of the rows per chunk; None for 262,144, or fewer where rows
        are large or few.
    Raises StoreIncomplete if the store is unfinished, StoreDamaged if it is damaged, StoreError if something else
    stands at `new`.
    """
    source = open_store(path)
    source.require_complete()
    images = source.array("state").shape[0]
    if not source.has("embedding") or not images:
        raise StoreError(f"{path} holds no images: there is nothing to compact")
    outputs = dict(source.outputs)
    if source.has("view") and "view" not in outputs:  # imported before outputs were described
        outputs["view"] = Output(source.array("view").shape[1:], ("view", "dim"))
    chunk_rows = int(source.attributes.get("chunk_rows", source.attributes["unit_rows"]))
    row_bytes = sum(int(np.prod(source.array(name).shape[1:])) for name in ("embedding", *outputs))
    row_bytes *= np.dtype(source.attributes["dtype"]).itemsize
    unit_rows = shard_rows or _shard_rows(chunk_rows, row_bytes, images)
    if unit_rows % chunk_rows:
        raise StoreError(f"{path} has chunks of {chunk_rows} rows, which shards of {unit_rows} rows cannot hold whole: "
                         f"give --shard-rows a multiple of {chunk_rows}")
    made_of = {"fingerprint": source.fingerprint, "unit_rows": unit_rows, "chunk_rows": chunk_rows}
    with write_lock(new):
        writer = _target(source, new, made_of, outputs)
        numbers = range(-(-images // unit_rows))
        todo = [number for number in numbers if
                (writer.store.part("state", slice(number * unit_rows, (number + 1) * unit_rows)) == TODO).any()]
        for done, number in enumerate(todo):
            writer.adopt(number, source)
            progress((done + 1) / len(todo))
        _copy_encoder_and_texts(source, writer)
        others = {name: value for name, value in source.attributes.items() if name not in _OWN}
        writer.update(**others)
        writer.finish(source.column("split"), source.fingerprint)
    return Compaction(new, images, unit_rows, len(todo), len(numbers) - len(todo), images * row_bytes)


def _shard_rows(chunk_rows: int, row_bytes: int, images: int) -> int:
    rows = chunk_rows
    while rows < images and 2 * rows <= SHARD_ROWS and 2 * rows * row_bytes <= SHARD_BYTES:
        rows *= 2
    return rows


def _target(source: Store, new: str, made_of: dict[str, Any], outputs: dict[str, Output]) -> StoreWriter:
    """The copy, begun or gone on with; all its rows are planned, those that are not yet copied as to do."""
    if occupied(new):
        present = open_store(new)
        if present.complete or present.attributes.get("compaction") != made_of:
            raise StoreError(f"{new} exists already and is no unfinished copy of {source.path}: give another path, or "
                             "delete it first")
        writer = StoreWriter.open(new, source.encoder)
    else:
        writer = StoreWriter.create(new, source.encoder, source.dim, source.attributes["dtype"], made_of["unit_rows"],
                                    outputs, chunk_rows=made_of["chunk_rows"], compaction=made_of)
    writer.plan(_planned(source, open_store(new).column("state")), list(source.classes))
    return writer


def _planned(source: Store, before: np.ndarray) -> Iterator[Table]:
    """The table of a copy, in pieces. before: the states of the rows that it has."""
    start, names = 0, [each.name for each in fields(Table)]
    for part in source.parts(*names, size=SHARD_ROWS):
        table = Table(**dict(zip(names, part, strict=True)))
        state = np.full(len(table), TODO, np.int8)
        known = before[start:start + len(table)]
        state[:len(known)] = known
        start += len(table)
        yield replace(table, state=state)


def _copy_encoder_and_texts(source: Store, writer: StoreWriter) -> None:
    with damage(source.path, "encoder"):
        group = source.group.get("encoder")
        arrays = arrays_of(group) if isinstance(group, zarr.Group) else {}
    for name, array in arrays.items():
        with damage(source.path, f"encoder/{name}"):
            dimensions = getattr(array.metadata, "dimension_names", None) or ()
            writer.put_encoder(name, read_whole(array), tuple(dimensions))
    if source.tower_attributes:
        writer.put_tower(source.tower())
    for name in source.texts:
        writer.put_text(name, source.text(name))
