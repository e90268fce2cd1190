"""The one loop that fills a store, unit by unit, and what is left to encode of one that was begun."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

import numpy as np

from onceclip.pipeline.decoding.decoders import Decoders
from onceclip.pipeline.encoders import Encoder
from onceclip.pipeline.encoders.images import EMBEDDING, Encoded, EncoderThreads, encode
from onceclip.pipeline.extraction.outputs import TOKEN, VIEW, rows_without_views, views_of
from onceclip.pipeline.sources import Content
from onceclip.stores import StoreWriter, open_store
from onceclip.stores.schema import BAD, REMOVED, SPLITS, STORED, TODO
from onceclip.stores.storage import damage

FLUSH_SECONDS = 30.0  # at most this much encoding is lost when the process is killed


@dataclass(frozen=True)
class Remaining:
    """What is left to encode. rows: which, in order. total: how many rows there are with those that are done.

    views: whether their views are to be encoded, or else the images.
    """

    rows: np.ndarray
    total: int
    views: bool = False


@dataclass(frozen=True)
class Unit:
    """A unit of a store by its number, and its rows that are to be encoded: (row, image file) each."""

    number: int
    images: tuple[tuple[int, Content], ...]


@dataclass(frozen=True)
class Progress:
    """Rows that are through, how many of them are bad, and which were interrupted: (row, reason) each."""

    rows: int
    bad: int
    interrupted: tuple[tuple[int, str], ...] = ()


def rows_to_embed(writer: StoreWriter) -> Remaining:
    """Rows without an embedding, of the units that a writer has."""
    state, size = writer.store.array("state"), writer.unit_rows
    with damage(writer.store.path, "image/state"):
        if writer.units is None:
            states = np.asarray(state[...])
            return Remaining(np.flatnonzero(states == TODO), int((states != REMOVED).sum()))
        rows, total = [np.empty(0, np.int64)], 0
        for number in sorted(writer.units):  # a worker has one of maybe a million
            states = np.asarray(state[number * size:(number + 1) * size])
            rows.append(number * size + np.flatnonzero(states == TODO))
            total += int((states != REMOVED).sum())
    return Remaining(np.concatenate(rows), total)


def rows_to_view(writer: StoreWriter, split: np.ndarray) -> Remaining:
    """Stored rows that are to have views and have none, of the units that a writer has. split: (rows,)."""
    store = open_store(writer.store.path)
    made = views_of(store)
    if made is None:
        return Remaining(np.empty(0, np.int64), 0, views=True)
    chosen = (store.column("state") == STORED) & np.isin(split, [SPLITS.index(name) for name in made[1]])
    if writer.units is not None:
        chosen &= np.isin(np.arange(len(chosen)) // writer.unit_rows, list(writer.units))
    return Remaining(np.flatnonzero(chosen & rows_without_views(store)), int(chosen.sum()), views=True)


def units_of(writer: StoreWriter, remaining: Remaining, contents: Mapping[int, Content]) -> Iterator[Unit]:
    """The units of some rows, made as they are taken. contents: row to image file."""
    size = writer.unit_rows
    last = int(remaining.rows[-1]) // size if len(remaining.rows) else -1
    edges = np.searchsorted(remaining.rows, size * np.arange(last + 2))
    for number, (start, stop) in enumerate(pairwise(edges.tolist())):
        if start < stop:
            yield Unit(number, tuple((row, contents[row]) for row in remaining.rows[start:stop].tolist()))


def encode_units(encoder: Encoder, decoders: Decoders, writer: StoreWriter, units: Iterable[Unit], images: int,
                 views: bool, batch_size: int = 0, threads: int = 0,
                 flush: bool = True) -> Generator[Progress, None, None]:
    """Encode units in their order, and write each when it is full; gives what is done as it goes on.

    Decoding runs ahead and batches go on from one unit into the next.
    images: how many there are in all units. views: whether their views are encoded, or else the images. batch_size:
    images per pass, 0 for what suits the encoder. threads: encoder threads on a CPU, 0 for one per core. flush: whether
    units that are not full yet are written now and then.
    """
    outputs = writer.store.outputs
    found = views_of(writer.store) if views else None
    crops = found[0] if found else None
    names = (EMBEDDING,) if crops else (EMBEDDING, *(name for name in outputs if name != VIEW))
    tokens = outputs[TOKEN].spec["tokens"] if TOKEN in outputs else "last"
    with (EncoderThreads(encoder, threads) as pool, UnitBuffers(writer, flush) as buffers,
          closing(encode(decoders, pool, _images_of(units, buffers), images, batch_size, names, tokens,
                         crops)) as batches):
        for encoded in batches:
            bad = buffers.put_views(encoded, crops.plain) if crops else buffers.put(encoded)
            yield Progress(len(encoded.rows), bad, tuple((int(encoded.rows[place]), encoded.reasons[place])
                                                         for place in encoded.interrupted))


def _images_of(units: Iterable[Unit], buffers: UnitBuffers) -> Iterator[tuple[int, Content]]:
    """The images of some units; the buffers learn of a unit before they get its rows."""
    for unit in units:
        buffers.expect(unit.number, len(unit.images))
        yield from unit.images


@dataclass
class _Columns:
    """The columns of a unit in memory. left: rows that are still to come."""

    where: slice
    embedding: np.ndarray
    outputs: dict[str, np.ndarray]
    digest: np.ndarray
    reason: np.ndarray
    state: np.ndarray
    left: int
    written: float = field(default_factory=time.monotonic)


class UnitBuffers:
    """Takes what was encoded; a unit is written, in the background, as soon as all its rows have come.

    When the `with` block ends, however it does, what has come is written too: the next run goes on behind it.
    """

    def __init__(self, writer: StoreWriter, flush: bool = True) -> None:
        """flush: write units that are not full yet now and then, too."""
        self.writer, self.flush = writer, flush
        self._expected: dict[int, int] = {}
        self._units: dict[int, _Columns] = {}
        self._pool = ThreadPoolExecutor(1, "write")
        self._writing: deque[Future[None]] = deque()
        self._store = open_store(writer.store.path)  # the writer's own may hold columns from before its last commits
        self._dtype = np.dtype(writer.store.attributes["dtype"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._pool:
            for unit in self._units.values():
                self._commit(unit)
            while self._writing:
                self._writing.popleft().result()

    def expect(self, number: int, rows: int) -> None:
        """Learn how many rows of a unit will come, before the first of them does."""
        self._expected[number] = rows

    def put(self, encoded: Encoded) -> int:
        """Take rows that were encoded from the beginning; gives how many are bad."""
        reasons, source = self._check(encoded, "the encoder gave values")
        for unit, picked, here in self._by_unit(encoded):
            good = reasons[picked] == ""
            for name, array in {EMBEDDING: unit.embedding, **unit.outputs}.items():
                array[here] = np.nan
                if name in encoded.values:
                    array[here[good]] = encoded.values[name][source[picked[good]]]
            unit.digest[here] = encoded.digests[picked]
            self._finish(unit, here, reasons[picked])
        return int((reasons != "").sum()) - len(encoded.interrupted)

    def put_views(self, encoded: Encoded, plain: bool) -> int:
        """Take the views of rows that are stored; gives how many rows are bad.

        plain: whether view 0 is the embedding that is there.
        """
        reasons, source = self._check(encoded, "the encoder gave values of a view")
        for unit, picked, here in self._by_unit(encoded):
            changed = (unit.digest[here] != encoded.digests[picked]).any(axis=1) & (reasons[picked] == "")
            reasons[picked[changed]] = "its file changed during the extraction"
            good = reasons[picked] == ""
            if good.any():
                views = encoded.values[EMBEDDING][source[picked[good]]]
                if plain:
                    views = np.concatenate([unit.embedding[here[good], None], views], axis=1)
                unit.outputs[VIEW][here[good]] = views
            # The digest stays as it was, so that the next extraction sees that such a file is another one.
            for array in (unit.embedding, *unit.outputs.values()):
                array[here[~good]] = np.nan
            self._finish(unit, here, reasons[picked])
        return int((reasons != "").sum()) - len(encoded.interrupted)

    def _check(self, encoded: Encoded, what: str) -> tuple[np.ndarray, np.ndarray]:
        """Why each image is bad, with values that cannot be stored among the reasons; and its place in the values."""
        reasons, source = np.array(encoded.reasons, object), np.full(len(encoded.rows), -1)
        source[encoded.good] = np.arange(len(encoded.good))
        fits, zero, numbers = np.ones(len(encoded.good), bool), np.zeros(len(encoded.good), bool), np.finfo(self._dtype)
        for name, values in encoded.values.items():
            fits &= (np.abs(values) <= numbers.max).all(axis=tuple(range(1, values.ndim)))
            if name == EMBEDDING:  # of the image, or of every view
                nothing = (np.abs(values) <= numbers.smallest_subnormal / 2).all(axis=-1)
                zero = nothing.any(axis=tuple(range(1, nothing.ndim)))
        reasons[encoded.good[~fits]] = f"{what} that {self._dtype} cannot hold"
        reasons[encoded.good[zero]] = "the encoder gave zeros, which are like nothing"
        return reasons, source

    def _by_unit(self, encoded: Encoded) -> Iterator[tuple[_Columns, np.ndarray, np.ndarray]]:
        """For each unit, places of its images and their rows in it; interrupted ones stay as they are in the store."""
        numbers, done = encoded.rows // self.writer.unit_rows, np.ones(len(encoded.rows), bool)
        done[list(encoded.interrupted)] = False
        for number in np.unique(numbers).tolist():
            mine = numbers == number
            picked = np.flatnonzero(mine & done)
            unit = self._units.get(number) or self._read(number)
            unit.left -= int(mine.sum()) - len(picked)
            yield unit, picked, encoded.rows[picked] - unit.where.start

    def _read(self, number: int) -> _Columns:
        where, embedding, outputs = self.writer.unit(number)
        digest, reason, state = (self._store.part(name, where) for name in ("digest", "reason", "state"))
        unit = _Columns(where, embedding, outputs, digest, reason, state, self._expected.pop(number))
        self._units[number] = unit
        return unit

    def _finish(self, unit: _Columns, here: np.ndarray, reasons: np.ndarray) -> None:
        unit.reason[here] = reasons
        unit.state[here] = np.where(reasons == "", STORED, BAD)  # after all else: Ctrl-C never leaves half a row
        unit.left -= len(here)
        if not unit.left or (self.flush and time.monotonic() - unit.written > FLUSH_SECONDS):
            self._commit(unit)
        if not unit.left:
            del self._units[unit.where.start // self.writer.unit_rows]

    def _commit(self, unit: _Columns) -> None:
        while len(self._writing) > 1 or (self._writing and self._writing[0].done()):
            self._writing.popleft().result()
        unit.written = time.monotonic()
        written = deepcopy(unit) if unit.left else unit  # more rows will be put into these arrays
        self._writing.append(self._pool.submit(
            self.writer.commit, unit.where.start // self.writer.unit_rows, written.embedding, written.digest,
            written.reason, written.state, written.outputs))
