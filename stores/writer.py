"""Writing a store: rows first planned, then filled unit by unit, data before the marker that makes it count."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
import zarr
from zarr.core.sync import sync

from onceclip.stores.errors import StoreDamaged, StoreError, StoreMismatch
from onceclip.stores.flat_files import row_checksums
from onceclip.stores.location import PARTIAL, is_url, local_path
from onceclip.stores.rows import put_rows
from onceclip.stores.schema import (
    ATTRIBUTE,
    COLUMNS,
    KIND,
    SCHEMA,
    TABLE_ROWS,
    TODO,
    UNIT_ROWS,
    Output,
    checksum_name,
    create_array,
    heights,
    is_output_name,
    put_array,
    seal,
)
from onceclip.stores.storage import DiskStore, damage, occupied, open_group, storage
from onceclip.stores.store import Store, open_store
from onceclip.stores.table import Table
from onceclip.stores.text import BESIDE, TOWER, StoredTower, TextSet

_WRITTEN = 3600.0  # seconds within which a file that a process is writing is whole


class StoreWriter:
    """The one process that changes a store.

    The array `image/state` is the marker: a unit's embeddings, digests and reasons are written before its
    states, and every write replaces a whole chunk.
    """

    def __init__(self, store: Store, units: Collection[int] | None = None) -> None:
        self.store = store
        self.group = store.group
        self.unit_rows: int = store.attributes["unit_rows"]
        self.units = units
        self._busy: set[int] = set()
        self._lock = Lock()

    @classmethod
    def create(cls, path: str, encoder: dict[str, Any], dim: int, dtype: str = "float16",
               unit_rows: int = UNIT_ROWS, outputs: Mapping[str, Output] = {}, **attributes: Any) -> Self:
        """Make an empty store.

        encoder: JSON values with `name` and `fingerprint`. dtype: of the stored embeddings and outputs.
        outputs: what there is to be per image beside the embedding. attributes: further ones; `chunk_rows` makes every
        unit shards of chunks of at most that many rows.
        Raises StoreError if something is there already.
        """
        for name in outputs:
            if not is_output_name(name):
                raise StoreError(f"{path}: an output cannot be called {name!r}: give it a name of small letters that "
                                 "no column has")
        if occupied(path):
            raise StoreError(f"{path} exists already: give another path, or delete it first")
        _remove_partial_files(path)
        attributes |= {"schema": SCHEMA, "kind": KIND, "encoder": encoder, "classes": [], "complete": False,
                       "unit_rows": unit_rows, "dim": dim, "dtype": dtype, "texts": {}}
        if outputs:
            attributes["outputs"] = {name: output.as_json() for name, output in outputs.items()}
        # The description goes with the group in one write, so that a store killed right here can be gone on with.
        group = zarr.create_group(storage(str(path), read_only=False), zarr_format=3,
                                  attributes={ATTRIBUTE: seal(attributes)})
        return cls(Store(str(path), group))._with_arrays()

    def _with_arrays(self) -> Self:
        """Create the arrays that are not there yet, after a process that was killed while it made them."""
        store, new = self.store, not self.store.has("state")
        for name, described in store.row_arrays.items():
            if store.has(name) or (described.optional and not new):
                continue
            height, shard = heights(described, self.unit_rows, store.attributes.get("chunk_rows"))
            store.arrays[name] = create_array(
                self.group, f"image/{name}", (0, *described.shape), (height, *described.shape), described.dtype,
                described.fill, ("image", *described.dimensions),
                {"spec": store.outputs[name].spec} if name in store.outputs else None,
                (shard, *described.shape) if shard else None)
        for name in ("logit_scale", "logit_bias"):
            value = store.encoder.get(name)
            if value is not None and not store.complete:
                self.put_encoder(name, np.array(value, np.float64), ())
        return self

    @classmethod
    def open(cls, path: str, encoder: dict[str, Any], units: Collection[int] | None = None, alone: bool = True) -> Self:
        """Open a store to go on with it.

        units: the only ones that this writer may commit; others may then write the rest at the same time. None for
        all, and for whatever else changes a store. alone: whether no other process can be writing units meanwhile, so
        that files which look half written are what a killed one left behind; else only those of an hour ago are.
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
        if units is None:
            _remove_partial_files(path, 0 if alone else _WRITTEN)
        writer = cls(Store(store.path, open_group(path, mode="r+")), units)
        return writer if units is not None else writer._with_arrays()

    def plan(self, tables: Table | Iterable[Table], classes: Sequence[str]) -> None:
        """Say which rows the store is to have; those of state TODO are to be filled.

        The store counts as unfinished from here until `finish`. States go first, so that no row that is
        about to change still counts as stored.
        tables: all rows; or, where these are too many for memory, consecutive pieces, best of whole units and of a
            multiple of 65,536 rows.
        """
        self.update(classes=[*classes], complete=False)
        rows = 0
        for table in [tables] if isinstance(tables, Table) else tables:
            where, rows = slice(rows, rows + len(table)), rows + len(table)
            self._put_column("state", where, table.state)
            if table.group.any() and not self.store.has("group"):
                # A store from before there were groups; with its rows from the start, so that it never seems shorter.
                column, height = COLUMNS["group"], self.store.array("state").shape[0]
                create_array(self.group, "image/group", (height,), (TABLE_ROWS,), column.dtype, column.fill, ("image",))
            for name in Table.__dataclass_fields__:
                if name != "state" and self.store.has(name):
                    self._put_column(name, where, getattr(table, name))
        for name in self.store.row_arrays:
            if self.store.has(name):
                self._resize(name, rows)

    def _put_column(self, name: str, where: slice, values: np.ndarray) -> None:
        array = self.store.array(name)
        self._resize(name, max(where.stop, array.shape[0]))
        array[where] = values

    def _resize(self, name: str, rows: int) -> None:
        array = self.store.array(name)
        if array.shape[0] != rows:
            array.resize((rows, *array.shape[1:]))

    def _where(self, number: int) -> slice:
        rows = self.store.array("embedding").shape[0]
        if not 0 <= number * self.unit_rows < rows:
            raise StoreError(f"{self.store.path} has no unit {number}: its {rows} rows are units of {self.unit_rows}")
        return slice(number * self.unit_rows, min((number + 1) * self.unit_rows, rows))

    def unit(self, number: int) -> tuple[slice, np.ndarray, dict[str, np.ndarray]]:
        """The rows of a unit, their present embeddings and their present outputs (NaN where there are none)."""
        where = self._where(number)

        def read(name: str) -> np.ndarray:
            with damage(self.store.path, f"image/{name}, unit {number}"):
                return np.asarray(self.store.array(name)[where])

        return where, read("embedding"), {name: read(name) for name in self.store.outputs}

    def commit(self, number: int, embedding: np.ndarray, digest: np.ndarray, reason: np.ndarray, state: np.ndarray,
               outputs: Mapping[str, np.ndarray] = {}) -> None:
        """Write one whole unit.

        embedding: (rows of the unit, dim), NaN where the state is not STORED. digest: (rows, 16).
        reason: (rows,) text. state: (rows,). outputs: all that the store has, (rows, ...) each, NaN where a row has
        no value.
        Raises StoreError if the unit is not whole, not this writer's, or being written by another thread.
        """
        where = self._where(number)
        if set(outputs) != set(self.store.outputs):
            raise StoreError(f"unit {number} was given outputs {', '.join(outputs) or 'none'}; the store has "
                             f"{', '.join(self.store.outputs) or 'none'}")
        values = {"embedding": embedding, **outputs}
        shapes = {name: (where.stop - where.start, *self.store.row_arrays[name].shape) for name in values}
        for name, given in (*values.items(), ("state", state), ("digest", digest), ("reason", reason)):
            expected = shapes.get(name, shapes["embedding"][:1])
            if np.shape(given)[:len(expected)] != expected:
                raise StoreError(f"unit {number} has {expected[0]} rows, {len(given)} were given" if
                                 len(given) != expected[0] else
                                 f"unit {number}: {name} has shape {np.shape(given)}, not {expected}")
        with self._alone(number):
            stored = {name: np.asarray(given, self.store.array(name).dtype) for name, given in values.items()}
            checksums = {checksum_name(name): row_checksums(each) for name, each in stored.items()}
            self._settle(where, {**stored, **checksums, "digest": digest, "reason": reason}, state)

    def adopt(self, number: int, source: Store) -> None:
        """Write one unit as another store of the same rows has it, in bounded memory.

        Raises StoreDamaged if they do not match their checksums.
        """
        where = self._where(number)
        with self._alone(number):
            for name in ("embedding", *self.store.outputs):
                array = self.store.array(name)
                height = (array.shards or array.chunks)[0]
                for start in range(where.start, where.stop, height):
                    rows = slice(start, min(start + height, where.stop))
                    put_rows(array, rows, source.checked(name, rows))
            checksums = {checksum_name(name): source.checksums(name, where)
                         for name in ("embedding", *self.store.outputs)}
            self._settle(where, {**checksums, "digest": source.part("digest", where),
                                 "reason": source.part("reason", where)}, source.part("state", where))

    def _settle(self, where: slice, values: Mapping[str, np.ndarray], state: np.ndarray) -> None:
        """Write what a unit still lacks, array by array, and at last the states, which make it count.

        The arrays are written at the same time: most of it is waiting until the disk has each file.
        """
        arrays = {name: self.store.array(name) for name in values}
        with ThreadPoolExecutor(len(arrays)) as pool:
            for written in [pool.submit(put_rows, arrays[name], where, each) for name, each in values.items()]:
                written.result()
        self._flush()
        put_rows(self.store.array("state"), where, state)

    def _flush(self) -> None:
        """Have what was written reach the disk before what follows: if the power fails, the last unit is lost at most.

        Object stores keep what they have taken.
        """
        if isinstance(self.group.store, DiskStore):
            self.group.store.flush()

    @contextmanager
    def _alone(self, number: int) -> Iterator[None]:
        """Have a unit for this thread."""
        if self.units is not None and number not in self.units:
            raise StoreError(f"unit {number} of {self.store.path} belongs to another writer: commit only what this one "
                             "was opened for")
        with self._lock:
            if number in self._busy:
                raise StoreError(f"unit {number} of {self.store.path} is being written by another thread: give every "
                                 "unit to one")
            self._busy.add(number)
        try:
            yield
        finally:
            self._busy.discard(number)

    def put_encoder(self, name: str, values: np.ndarray, dimensions: tuple[str, ...] = ("width", "dim")) -> None:
        """Store an array of the encoder's own, such as its projection matrix (width, dim)."""
        self._require_all()
        put_array(self.group, f"encoder/{name}", np.asarray(values), np.nan, dimensions)

    def put_tower(self, tower: StoredTower) -> None:
        """Store the text tower of the encoder, in place of one that is there.

        A process that is killed meanwhile leaves none: it can be made again at any time.
        Raises StoreMismatch if another encoder made the store.
        """
        self._require_all()
        self.store.require_encoder(tower.encoder, "the text tower")
        tower.write(self.group.create_group(TOWER, overwrite=True))
        self._flush()
        self._reopen()

    def put_text(self, name: str, text: TextSet) -> None:
        """Store a text set under a name, in place of one that has it, which counts until the new one is whole.

        The store's attributes say which set counts, and keep what a first one is made from while it is being written.
        """
        texts = self.store.attributes["texts"]
        entry, beside = {"source": text.source, "fingerprint": text.fingerprint}, f"{name}{BESIDE}"
        if texts.get(name, {}).get("fingerprint") is None:
            self.update(texts={**texts, name: {**entry, "fingerprint": None}})
        elif "place" not in texts[name]:
            # The set that is there counts until the new one is whole; that one counts while it gets its own place.
            text.write(self.group.create_group(f"text/{beside}", overwrite=True))
            self.update(texts={**texts, name: {**entry, "place": beside}})
        text.write(self.group.create_group(f"text/{name}", overwrite=True))
        self.update(texts={**texts, name: entry})
        self._remove_beside(name)

    def settle_text(self, name: str) -> None:
        """Finish the replacement of a text set that a killed process left half done."""
        if "place" in self.store.attributes["texts"][name]:
            self.put_text(name, self.store.text(name))
        self._remove_beside(name)

    def _remove_beside(self, name: str) -> None:
        """Delete what stands beside a text set, also the files that a process killed while it deleted them left."""
        sync((self.group.store_path / f"text/{name}{BESIDE}").delete_dir())

    def finish(self, split: np.ndarray, expected: str | None = None, **attributes: Any) -> Store:
        """Record the splits (rows,) and declare the store complete.

        expected: the fingerprint that its content is to have, of a copy. attributes: further ones of the store.
        Raises StoreError if rows are still to be encoded, StoreDamaged if the content is not what is expected.
        """
        todo = int((np.asarray(self.store.array("state")[...]) == TODO).sum())
        if todo:
            raise StoreError(f"{todo} rows are still to be encoded")
        for name in self.store.texts:
            self.settle_text(name)
        self.store.array("split")[...] = split
        self.update(**attributes)
        found = self.store.content().fingerprint
        if expected not in (None, found):
            raise StoreDamaged(f"{self.store.path} has content {found} in place of {expected}: run `onceclip verify` "
                               "on what it was copied from")
        self.update(complete=True, fingerprint=found, compaction=None,
                    columns={"of": found, **self.store.column_checksums()})
        return open_store(self.store.path)

    def update(self, **attributes: Any) -> None:
        """Change some of the group's attributes; None takes one away."""
        self._require_all()
        changed = {**self.store.attributes, **attributes}
        self._flush()
        self.group.attrs[ATTRIBUTE] = seal({name: value for name, value in changed.items() if value is not None})
        self._flush()
        self._reopen()

    def _reopen(self) -> None:
        """Read the store's attributes and columns anew; its arrays, which this writer alone resizes, stay open."""
        self.store = Store(self.store.path, self.group, self.store.arrays)

    def _require_all(self) -> None:
        if self.units is not None:
            raise StoreError(f"{self.store.path} was opened to write some units only: leave the rest to one that was "
                             "opened for all")


def _remove_partial_files(path: str, age: float = 0) -> None:
    """Delete what a process was writing on a local disk when it was killed, at least so many seconds ago."""
    if not is_url(path):
        for leftover in Path(local_path(path)).rglob(f"*{PARTIAL}"):
            with suppress(FileNotFoundError):  # whole in the meantime
                if not age or time.time() - leftover.stat().st_mtime > age:
                    leftover.unlink()
