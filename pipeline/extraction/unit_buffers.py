"""The units of a store that are being filled, and the thread that writes them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from onceclip.pipeline.encoders.images import EMBEDDING, Encoded
from onceclip.pipeline.extraction.outputs import VIEW
from onceclip.stores import StoreWriter, open_store
from onceclip.stores.schema import BAD, STORED

FLUSH_SECONDS = 30.0  # at most this much encoding is lost when the process is killed


@dataclass
class _Unit:
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
        self._units: dict[int, _Unit] = {}
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
        fits = np.ones(len(encoded.good), bool)
        for values in encoded.values.values():
            fits &= (np.abs(values) <= np.finfo(self._dtype).max).all(axis=tuple(range(1, values.ndim)))
        reasons[encoded.good[~fits]] = f"{what} that {self._dtype} cannot hold"
        return reasons, source

    def _by_unit(self, encoded: Encoded) -> Iterator[tuple[_Unit, np.ndarray, np.ndarray]]:
        """For each unit, places of its images and their rows in it; interrupted ones stay as they are in the store."""
        numbers, done = encoded.rows // self.writer.unit_rows, np.ones(len(encoded.rows), bool)
        done[list(encoded.interrupted)] = False
        for number in np.unique(numbers).tolist():
            mine = numbers == number
            picked = np.flatnonzero(mine & done)
            unit = self._units.get(number) or self._read(number)
            unit.left -= int(mine.sum()) - len(picked)
            yield unit, picked, encoded.rows[picked] - unit.where.start

    def _read(self, number: int) -> _Unit:
        where, embedding, outputs = self.writer.unit(number)
        digest, reason, state = (self._store.part(name, where) for name in ("digest", "reason", "state"))
        unit = _Unit(where, embedding, outputs, digest, reason, state, self._expected.pop(number))
        self._units[number] = unit
        return unit

    def _finish(self, unit: _Unit, here: np.ndarray, reasons: np.ndarray) -> None:
        unit.reason[here] = reasons
        unit.state[here] = np.where(reasons == "", STORED, BAD)  # after all else: Ctrl-C never leaves half a row
        unit.left -= len(here)
        if not unit.left or (self.flush and time.monotonic() - unit.written > FLUSH_SECONDS):
            self._commit(unit)
        if not unit.left:
            del self._units[unit.where.start // self.writer.unit_rows]

    def _commit(self, unit: _Unit) -> None:
        while len(self._writing) > 1 or (self._writing and self._writing[0].done()):
            self._writing.popleft().result()
        unit.written = time.monotonic()
        written = deepcopy(unit) if unit.left else unit  # more rows will be put into these arrays
        self._writing.append(self._pool.submit(
            self.writer.commit, unit.where.start // self.writer.unit_rows, written.embedding, written.digest,
            written.reason, written.state, written.outputs))
