"""Reading everything that a store holds, and saying what is wrong with it."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice, product
from math import prod

import numpy as np
import zarr
from zarr.core.sync import sync
from zarr.errors import ZarrUserWarning

from onceclip.stores.errors import StoreError
from onceclip.stores.fingerprint import DIGEST_BYTES
from onceclip.stores.flat import FlatArray, row_checksums
from onceclip.stores.lock import write_lock
from onceclip.stores.place import damage
from onceclip.stores.reader import Store, open_store
from onceclip.stores.schema import STORED, TODO, checksum_name
from onceclip.stores.soundness import Problem, equal_content, finite_rows, row_faults, text_faults
from onceclip.stores.writer import StoreWriter

_AHEAD = 64  # reads that are handed to threads before the first of them is done
_UNITS = 16  # whose columns are kept while their chunks are read

Columns = tuple[np.ndarray, np.ndarray | None]  # of one unit: which rows are stored, and their checksums


@dataclass(frozen=True)
class Verification:
    """What was found. faults: bytes or counts that are wrong. remarks: what a user should know. chunks: all read."""

    store: str
    chunks: int
    images: int
    faults: list[Problem] = field(default_factory=list)
    remarks: list[Problem] = field(default_factory=list)


def verify(path: str, progress: Callable[[float], None] = lambda fraction: None,
           workers: int | None = None) -> Verification:
    """Read every chunk of a store once, in parallel, and check it against its checksum and against the others.

    Faults: missing or damaged chunks, stored rows without finite values, columns that disagree, an unfinished
    extraction, text sets of another encoder or without a class. Remarks: equal content in two splits.
    progress: is told the fraction that has been read. workers: threads; None for as many as there are cores.
    Raises NotAStore if there is no store.
    """
    store = open_store(path)
    with damage(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)  # foreign files are no concern of ours
        arrays = [node for _, node in store.group.members(max_depth=None) if isinstance(node, zarr.Array)]
    values = {f"image/{name}" for name, described in store.row_arrays.items() if described.values} | {"image/view"}
    others = [array for array in arrays if array.path not in values]
    faults: list[Problem] = []
    missing = [name for name, described in store.row_arrays.items() if not described.optional and not store.has(name)]
    faults += [Problem(f"image/{name}", "is missing") for name in missing]
    lengths = {name: store.array(name).shape[0] for name in store.row_arrays if store.has(name)}
    if len(set(lengths.values())) > 1:
        faults.append(Problem("image", f"columns differ in length: {lengths}"))
    of_values = [array for array in arrays if array.path in values]
    total = sum(prod(array.cdata_shape) for array in others)
    total += sum(-(-array.shape[0] // array.chunks[0]) for array in of_values)
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        def run(reads: Iterator[Callable[[], list[Problem]]]) -> Iterator[Problem]:
            """The problems of all reads, of which few are under way at any time."""
            nonlocal done
            ahead = deque(pool.submit(read) for read in islice(reads, _AHEAD))
            while ahead:
                yield from ahead.popleft().result()
                ahead.extend(pool.submit(read) for read in islice(reads, 1))
                done += 1
                progress(done / total)

        # The columns first: what they say is what the values are held against.
        faults += run(partial(_chunk, store, array, place) for array in others
                      for place in product(*map(range, array.cdata_shape)))
        sound = not faults
        if sound:
            store.column("state")  # kept, as all that follows asks for it
        faults += run(read for array in of_values for read in _value_reads(store, array, sound))
    remarks: list[Problem] = []
    if not faults:
        faults += [*row_faults(store), *text_faults(store)]
        remarks += equal_content(store)
    return Verification(path, total, lengths.get("state", 0), faults, remarks)


def repair(path: str, found: Verification) -> int:
    """Mark the units that faults spoil as to be done, so that the next extraction makes just those anew.

    Gives the number of units. Raises StoreError for faults that no extraction mends.
    """
    faults = [problem for problem in found.faults if not problem.unfinished]
    beyond = [problem for problem in faults if problem.unit is None]
    if beyond:
        raise StoreError(f"{path}: {beyond[0].where} {beyond[0].what}; encoding again cannot mend this: take the store "
                         "from a copy, or delete it and extract again")
    units = sorted({problem.unit for problem in faults if problem.unit is not None})
    if not units:
        return 0
    with write_lock(path):
        store = open_store(path)
        writer = StoreWriter.open(path, store.encoder)
        writer.update(complete=False)
        for unit in units:
            size = min(writer.unit_rows, store.array("state").shape[0] - unit * writer.unit_rows)
            writer.commit(unit, np.full((size, store.dim), np.nan), np.zeros((size, DIGEST_BYTES), np.uint8),
                          np.full(size, "", object), np.full(size, TODO, np.int8),
                          {name: np.full((size, *output.shape), np.nan) for name, output in store.outputs.items()})
    return len(units)


def _chunk(store: Store, array: zarr.Array, place: tuple[int, ...]) -> list[Problem]:
    """Read one chunk. An array that is written per unit names the unit."""
    name = array.path
    column = store.row_arrays.get(name.removeprefix("image/"))
    unit = place[0] * array.chunks[0] // store.attributes["unit_rows"] if column and column.per_unit else None
    where = f"{name}, chunk {'/'.join(map(str, place))}" if place else name
    try:
        if not _exists(array, place):
            return [Problem(where, "is missing", unit)]
        array.blocks[place] if place else array[...]
    except StoreError:
        raise  # a connection that was lost says nothing about the chunk
    except Exception as error:  # what a decoder raises for damaged bytes is of many types
        return [Problem(where, f"cannot be read ({str(error).splitlines()[0]})", unit)]
    return []


def _exists(array: zarr.Array, place: tuple[int, ...]) -> bool:
    return bool(sync((array.store_path / array.metadata.encode_chunk_key(place)).exists()))


def _value_reads(store: Store, array: zarr.Array, sound: bool) -> Iterator[Callable[[], list[Problem]]]:
    """What reads each chunk of embeddings or of another output, and checks its rows where the columns are sound."""
    name, flat, size = array.path.removeprefix("image/"), FlatArray.of(array), store.attributes["unit_rows"]
    column = checksum_name(name)

    @lru_cache(_UNITS)
    def of_units(first: int, behind: int) -> Columns:
        where = slice(first * size, behind * size)
        return store.part("state", where) == STORED, store.part(column, where) if store.has(column) else None

    for number in range(-(-array.shape[0] // array.chunks[0])):
        yield partial(_values, store, array, flat, number, of_units if sound else None)


def _values(store: Store, array: zarr.Array, flat: FlatArray | None, number: int,
            columns: Callable[[int, int], Columns] | None) -> list[Problem]:
    name, height = array.path, array.chunks[0]
    rows = slice(number * height, min((number + 1) * height, array.shape[0]))
    unit = rows.start // store.attributes["unit_rows"]
    where = f"{name}, chunk {number}{'/0' * (array.ndim - 1)}"
    try:
        if flat:
            values = flat.chunk(number)[:rows.stop - rows.start]
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
    if columns is None:
        return []
    size = store.attributes["unit_rows"]
    stored, checksums = columns(unit, -(-rows.stop // size))
    here = slice(rows.start - unit * size, rows.stop - unit * size)
    stored, faults = stored[here], []
    if checksums is not None and (row_checksums(values) != checksums[here])[stored].any():
        faults.append(Problem(where, f"does not match image/{checksum_name(name.removeprefix('image/'))}", unit))
    finite = finite_rows(values)
    # Other outputs may be missing for some rows, but not be there in part.
    needed = stored if name == "image/embedding" else stored & np.isfinite(values.reshape(len(values), -1)[:, 0])
    if (needed & ~finite).any():
        faults.append(Problem(where, f"{int((needed & ~finite).sum())} stored rows have no finite values", unit))
    return faults
