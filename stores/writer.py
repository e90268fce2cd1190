"""Writing a store: rows first planned, then filled unit by unit, data before the marker that makes it count."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr

from onceclip.stores.errors import StoreError, StoreMismatch
from onceclip.stores.flat import row_checksums
from onceclip.stores.reader import PARTIAL, Store, Table, damage, occupied, open_group, open_store
from onceclip.stores.remote import is_remote, local_path, storage
from onceclip.stores.schema import (
    ATTRIBUTE,
    COLUMNS,
    KIND,
    SCHEMA,
    TABLE_ROWS,
    TODO,
    UNIT_ROWS,
    create_array,
    put_array,
    seal,
)
from onceclip.stores.text import TextSet


class StoreWriter:
    """The one process that changes a store.

    The array `image/state` is the marker: a unit's embeddings, digests and reasons are written before its
    states, and every write replaces a whole chunk.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.group = store.group
        self.unit_rows: int = store.attributes["unit_rows"]

    @classmethod
    def create(cls, path: str, encoder: dict[str, Any], dim: int, dtype: str = "float16",
               unit_rows: int = UNIT_ROWS) -> Self:
        """Make an empty store.

        encoder: JSON values with `name` and `fingerprint`. dtype: of the stored embeddings.
        Raises StoreError if something is there already.
        """
        if occupied(path):
            raise StoreError(f"{path} exists already: give another path, or delete it first")
        attributes = {"schema": SCHEMA, "kind": KIND, "encoder": encoder, "classes": [], "complete": False,
                      "unit_rows": unit_rows, "dim": dim, "dtype": dtype, "texts": {}}
        # The description goes with the group in one write, so that a store killed right here can be gone on with.
        group = zarr.create_group(storage(str(path), read_only=False), zarr_format=3,
                                  attributes={ATTRIBUTE: seal(attributes)})
        return cls(Store(str(path), group))._with_arrays()

    def _with_arrays(self) -> Self:
        """Create the arrays that are not there yet, after a process that was killed while it made them."""
        attributes, group = self.store.attributes, self.group
        dim, unit_rows = attributes["dim"], attributes["unit_rows"]
        for name, column in COLUMNS.items():
            if f"image/{name}" not in group:
                height = unit_rows if column.per_unit else TABLE_ROWS
                create_array(group, f"image/{name}", (0, *column.shape), (height, *column.shape), column.dtype,
                             column.fill, ("image", *column.dimensions))
        if "image/embedding" not in group:
            create_array(group, "image/embedding", (0, dim), (unit_rows, dim), attributes["dtype"], np.nan,
                         ("image", "dim"))
        for name in ("logit_scale", "logit_bias"):
            value = attributes["encoder"].get(name)
            if value is not None and not self.store.complete:
                put_array(group, f"encoder/{name}", np.array(value, np.float64), np.nan, ())
        return self

    @classmethod
    def open(cls, path: str, encoder: dict[str, Any]) -> Self:
        """Open a store to go on with it.

        Raises StoreMismatch if another encoder made it.
        """
        store = open_store(path)
        mine = store.encoder
        if mine["fingerprint"] != encoder["fingerprint"]:
            differing = sorted(name for name in {*mine, *encoder} - {"fingerprint"}
                               if mine.get(name) != encoder.get(name))
            raise StoreMismatch(f"{path} was made by encoder {mine['name']} ({mine['fingerprint']}), not by "
                                f"{encoder['name']} ({encoder['fingerprint']}); they differ in {', '.join(differing)}: "
                                "extract into another store, or name the encoder that made this one")
        if not is_remote(path):
            for leftover in Path(local_path(path)).rglob(f"*{PARTIAL}"):
                leftover.unlink(missing_ok=True)
        return cls(Store(store.path, open_group(path, mode="r+")))._with_arrays()

    def plan(self, table: Table, classes: list[str]) -> None:
        """Say which rows the store is to have; those of state TODO are to be filled.

        The store counts as unfinished from here until `finish`. States go first, so that no row that is
        about to change still counts as stored.
        """
        self.update(classes=classes, complete=False)
        self._resize("state", len(table))
        self.store.array("state")[...] = table.state
        self._resize("embedding", len(table))
        self._resize("checksum", len(table))
        for name in ("key", "label", "split", "digest", "reason"):
            self._resize(name, len(table))
            self.store.array(name)[...] = getattr(table, name)

    def _resize(self, name: str, rows: int) -> None:
        array = self.store.array(name)
        if array.shape[0] != rows:
            array.resize((rows, *array.shape[1:]))

    def _where(self, number: int, array: zarr.Array) -> slice:
        return slice(number * self.unit_rows, min((number + 1) * self.unit_rows, array.shape[0]))

    def unit(self, number: int) -> tuple[slice, np.ndarray]:
        """The rows of a unit, and their present embeddings (NaN where there are none)."""
        array = self.store.array("embedding")
        where = self._where(number, array)
        with damage(self.store.path, f"image/embedding, unit {number}"):
            return where, np.asarray(array[where])

    def commit(self, number: int, embedding: np.ndarray, digest: np.ndarray, reason: np.ndarray,
               state: np.ndarray) -> None:
        """Write one whole unit.

        embedding: (rows of the unit, dim), NaN where the state is not STORED. digest: (rows, 16).
        reason: (rows,) text. state: (rows,).
        """
        array = self.store.array("embedding")
        where = self._where(number, array)
        if len(state) != where.stop - where.start:
            raise StoreError(f"unit {number} has {where.stop - where.start} rows, {len(state)} were given")
        values = np.asarray(embedding, array.dtype)
        array[where] = values
        self.store.array("checksum")[where] = row_checksums(values)
        self.store.array("digest")[where] = digest
        self.store.array("reason")[where] = reason
        self.store.array("state")[where] = state

    def put_views(self, views: np.ndarray) -> None:
        """Store augmented versions of all images: (rows, views, dim), raw, NaN where a row has none."""
        array = create_array(self.group, "image/view", views.shape, (self.unit_rows, *views.shape[1:]),
                             str(views.dtype), np.nan, ("image", "view", "dim"))
        array[...] = views

    def put_text(self, name: str, text: TextSet) -> None:
        """Store a text set under a name, in place of one that has it.

        The store's attributes say which set counts, and keep what it is made from while it is being written.
        """
        texts = self.store.attributes["texts"]
        self.update(texts={**texts, name: {"source": text.source, "fingerprint": None}})
        text.write(self.group.create_group(f"text/{name}", overwrite=True))
        self.update(texts={**texts, name: {"source": text.source, "fingerprint": text.fingerprint}})

    def finish(self, split: np.ndarray, **attributes: Any) -> Store:
        """Record the splits (rows,) and declare the store complete."""
        state = np.asarray(self.store.array("state")[...])
        if (state == TODO).any():
            raise StoreError(f"{int((state == TODO).sum())} rows are still to be encoded")
        self.store.array("split")[...] = split
        self.update(**attributes)
        self.update(complete=True, fingerprint=self.store.content_fingerprint())
        return open_store(self.store.path)

    def update(self, **attributes: Any) -> None:
        """Change some of the group's attributes."""
        self.group.attrs[ATTRIBUTE] = seal({**self.store.attributes, **attributes})
        self.store = Store(self.store.path, self.group)
