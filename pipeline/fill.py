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
from onceclip.stores.location import damage
from onceclip.stores.schema import SPLITS, STORED, TODO


@dataclass
class Filling:
    """Fills one store. decoders, lanes: what reads and what encodes. contents: row to image file.

    flush: whether units that are not full yet are written now and then.
    images: embeddings made. bad: rows found to be bad. pictures: passes through the encoder, views included.
    """

    writer: StoreWriter
    decoders: Decoders
    lanes: Lanes
    contents: Mapping[int, Content]
    batch_size: int = 0
    progress: bool = False
    samples: Samples | None = None
    flush: bool = True
    images: int = 0
    bad: int = 0
    pictures: int = 0
    rounding: Rounding = field(default_factory=Rounding)
    wall: float = 0.0
    write: float = 0.0

    def embeddings(self) -> None:
        """Encode every row that is to be done, of the units that the writer has."""
        rows, total = rows_to_embed(self.writer)
        if not len(rows):
            return
        outputs = self.writer.store.outputs
        wanted = (EMBEDDING, *(name for name in outputs if name != VIEW))
        tokens = outputs[TOKEN].spec["tokens"] if TOKEN in outputs else "last"
        with self._units(rows, total, "encode") as (units, bar):
            for encoded in encode(self.decoders, self.lanes, self._of(rows), len(rows), self.batch_size, wanted, tokens,
                                  samples=self.samples):
                units.put(encoded)
                self.pictures += len(encoded.good)
                _show(bar, len(encoded.rows), units.bad)
        self.images, self.rounding = units.stored, units.rounding
        if self.decoders.given_back and self.progress:
            tqdm.write(f"{self.decoders.given_back:,} JPEGs were left to the decode processes: torchvision could not "
                       "decode them", file=sys.stderr)

    def views(self, split: np.ndarray) -> None:
        """Encode the views of the stored rows that are to have some and have none. split: (rows,)."""
        self.make_views(*rows_to_view(self.writer, split))

    def make_views(self, rows: np.ndarray, total: int) -> None:
        """Encode the views of some rows. total: how many rows are to have views in the end."""
        made = views_of(self.writer.store)
        if made is None or not len(rows):
            return
        views, _ = made
        with self._units(rows, total, "views") as (units, bar):
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
        with tqdm(total=total, initial=done, unit="image", desc=name, disable=None if self.progress else True) as bar, \
                Units(self.writer, rows, self.flush) as units:
            yield units, bar
        self.wall += time.perf_counter() - begun
        self.write += units.seconds
        self.bad += units.bad

    def _of(self, rows: np.ndarray) -> Iterator[tuple[int, Content]]:
        return ((row, self.contents[row]) for row in rows.tolist())


def rows_to_embed(writer: StoreWriter) -> tuple[np.ndarray, int]:
    """Rows that are to be encoded, of the units that a writer has; and how many rows these have."""
    state, size = writer.store.array("state"), writer.unit_rows
    with damage(writer.store.path, "image/state"):
        if writer.units is None:
            states = np.asarray(state[...])
            return np.flatnonzero(states == TODO), len(states)
        rows, total = [np.empty(0, np.int64)], 0
        for number in sorted(writer.units):  # a worker has one of maybe a million
            states = np.asarray(state[number * size:(number + 1) * size])
            rows.append(number * size + np.flatnonzero(states == TODO))
            total += len(states)
    return np.concatenate(rows), total


def rows_to_view(writer: StoreWriter, split: np.ndarray) -> tuple[np.ndarray, int]:
    """Stored rows that are to have views and have none, of the units that a writer has; and how many are to have some.

    split: (rows,).
    """
    store = open_store(writer.store.path)
    made = views_of(store)
    if made is None:
        return np.empty(0, np.int64), 0
    wanted = (store.column("state") == STORED) & np.isin(split, [SPLITS.index(name) for name in made[1]])
    if writer.units is not None:
        wanted &= np.isin(np.arange(len(wanted)) // writer.unit_rows, list(writer.units))
    return np.flatnonzero(wanted & rows_without_views(store)), int(wanted.sum())


def _show(bar: tqdm, images: int, bad: int) -> None:
    bar.update(images)
    if bad:
        bar.set_postfix(bad=bad)
