"""Reading everything that a store holds, and saying what is wrong with it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from math import prod
from shlex import quote
from typing import Any

import numpy as np
import zarr
from zarr.core.sync import sync

from onceclip.errors import one_line
from onceclip.stores.errors import StoreError
from onceclip.stores.flat_files import FlatArray, row_checksums
from onceclip.stores.identity import DIGEST_BYTES
from onceclip.stores.lock import write_lock
from onceclip.stores.rows import finite_rows
from onceclip.stores.schema import REMOVED, SPLITS, STORED, TODO, arrays_of, checksum_name, names_below
from onceclip.stores.storage import damage
from onceclip.stores.store import Store, open_store
from onceclip.stores.text import TOWER
from onceclip.stores.writer import StoreWriter

_MISSING = 2**17  # chunks of an array that are looked for one by one where they are missing
_AHEAD = 64  # reads that are handed to threads before the first of them is done
_UNITS = 16  # whose columns are kept while their chunks are read
_PIECE = 1 << 20  # rows that are compared at once
_LOW = np.uint64(0xFFFFF)  # the bits that hold the number of a split or class


@dataclass(frozen=True)
class Problem:
    """One fault.

    where: array and chunk, or the rows' keys. what: the fault. unit: the unit that it spoils, or None.
    unfinished: whether the next extraction mends it as it is.
    """

    where: str
    what: str
    unit: int | None = None
    unfinished: bool = False


Read = Callable[[], list[Problem]]  # reads one chunk and gives what is wrong with it


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
    extraction, text sets of another encoder. Remarks: equal content in two splits or classes, text sets that lack a
    class, captions of items that are gone.
    progress: is told the fraction that has been read. workers: threads; None for as many as there are cores.
    Raises NotAStore if there is no store.
    """
    store = open_store(path)
    described = store.row_arrays
    faults = [Problem(f"image/{name}", "is missing") for name, each in described.items()
              if not each.optional and not store.has(name)]
    lengths = {name: store.array(name).shape[0] for name in described if store.has(name)}
    if len(set(lengths.values())) > 1:
        faults.append(Problem("image", f"columns differ in length: {lengths}"))
    arrays = {}
    for name, array in _arrays(store).items():
        if claim := _claim(name, array):
            faults.append(claim)
        else:
            arrays[name] = array
    values = {f"image/{name}" for name, each in described.items() if each.values} | {"image/view"}
    columns = [_Column(store, name, array) for name, array in arrays.items() if name not in values]
    rows = [_Values(store, name, array) for name, array in arrays.items() if name in values]
    total, done = sum(each.chunks for each in columns) + sum(each.chunks for each in rows), 0
    with ThreadPoolExecutor(workers) as pool:
        def run(reads: Iterable[Read]) -> list[Problem]:
            nonlocal done
            found = []
            for problems in _in_threads(pool, reads):
                found += problems
                done += 1
                progress(done / total)
            return found

        # The columns first: what they say is what the values are held against.
        faults += run(partial(each.problems, number) for each in columns for number in range(each.chunks))
        if not faults:
            faults += [Problem(f"image/{name}", "has chunks that are not in their places")
                       for name in store.misplaced_columns()]
        sound = not faults
        if sound:
            store.column("state")  # kept, as all that follows asks for it
        faults += run(partial(each.problems, number, sound) for each in rows for number in range(each.chunks))
    remarks: list[Problem] = []
    if not faults:
        faults = [*_row_faults(store), *_text_faults(store)]
        remarks = [*equal_content(store, "split"), *equal_content(store, "label"),
                   *(() if faults else _text_remarks(store))]
    return Verification(path, total, lengths.get("state", 0), faults, remarks)


def _arrays(store: Store) -> dict[str, zarr.Array]:
    """All arrays of a store by their paths; a text set that was cut short while it was written does not count."""
    texts = {f"text/{store.attributes['texts'][name].get('place', name)}" for name in store.texts}
    with damage(store.path):
        return {name: array for name, array in arrays_of(store.group, max_depth=None).items()
                if not name.startswith("text/") or name.rpartition("/")[0] in texts}


def _in_threads(pool: ThreadPoolExecutor, reads: Iterable[Read]) -> Iterator[list[Problem]]:
    """Do reads in their order, of which few are under way at any time."""
    upcoming = iter(reads)
    ahead = deque(pool.submit(read) for read in islice(upcoming, _AHEAD))
    while ahead:
        yield ahead.popleft().result()
        ahead.extend(pool.submit(read) for read in islice(upcoming, 1))


