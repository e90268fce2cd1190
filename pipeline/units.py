"""The units of a store that are being filled, and the thread that writes them."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from onceclip.pipeline.encode import EMBEDDING, Encoded
from onceclip.stores import StoreWriter, open_store
from onceclip.stores.schema import BAD, STORED

FLUSH_SECONDS = 30.0  # at most this much encoding is lost when the process is killed
VIEW = "view"
_PIECE = 1 << 20  # rows that are counted at once


@dataclass
class Rounding:
    """How much storing embeddings changed them, at most.

    relative: length of the change over the embedding's. cosine: 1 - cosine of the two.
    """

    relative: float = 0.0
    cosine: float = 0.0

    def add(self, exact: np.ndarray, stored: np.ndarray) -> None:
        """Compare embeddings (n, dim) with what is stored of them."""
        some = exact.any(axis=1)
        if exact.dtype == stored.dtype or not some.any():
            return
        exact, rounded = exact[some].astype(np.float64), stored[some].astype(np.float64)
        length = np.linalg.norm(exact, axis=1)
        other = np.maximum(np.linalg.norm(rounded, axis=1), np.finfo(np.float16).tiny)
        cosine = np.einsum("nd,nd->n", exact, rounded) / (length * other)
        self.relative = max(self.relative, float((np.linalg.norm(rounded - exact, axis=1) / length).max()))
        self.cosine = max(self.cosine, float((1 - cosine).max()))


@dataclass
class _Unit:
    """left: rows that are still to come."""

    where: slice
    embedding: np.ndarray
    outputs: dict[str, np.ndarray]
    digest: np.ndarray
    reason: np.ndarray
    state: np.ndarray
    left: int
    written: float = field(default_factory=time.monotonic)


class Units:
    """Takes what was encoded; a unit is written, in the background, as soon as it is full.

    When the `with` block ends, however it does, what has come is written too: the next run goes on behind it.
    stored, bad: numbers of rows. seconds: spent on writing.
    """

    def __init__(self, writer: StoreWriter, rows: np.ndarray, flush: bool = True) -> None:
        """rows: those that will come, in any order. flush: write units that are not full yet now and then, too."""
        self.writer, self.flush, self.rounding, self.seconds = writer, flush, Rounding(), 0.0
        self.stored = self.bad = 0
        self._left: Counter[int] = Counter()
        for start in range(0, len(rows), _PIECE):
            numbers, counts = np.unique(rows[start:start + _PIECE] // writer.unit_rows, return_counts=True)
            self._left.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
        self._open: dict[int, _Unit] = {}
        self._pool = ThreadPoolExecutor(1, "write")
        self._writing: deque[Future[None]] = deque()
        self._store = open_store(writer.store.path)  # the writer's own may hold columns from before its last commits
        self._dtype = np.dtype(writer.store.attributes["dtype"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._pool:
            for unit in self._open.values():
                self._commit(unit)
            while self._writing:
                self._writing.popleft().result()

    def put(self, encoded: Encoded) -> None:
        """Take rows that were encoded from the beginning."""
        reasons, source = self._judged(encoded, "the encoder gave values")
        for unit, picked, here in self._places(encoded.rows):
            good = reasons[picked] == ""
            for name, array in {EMBEDDING: unit.embedding, **unit.outputs}.items():
                array[here] = np.nan
                if name in encoded.values:
                    array[here[good]] = encoded.values[name][source[picked[good]]]
            if good.any():
                self.rounding.add(encoded.values[EMBEDDING][source[picked[good]]], unit.embedding[here[good]])
            unit.digest[here] = encoded.digests[picked]
            self._done(unit, here, reasons[picked])

    def put_views(self, encoded: Encoded, plain: bool) -> None:
        """Take the views of rows that are stored. plain: whether view 0 is the embedding that is there."""
        reasons, source = self._judged(encoded, "the encoder gave values of a view")
        for unit, picked, here in self._places(encoded.rows):
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
            self._done(unit, here, reasons[picked])

    def _judged(self, encoded: Encoded, what: str) -> tuple[np.ndarray, np.ndarray]:
        """Why each image is bad, with values that cannot be stored among the reasons; and its place in the values."""
        reasons, source = np.array(encoded.reasons, object), np.full(len(encoded.rows), -1)
        source[encoded.good] = np.arange(len(encoded.good))
        fits = np.ones(len(encoded.good), bool)
        for values in encoded.values.values():
            fits &= (np.abs(values) <= np.finfo(self._dtype).max).all(axis=tuple(range(1, values.ndim)))
        reasons[encoded.good[~fits]] = f"{what} that {self._dtype} cannot hold"
        return reasons, source

    def _places(self, rows: np.ndarray) -> Iterator[tuple[_Unit, np.ndarray, np.ndarray]]:
        """For each unit, which of some rows are its own, and where in it they are."""
        numbers = rows // self.writer.unit_rows
        for number in np.unique(numbers).tolist():
            picked = np.flatnonzero(numbers == number)
            unit = self._open.get(number) or self._opened(number)
            yield unit, picked, rows[picked] - unit.where.start

    def _opened(self, number: int) -> _Unit:
        where, embedding, outputs = self.writer.unit(number)
        digest, reason, state = (self._store.part(name, where) for name in ("digest", "reason", "state"))
        self._open[number] = _Unit(where, embedding, outputs, digest, reason, state, self._left[number])
        return self._open[number]

    def _done(self, unit: _Unit, here: np.ndarray, reasons: np.ndarray) -> None:
        good = reasons == ""
        unit.reason[here] = reasons
        unit.state[here] = np.where(good, STORED, BAD)  # after all else, so that Ctrl-C never leaves half a row
        unit.left -= len(here)
        self.stored += int(good.sum())
        self.bad += int((~good).sum())
        if not unit.left or (self.flush and time.monotonic() - unit.written > FLUSH_SECONDS):
            self._commit(unit)
        if not unit.left:
            del self._open[unit.where.start // self.writer.unit_rows]

    def _commit(self, unit: _Unit) -> None:
        while len(self._writing) > 1 or (self._writing and self._writing[0].done()):
            self._writing.popleft().result()
        unit.written = time.monotonic()
        columns = [unit.embedding, unit.digest, unit.reason, unit.state]
        outputs = unit.outputs
        if unit.left:  # more rows will be put into these arrays
            columns, outputs = [each.copy() for each in columns], {name: each.copy() for name, each in outputs.items()}
        self._writing.append(self._pool.submit(self._write, unit.where.start, columns, outputs))

    def _write(self, start: int, columns: list[np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        begun = time.perf_counter()
        embedding, digest, reason, state = columns
        self.writer.commit(start // self.writer.unit_rows, embedding, digest, reason, state, outputs)
        self.seconds += time.perf_counter() - begun
