"""Filling a store's units: images are read and decoded in threads, encoded in batches, written unit by unit."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from tqdm import tqdm

from onceclip.pipeline.encoder import Encoder
from onceclip.pipeline.errors import BadImage
from onceclip.pipeline.images import decoding, prepare
from onceclip.pipeline.inventory import Inventory
from onceclip.stores import StoreWriter
from onceclip.stores.fingerprint import digest
from onceclip.stores.schema import BAD, STORED, TODO

FLUSH_SECONDS = 30.0  # at most this much encoding is lost when the process is killed


def encode_images(writer: StoreWriter, model: Encoder, inventory: Inventory, batch_size: int, workers: int = 0,
                  progress: bool = False) -> int:
    """Encode every row that is to be done into its unit; gives the number of embeddings made.

    batch_size: images per pass. workers: decoding threads, 0 for one per core.
    """
    todo = np.flatnonzero(inventory.table.state == TODO)
    encoded = 0
    workers = workers or os.cpu_count() or 1
    with decoding(), ThreadPoolExecutor(workers) as pool, tqdm(
            total=len(inventory.table), initial=len(inventory.table) - len(todo), unit="image", desc="encode",
            disable=None if progress and len(todo) else True) as bar:
        prepared = _prepared(pool, model, inventory, todo, 2 * workers + batch_size)
        for number in np.unique(todo // writer.unit_rows):
            unit = _Unit(writer, int(number))
            rows = todo[todo // writer.unit_rows == number]
            try:
                for batch in _batches(islice(prepared, len(rows)), batch_size):
                    encoded += unit.fill(batch, model)
                    bar.update(len(batch))
                    bar.set_postfix(bad=unit.bad)
            finally:
                # Also on Ctrl-C: what was encoded is kept, the next run goes on behind it.
                unit.commit()
    return encoded


@dataclass(frozen=True)
class _Prepared:
    row: int
    digest: bytes
    pixels: torch.Tensor | None
    reason: str


def _prepared(pool: ThreadPoolExecutor, model: Encoder, inventory: Inventory, rows: np.ndarray,
              ahead: int) -> Iterator[_Prepared]:
    """Read and decode in threads, in order, at most `ahead` images before they are taken."""

    def one(row: int) -> _Prepared:
        content = b""
        try:
            content = inventory.contents[row].read()
            return _Prepared(row, digest(content), prepare(content, model.preprocess), "")
        except BadImage as error:
            return _Prepared(row, digest(content), None, str(error))

    waiting: list[Future[_Prepared]] = []
    upcoming = iter(rows.tolist())
    try:
        waiting.extend(pool.submit(one, row) for row in islice(upcoming, ahead))
        while waiting:
            first = waiting.pop(0)
            waiting.extend(pool.submit(one, row) for row in islice(upcoming, 1))
            yield first.result()
    finally:
        for future in waiting:
            future.cancel()


def _batches(items: Iterator[_Prepared], size: int) -> Iterator[list[_Prepared]]:
    while batch := list(islice(items, size)):
        yield batch


class _Unit:
    """One unit in memory while it fills."""

    def __init__(self, writer: StoreWriter, number: int) -> None:
        self.writer, self.number = writer, number
        self.where, self.embedding = writer.unit(number)
        table = writer.store.table
        self.digest, self.reason, self.state = (column[self.where].copy() for column in
                                                (table.digest, table.reason, table.state))
        self.written = time.monotonic()
        self.bad = 0

    def fill(self, batch: Sequence[_Prepared], model: Encoder) -> int:
        """Encode a batch into the unit; gives the number of embeddings."""
        good = [item.pixels for item in batch if item.pixels is not None]
        vectors = iter(model.encode_images(torch.stack(good)) if good else ())
        limit = np.finfo(self.embedding.dtype).max
        stored = 0
        for item in batch:
            place = item.row - self.where.start
            self.digest[place] = np.frombuffer(item.digest, np.uint8)
            vector = next(vectors) if item.pixels is not None else None
            reason = item.reason
            if vector is not None and not (np.abs(vector) <= limit).all():
                vector, reason = None, f"the encoder gave values that {self.embedding.dtype} cannot hold"
            self.reason[place] = reason
            self.state[place] = BAD if vector is None else STORED
            self.embedding[place] = np.nan if vector is None else vector
            stored += vector is not None
            self.bad += vector is None
        if time.monotonic() - self.written > FLUSH_SECONDS:
            self.commit()
        return stored

    def commit(self) -> None:
        self.writer.commit(self.number, self.embedding, self.digest, self.reason, self.state)
        self.written = time.monotonic()
