"""Shares of the verification of a store: some chunks of one array, or what concerns the store as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from math import prod
from typing import ClassVar

import numpy as np
import zarr
from zarr.core.sync import sync

from onceclip.stores.errors import StoreError
from onceclip.stores.flat import FlatArray, row_checksums
from onceclip.stores.reader import Store, open_store
from onceclip.stores.schema import STORED, checksum_name
from onceclip.stores.soundness import Problem, equal_content, finite_rows, row_faults, text_faults

_BYTES, _CHUNKS = 1 << 26, 256  # at most, of a share that another process checks
_THREADS = 4  # that read a share there: storage behind a URL makes each of them wait
_UNITS = 16  # whose columns are kept while their chunks are read

Columns = tuple[np.ndarray, np.ndarray | None]  # of one unit: which rows are stored, and their checksums


@dataclass(frozen=True)
class Share:
    """Chunks `first` to `stop` of an array. number: its place among all shares.

    sound: for embeddings and other outputs, whether the columns are, so that these can be held against them; None for
    columns and all other arrays.
    """

    store: str
    array: str
    first: int
    stop: int
    number: int
    sound: bool | None = None

    def __str__(self) -> str:
        return f"chunks {self.first} to {self.stop - 1} of {self.array} in {self.store}"


@dataclass(frozen=True)
class Whole:
    """Whether rows, texts and the fingerprint of a store agree."""

    store: str
    number: ClassVar[int] = -1

    def __str__(self) -> str:
        return f"the columns of {self.store}"


@dataclass(frozen=True)
class Checked:
    """What was found in a share, by its number. chunks: how many it has."""

    number: int
    chunks: int
    faults: list[Problem] = field(default_factory=list)
    remarks: list[Problem] = field(default_factory=list)


def chunks_of(array: zarr.Array, values: bool) -> int:
    """How many chunks are read of an array. values: whether it has embeddings or another output, in chunks of rows."""
    return -(-array.shape[0] // array.chunks[0]) if values else prod(array.cdata_shape)


def shares_of(store: str, arrays: Mapping[str, zarr.Array], numbers: Iterator[int], large: bool,
              sound: bool | None = None) -> Iterator[Share]:
    """All chunks of some arrays in shares: of one chunk each, or large ones, for processes elsewhere.

    arrays: by their names in the store.
    """
    for name, array in arrays.items():
        total = chunks_of(array, sound is not None)
        size = max(1, prod(array.chunks) * array.dtype.itemsize)
        step = min(_CHUNKS, max(1, _BYTES // size)) if large else 1
        for first in range(0, total, step):
            yield Share(store, name, first, min(first + step, total), next(numbers), sound)


def check(task: Share | Whole) -> Checked:
    """Check a share of a store that another process verifies.

    Raises NotAStore if this one does not reach it.
    """
    return Checker(open_store(task.store), _THREADS)(task)


class Checker:
    """Checks shares of one store, from any number of threads. threads: that it reads a share with."""

    def __init__(self, store: Store, threads: int = 1) -> None:
        self.store, self.threads = store, threads
        self._of_array = lru_cache(None)(self._opened)

    def __call__(self, task: Share | Whole) -> Checked:
        """Check one share."""
        if isinstance(task, Whole):
            faults = [*row_faults(self.store), *text_faults(self.store)]
            return Checked(task.number, 0, faults, list(equal_content(self.store)))
        reads, chunks = self._of_array(task.array, task.sound), range(task.first, task.stop)
        if self.threads == 1 or len(chunks) == 1:
            found = list(map(reads.problems, chunks))
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                found = list(pool.map(reads.problems, chunks))
        return Checked(task.number, len(chunks), list(chain.from_iterable(found)))

    def _opened(self, name: str, sound: bool | None) -> _Plain | _Values:
        array = self.store.group[name]
        assert isinstance(array, zarr.Array)
        return _Plain(self.store, name, array) if sound is None else _Values(self.store, name, array, sound)


class _Plain:
    """An array of which it is enough that every chunk can be read."""

    def __init__(self, store: Store, name: str, array: zarr.Array) -> None:
        self.name, self.array, self.size = name, array, store.attributes["unit_rows"]
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


class _Values:
    """Embeddings or another output, whose rows are checked where the columns are sound."""

    def __init__(self, store: Store, name: str, array: zarr.Array, sound: bool) -> None:
        self.store, self.name, self.array, self.sound = store, name, array, sound
        self.flat, self.size = FlatArray.of(array), store.attributes["unit_rows"]
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
