"""The arrays of a store that have a row per image: opened once, and columns read whole or in parts, all checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property, partial
from typing import Any

import numpy as np
import zarr

from onceclip.stores.errors import StoreDamaged
from onceclip.stores.flat_files import FlatArray, row_checksums
from onceclip.stores.rows import Checksums, column_checksum, read_column, read_rows
from onceclip.stores.schema import (
    ATTRIBUTE,
    COLUMNS,
    TABLE_ROWS,
    TODO,
    Column,
    Output,
    checksum_name,
    fits,
    get_array,
    require_chunks,
    require_sound,
    unseal,
)
from onceclip.stores.storage import damage


class Columns:
    """What a store has for every row; `Store` is the whole of it."""

    def __init__(self, path: str, group: zarr.Group, arrays: Mapping[str, zarr.Array] | None = None) -> None:
        """arrays: those under `image/` that are open already, by name; others are opened when they are asked for."""
        self.path = path
        self.group = group
        self.attributes: dict[str, Any] = unseal(group.attrs[ATTRIBUTE])
        require_sound(self.attributes)
        self.encoder: dict[str, Any] = self.attributes["encoder"]
        self.classes: tuple[str, ...] = tuple(self.attributes["classes"])
        self.complete: bool = self.attributes["complete"]
        self.outputs = {name: Output.of(values) for name, values in self.attributes.get("outputs", {}).items()}
        self.arrays = dict(arrays or {})
        self._columns: dict[str, np.ndarray] = {}
        self._flats: dict[str, FlatArray | None] = {}
        self._checksums: dict[str, Checksums | None] = {}
        self._whole: set[str] = set()

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self.attributes["dim"])

    def array(self, name: str) -> zarr.Array:
        """One of the arrays under `image/`.

        Raises KeyError if there is none, StoreDamaged if its description is not that of this store's.
        """
        if name not in self.arrays:
            array = self.opened(f"image/{name}")
            if array is None:
                raise KeyError(name)
            described = self.row_arrays.get(name)
            with damage(self.path, f"image/{name}"):
                if described and (array.shape[1:] != described.shape or not fits(array.dtype, described.dtype)):
                    raise ValueError(f"it has rows of shape {array.shape[1:]} and type {array.dtype}")
            self.arrays[name] = array
        return self.arrays[name]

    def opened(self, name: str) -> zarr.Array | None:
        """An array of the store by its path; None if there is none."""
        with damage(self.path, name):
            try:
                return get_array(self.group, name)
            except KeyError:
                return None

    def column(self, name: str) -> np.ndarray:
        """One of the columns of the table, or of the checksums of rows, read when it is first asked for.

        Raises StoreDamaged if a chunk of it is missing or damaged.
        """
        if name not in self._columns:
            column = self._read(name, 0, self.height)
            with damage(self.path, f"image/{name}"):
                if name in self._recorded and column_checksum([column]) != self._recorded[name]:
                    raise ValueError("its chunks are not in their places")
                self._require_named(name, column)
            self._columns[name] = column
        return self._columns[name]

    def column_checksums(self) -> dict[str, int]:
        """CRC-32C of every column as a whole, made anew in bounded memory: chunks alone do not know their places."""
        names = [name for name, described in self.row_arrays.items() if not described.values and self.has(name)]
        return {name: column_checksum(part for part, in self.parts(name, checked=False)) for name in names}

    @cached_property
    def _recorded(self) -> dict[str, Any]:
        """The checksums of columns that were recorded when the store was finished."""
        recorded = self.attributes.get("columns", {}) if self.complete else {}
        # A store that an older version went on with has those of what it was before.
        return recorded if recorded.get("of") == self.attributes.get("fingerprint") else {}

    def misplaced_columns(self) -> list[str]:
        """Names of the columns whose chunks are not in their places, found out in bounded memory."""
        found = self.column_checksums() if self._recorded else {}
        return [name for name, each in found.items() if self._recorded.get(name, each) != each]

    def part(self, name: str, where: slice) -> np.ndarray:
        """Consecutive rows of a column, which is not kept in memory.

        Raises StoreDamaged if a chunk of them is missing or damaged.
        """
        if name in self._columns:
            return self._columns[name][where]
        start, stop, _ = where.indices(self.height)
        return self._read(name, start, max(start, stop))

    def parts(self, *names: str, size: int = TABLE_ROWS, checked: bool = True) -> Iterator[tuple[np.ndarray, ...]]:
        """Go through some columns in bounded memory, `size` rows of each at a time.

        checked: whether labels have to be of classes that the store names.
        Raises StoreDamaged if a chunk of them is missing or damaged.

        Example:
            >>> sum(int((label == 0).sum()) for label, in store.parts("label"))
            40
        """
        for start in range(0, self.height, size):
            found = {name: self.part(name, slice(start, start + size)) for name in names}
            for name, values in found.items() if checked else ():
                with damage(self.path, f"image/{name}"):
                    self._require_named(name, values)
            yield tuple(found.values())

    def _require_named(self, name: str, values: np.ndarray) -> None:
        if self.complete and name == "label" and (values >= len(self.classes)).any():
            raise ValueError("it has labels of classes that the store does not name")

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        with damage(self.path, f"image/{name}"):
            described = COLUMNS.get(name, COLUMNS["checksum"])
            if not self.height and not self.complete:
                return np.empty((0, *described.shape), described.dtype)
            if described.optional and not self.has(name):
                return np.full(stop - start, described.fill, object)
            array, flat = self.array(name), self.flat(name) if self.complete else None
            if self.complete and flat is None and name not in self._whole:
                require_chunks(array)
                self._whole.add(name)
            column = np.asarray(array[start:stop]) if flat is None else read_column(flat, start, stop)
        if self.complete and name == "state" and (column == TODO).any():
            raise StoreDamaged(f"{self.path} says that it is complete but has rows still to be encoded: take it "
                               "from a copy, or delete it and extract again")
        return column

    def has(self, name: str) -> bool:
        """Whether there is an array of a name under `image/`."""
        with suppress(KeyError):
            self.array(name)
        return name in self.arrays

    @property
    def row_arrays(self) -> dict[str, Column]:
        """What is under `image/` by name, every one with an entry per row."""
        described = dict(COLUMNS)
        for name, output in {"embedding": Output((self.dim,), ("dim",)), **self.outputs}.items():
            described[name] = Column(self.attributes["dtype"], np.nan, True, output.shape, output.dimensions,
                                     values=True)
            described[checksum_name(name)] = COLUMNS["checksum"]
        return described

    @cached_property
    def height(self) -> int:
        """Number of rows that all columns have: while a store grows they are resized one after the other."""
        names = [name for name, described in self.row_arrays.items() if not described.optional or self.has(name)]
        if not self.complete and not all(map(self.has, names)):
            return 0  # killed while the arrays were being made
        with damage(self.path):
            lengths = {self.array(name).shape[0] for name in names}
        if self.complete and len(lengths) > 1:
            raise StoreDamaged(f"{self.path} says that it is complete, but its columns differ in length: take it from "
                               "a copy, or delete it and extract again")
        return min(lengths)

    def checksums_of(self, name: str) -> Checksums | None:
        if name not in self._checksums:
            column = checksum_name(name)
            self._checksums[name] = Checksums(self.array(name), partial(self.column, column)) if self.has(column) \
                else None
        return self._checksums[name]

    def checksums(self, name: str, where: slice) -> np.ndarray:
        """CRC-32C of consecutive rows of the embeddings or of an output: (rows,) uint32."""
        column = checksum_name(name)
        if self.has(column):
            return self.part(column, where)
        with damage(self.path, f"image/{name}"):
            return row_checksums(np.asarray(self.array(name)[where]))

    def flat(self, name: str) -> FlatArray | None:
        if name not in self._flats:
            self._flats[name] = FlatArray.of(self.array(name))
        return self._flats[name]

    def checked(self, name: str, where: slice) -> np.ndarray:
        """Consecutive rows of the embeddings or of an output as they are, bad rows too: (rows, ...).

        Raises StoreDamaged if bytes are missing or do not match their checksum.
        """
        with damage(self.path, f"image/{name}, rows {where.start} to {where.stop - 1}"):
            checksums = self.checksums_of(name)
            if checksums is None:
                require_chunks(self.array(name))
            return read_rows(self.array(name), self.flat(name), np.arange(where.start, where.stop), checksums)[0]