class _Column:
    """An array of which it is enough that every chunk can be read."""

    def __init__(self, store: Store, name: str, array: zarr.Array) -> None:
        self.name, self.array = name, array
        self.chunks = prod(array.cdata_shape)
        column = store.row_arrays.get(name.removeprefix("image/"))
        self.unit_rows = store.attributes["unit_rows"] if column and column.per_unit else None

    def problems(self, number: int) -> list[Problem]:
        """Read one chunk. An array that is written per unit names the unit."""
        array = self.array
        place = tuple(map(int, np.unravel_index(number, array.cdata_shape))) if array.ndim else ()
        unit = place[0] * array.chunks[0] // self.unit_rows if self.unit_rows else None
        where = f"{self.name}, chunk {'/'.join(map(str, place))}" if place else self.name
        return _read(array, place, lambda: array.blocks[place] if place else array[...], where, unit)[1]


class _Values:
    """Embeddings or another output, whose rows are checked where the columns are sound."""

    def __init__(self, store: Store, name: str, array: zarr.Array) -> None:
        self.store, self.name, self.array = store, name, array
        self.chunks = -(-array.shape[0] // array.chunks[0])
        self.flat, self.unit_rows = FlatArray.of(array), store.attributes["unit_rows"]
        self.column = checksum_name(name.removeprefix("image/"))
        self.columns = lru_cache(_UNITS)(self._columns)

    def _columns(self, first: int, behind: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Of some units: which rows are stored, and the checksums of all."""
        where = slice(first * self.unit_rows, behind * self.unit_rows)
        checksums = self.store.part(self.column, where) if self.store.has(self.column) else None
        return self.store.part("state", where) == STORED, checksums

    def problems(self, number: int, sound: bool) -> list[Problem]:
        """Read one chunk of rows. sound: whether the columns are, so that it can be held against them."""
        array, height, flat = self.array, self.array.chunks[0], self.flat
        rows = slice(number * height, min((number + 1) * height, array.shape[0]))
        unit = rows.start // self.unit_rows
        where = f"{self.name}, chunk {number}{'/0' * (array.ndim - 1)}"
        place = None if flat else (rows.start // (array.shards or array.chunks)[0], *(0,) * (array.ndim - 1))
        values, faults = _read(array, place, lambda: np.asarray(array[rows]) if flat is None else
                               flat.chunk(number)[0][:rows.stop - rows.start], where, unit)
        if faults or not sound:
            return faults
        stored, checksums = self.columns(unit, -(-rows.stop // self.unit_rows))
        here = slice(rows.start - unit * self.unit_rows, rows.stop - unit * self.unit_rows)
        stored = stored[here]
        if checksums is not None and (row_checksums(values) != checksums[here])[stored].any():
            faults.append(Problem(where, f"does not match image/{self.column}", unit))
        finite = finite_rows(values)
        # Other outputs may be missing for some rows, but not be there in part.
        needed = (stored if self.name == "image/embedding" else
                  stored & np.isfinite(values.reshape(len(values), -1)[:, 0]))
        if (needed & ~finite).any():
            faults.append(Problem(where, f"{int((needed & ~finite).sum())} stored rows have no finite values", unit))
        return faults


def _read(array: zarr.Array, place: tuple[int, ...] | None, read: Callable[[], Any], where: str,
          unit: int | None) -> tuple[Any, list[Problem]]:
    """Read a chunk; gives what `read` gives, or the problem. place: that of its file, which is looked for first."""
    try:
        if place is not None and not sync((array.store_path / array.metadata.encode_chunk_key(place)).exists()):
            raise FileNotFoundError
        return read(), []
    except StoreError:
        raise  # a connection that was lost says nothing about the chunk
    except FileNotFoundError:
        what = "is missing"
    except Exception as error:  # what a decoder raises for damaged bytes is of many types
        what = f"cannot be read ({one_line(error)})"
    return None, [Problem(where, what, unit)]


def _claim(name: str, array: zarr.Array) -> Problem | None:
    """What there is to say of an array whose shape asks for far more chunks than there are files.

    A store that is being filled lacks chunks too; each of those is looked for, which takes years of a made-up shape.
    """
    asked = prod(-(-size // height) for size, height in zip(array.shape, array.shards or array.chunks, strict=True))
    if asked <= _MISSING:
        return None
    there = len(sync(names_below(array.store_path)))
    return Problem(name, f"has at most {there:,} of its {asked:,} chunks") if asked - there > _MISSING else None


def repair(path: str, found: Verification) -> int:
    """Mark the units that faults spoil as to be done, so that the next extraction makes just those anew.

    Gives the number of units. Raises StoreError for faults that no extraction mends.
    """
    faults = [problem for problem in found.faults if not problem.unfinished]
    beyond = [problem for problem in faults if problem.unit is None]
    if beyond:
        kind, _, name = beyond[0].where.partition(",")[0].partition("/")
        mend = (f"make that set anew by `onceclip text {quote(path)} --name {name.partition('/')[0]} --overwrite` and "
                "the options that it was made by" if kind == "text" else
                "take the store from a copy, or delete it and extract again")
        raise StoreError(f"{path}: {beyond[0].where} {beyond[0].what}; encoding images again cannot mend this: {mend}")
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


def _row_faults(store: Store) -> Iterator[Problem]:
    """Whether states, labels, keys and the fingerprint agree."""
    rows = todo = unknown = 0
    for state, label in store.parts("state", "label", checked=False):
        rows, todo = rows + len(state), todo + int((state == TODO).sum())
        unknown += int((label >= len(store.classes)).sum())
    if todo or not store.complete:
        yield Problem("image/state", f"the extraction is unfinished, {todo} of {rows} images are to be done",
                      unfinished=True)
    if unknown:
        yield Problem("image/label", "names a class that the store does not have")
        return
    content = store.content()
    if store.complete and content.fingerprint != store.fingerprint:
        yield Problem("image", "does not have the content that the store's fingerprint says")
    if content.repeated:
        yield Problem("image/key", f"{content.repeated} stored rows have the key of another")


def _text_faults(store: Store) -> Iterator[Problem]:
    """Whether text sets and the text tower are of the store's encoder, and whole."""
    for name in store.texts:
        try:
            text = store.text(name)
        except StoreError as error:
            yield Problem(f"text/{name}", str(error))
            continue
        if not np.isfinite(text.embedding).all():
            yield Problem(f"text/{name}", "holds values that are not finite")
    try:
        if store.tower_attributes:
            store.tower()
    except StoreError as error:
        yield Problem(TOWER, str(error))


def _text_remarks(store: Store) -> Iterator[Problem]:
    """Classes that a text set lacks, and captions of images or groups that the store does not have any more."""
    for name in store.texts:
        text = store.text(name)
        known = {*text.classes}
        if not text.is_captions and (lacking := [each for each in store.classes if each not in known]):
            yield Problem(f"text/{name}", f"has no prompts for {len(lacking):,} of {len(store.classes):,} classes, "
                          f"such as {lacking[0]!r}")
        if text.is_captions:
            there = store.column("state") != REMOVED
            items = {*store.column("key")[there].tolist(), *store.column("group")[there].tolist()}
            if lost := [each for each in text.classes if each not in items]:
                yield Problem(f"text/{name}", f"has captions of {len(lost):,} items that the store does not have any "
                              f"more, such as {lost[0]!r}")


def equal_content(store: Store, column: str) -> Iterator[Problem]:
    """Equal content in two splits, which draws leave out, or of two classes, of which one must be wrong.

    column: "split" or "label".
    """
    names, what = ((SPLITS, "are the same picture in different splits") if column == "split" else
                   (store.classes, "are the same picture in different classes"))
    places: dict[bytes, dict[int, Any]] = defaultdict(dict)
    suspects = _in_two(store, column)
    if not len(suspects):
        return
    for state, number, digest, key in store.parts("state", column, "digest", "key"):
        marks = _marks(digest)
        placed = (state == STORED) & (number >= 0)
        for row in np.flatnonzero(placed & (suspects[np.searchsorted(suspects, marks) % len(suspects)] == marks)):
            places[bytes(digest[row])].setdefault(int(number[row]), key[row])
    for found in places.values():
        if len(found) > 1:
            yield Problem(" and ".join(f"{key} ({names[number]})" for number, key in sorted(found.items())), what)


def _in_two(store: Store, column: str) -> np.ndarray:
    """Marks of digests that stored rows of different splits or classes have, in order: (n,) uint64, with few others.

    Eight bytes per row are in memory: a digest's mark, with the row's number in bits that every mark has empty.
    """
    marks = np.empty(store.array("state").shape[0], np.uint64)
    size = 0
    for state, number, digest in store.parts("state", column, "digest"):
        placed = (state == STORED) & (number >= 0)
        found = _marks(digest[placed]) | (number[placed].astype(np.uint64) & _LOW)
        marks[size:size + len(found)] = found
        size += len(found)
    marks = marks[:size]
    marks.sort()
    found = [np.empty(0, np.uint64)]
    for start in range(0, size - 1, _PIECE):
        here, following = marks[start:start + _PIECE], marks[start + 1:start + 1 + _PIECE]
        here = here[:len(following)]
        found.append(here[(here != following) & ((here | _LOW) == (following | _LOW))] & ~_LOW)
    return np.unique(np.concatenate(found))


def _marks(digest: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(digest).view(np.uint64)[:, 0] & ~_LOW
