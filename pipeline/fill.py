"""Filling a planned store: first the embedding of every image, then the views of those that are to have some."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from onceclip.pipeline.decoders import Decoders
from onceclip.pipeline.encode import EMBEDDING, encode
from onceclip.pipeline.lanes import Lanes
from onceclip.pipeline.outputs import TOKEN, VIEW, rows_without_views, views_of
from onceclip.pipeline.profile import Profile, Samples
from onceclip.pipeline.sources import Content
from onceclip.pipeline.units import Rounding, Units
from onceclip.stores import StoreWriter, open_store
from onceclip.stores.schema import SPLITS, STORED, TODO


@dataclass
class Filling:
    """Fills one store. decoders, lanes: what reads and what encodes. contents: row to image file.

    images: embeddings made. pictures: passes through the encoder, views included.
    """

    writer: StoreWriter
    decoders: Decoders
    lanes: Lanes
    contents: Mapping[int, Content]
    batch_size: int = 0
    progress: bool = False
    samples: Samples | None = None
    images: int = 0
    pictures: int = 0
    rounding: Rounding = field(default_factory=Rounding)
    wall: float = 0.0
    write: float = 0.0

    def embeddings(self) -> None:
        """Encode every row that is to be done."""
        state = open_store(self.writer.store.path).table.state
        rows = np.flatnonzero(state == TODO)
        if not len(rows):
            return
        outputs = self.writer.store.outputs
        wanted = (EMBEDDING, *(name for name in outputs if name != VIEW))
        tokens = outputs[TOKEN].spec["tokens"] if TOKEN in outputs else "last"
        with self._units(rows, len(state), "encode") as (units, bar):
            for encoded in encode(self.decoders, self.lanes, self._of(rows), len(rows), self.batch_size, wanted, tokens,
                                  samples=self.samples):
                units.put(encoded)
                self.pictures += len(encoded.good)
                _show(bar, len(encoded.rows), units.bad)
        self.images, self.rounding = units.stored, units.rounding

    def views(self, split: np.ndarray) -> None:
        """Encode the views of the stored rows that are to have some and have none. split: (rows,)."""
        store = open_store(self.writer.store.path)
        made = views_of(store)
        if made is None:
            return
        views, splits = made
        wanted = (store.table.state == STORED) & np.isin(split, [SPLITS.index(name) for name in splits])
        rows = np.flatnonzero(wanted & rows_without_views(store))
        if not len(rows):
            return
        with self._units(rows, int(wanted.sum()), "views") as (units, bar):
            for encoded in encode(self.decoders, self.lanes, self._of(rows), len(rows), self.batch_size, views=views,
                                  samples=self.samples):
                units.put_views(encoded, plain=views.kind == "random")
                self.pictures += len(encoded.good) * views.drawn
                _show(bar, len(encoded.rows), units.bad)

    def profile(self) -> Profile:
        """Where the time went."""
        read, decode, transform = self.decoders.seconds.tolist()
        alone = self.samples.rate(self.lanes) if self.samples else 0.0
        return Profile(self.pictures, self.wall, read, decode, transform, self.lanes.seconds, self.write,
                       self.decoders.number, self.lanes.number, self.pictures / self.wall if self.wall else 0.0, alone)

    @contextmanager
    def _units(self, rows: np.ndarray, total: int, name: str) -> Iterator[tuple[Units, tqdm]]:
        begun, done = time.perf_counter(), total - len(rows)
        if done and self.progress:
            tqdm.write(f"{done:,} of {total:,} already done", file=sys.stderr)
        with tqdm(total=total, initial=done, unit="image", desc=name,
                  disable=None if self.progress else True) as bar, Units(self.writer, rows) as units:
            yield units, bar
        self.wall += time.perf_counter() - begun
        self.write += units.seconds

    def _of(self, rows: np.ndarray) -> Iterator[tuple[int, Content]]:
        return ((row, self.contents[row]) for row in rows.tolist())


def _show(bar: tqdm, images: int, bad: int) -> None:
    bar.update(images)
    if bad:
        bar.set_postfix(bad=bad)
