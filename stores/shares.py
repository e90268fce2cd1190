"""Reading the arrays of a store chunk by chunk, and saying what is wrong with each chunk."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np
import zarr
from zarr.core.sync import sync

from onceclip.stores.errors import StoreError
from onceclip.stores.flat import FlatArray, row_checksums
from onceclip.stores.reader import Store
from onceclip.stores.schema import STORED, checksum_name
from onceclip.stores.soundness import Problem, finite_rows

_UNITS = 16  # whose columns are kept while their chunks are read

Columns = tuple[np.ndarray, np.ndarray | None]  # of one unit: which rows are stored, and their checksums


class Plain:
    """An array of which it is enough that every chunk can be read. chunks: how many it has."""

    def __init__(self, store: Store, name: str, array: zarr.Array) -> None:
        self.name, self.array, self.size = name, array, store.attributes["unit_rows"]
        self.chunks = prod(array.cdata_shape)
        column = store.row_arrays.get(name.removeprefix("image/"))
        self.per_unit = bool(column and column.per_unit)

    def problems(self, number: int) -> list[Problem]:
        """Read one chunk. An array that is written per unit names the unit."""
        array = self.array
        place = tuple(map(int, np.unravel_index(number, array.cdata_shape))) if array.ndim else ()
        unit = place[0] * array.chunks[0] // self.size if self.per_unit else None
        where = f"{self.name}, chunk {'/'.join(map(str, place))}" if place else self.name
        try:
            if not _exists(array, place):
                return [Problem(where, "is missing", unit)]
            array.blocks[place] if place else array[...]
        except StoreError:
            raise  # a connection that was lost says nothing about the chunk
        except Exception as error:  # what a decoder raises for damaged bytes is of many types
            return [Problem(where, f"cannot be read ({str(error).splitlines()[0]})", unit)]
        return []


class Values:
    """Embeddings or another output, in chunks of rows. chunks: how many are read.

    sound: whether the columns are known to be, so that the rows are held against them.
    """

    def __init__(self, store: Store, name: str, array: zarr.Array) -> None:
        self.store, self.name, self.array, self.sound = store, name, array, False
        self.flat, self.size = FlatArray.of(array), store.attributes["unit_rows"]
        self.chunks = -(-array.shape[0] // array.chunks[0])
        self.column = checksum_name(name.removeprefix("image/"))
        self.columns = lru_cache(_UNITS)(self._columns)

    def _columns(self, first: int, behind: int) -> Columns:
        where = slice(first * self.size, behind * self.size)
        checksums = self.store.part(self.column, where) if self.store.has(self.column) else None
        return self.store.part("state", where) == STORED, checksums

    def problems(self, number: int) -> list[Problem]:
        """Read one chunk of rows."""
        name, array, size = self.name, self.array, self.size
        height = array.chunks[0]
        rows = slice(number * height, min((number + 1) * height, array.shape[0]))
        unit = rows.start // size
        where = f"{name}, chunk {number}{'/0' * (array.ndim - 1)}"
        try:
            if self.flat:
                values = self.flat.chunk(number)[:rows.stop - rows.start]
            elif not _exists(array, (number * height // (array.shards or array.chunks)[0],) + (0,) * (array.ndim - 1)):
                raise FileNotFoundError
            else:
                values = np.asarray(array[rows])
        except StoreError:
            raise
        except FileNotFoundError:
            return [Problem(where, "is missing", unit)]
        except Exception as error:
            return [Problem(where, f"cannot be read ({str(error).splitlines()[0]})", unit)]
        if not self.sound:
            return []
        stored, checksums = self.columns(unit, -(-rows.stop // size))
        here = slice(rows.start - unit * size, rows.stop - unit * size)
        stored, faults = stored[here], []
        if checksums is not None and (row_checksums(values) != checksums[here])[stored].any():
            faults.append(Problem(where, f"does not match image/{self.column}", unit))
        finite = finite_rows(values)
        # Other outputs may be missing for some rows, but not be there in part.
        needed = stored if name == "image/embedding" else stored & np.isfinite(values.reshape(len(values), -1)[:, 0])
        if (needed & ~finite).any():
            faults.append(Problem(where, f"{int((needed & ~finite).sum())} stored rows have no finite values", unit))
        return faults


def _exists(array: zarr.Array, place: tuple[int, ...]) -> bool:
    return bool(sync((array.store_path / array.metadata.encode_chunk_key(place)).exists()))
