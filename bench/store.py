"""Reading, gathering and writing a large store, beside the ways that people use.

The store reads with every checksum checked, from plain chunks and from shards.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import click
import numpy as np
import zarr

from bench.files import write_all
from bench.measure import Row, Seconds, bench, in_turn, make_row, ratio
from onceclip.stores import Store, StoreWriter, Table, open_store
from onceclip.stores.compact import compact
from onceclip.stores.schema import STORED, TODO
from onceclip.stores.verification import verify

GATHERED = 1600
UNIT_ROWS = 4096
PLAIN, SHARDS = f"chunks of {UNIT_ROWS:,}", "shards"


def make(path: Path, rows: int, dim: int, unit_rows: int = UNIT_ROWS) -> float:
    """Write a synthetic float16 store and give the seconds that its units took."""
    random = np.random.default_rng(0)
    writer = StoreWriter.create(str(path), {"name": "synthetic", "fingerprint": "0" * 32}, dim, unit_rows=unit_rows)
    key = np.array([f"{row // 1000:04d}/{row:09d}.jpg" for row in range(rows)], dtype=object)
    digest = random.integers(0, 256, (rows, 16), dtype=np.uint8)
    label = (np.arange(rows) // 1000).astype(np.int32)
    text = np.full(rows, "", object)
    split = np.zeros(rows, np.int8)
    writer.plan(Table(key, label, split, np.full(rows, TODO, np.int8), digest, text),
                [str(number) for number in range(label[-1] + 1)])
    block = random.standard_normal((writer.unit_rows, dim), dtype=np.float32).astype(np.float16)
    begun = time.perf_counter()
    for unit in range(-(-rows // writer.unit_rows)):
        where = slice(unit * writer.unit_rows, min((unit + 1) * writer.unit_rows, rows))
        size = where.stop - where.start
        writer.commit(unit, block[:size], digest[where], text[where], np.full(size, STORED, np.int8))
    seconds = time.perf_counter() - begun
    writer.finish(split)
    return seconds


def append(path: Path, block: np.ndarray) -> None:
    """Write batches of 256 rows with `append`, as a first draft would."""
    array = zarr.create_array(str(path), shape=(0, block.shape[1]), chunks=(UNIT_ROWS, block.shape[1]),
                              dtype=block.dtype, overwrite=True)
    for start in range(0, len(block), 256):
        array.append(block[start:start + 256])


def evict(*places: Path) -> None:
    """Have the system forget the pages of some files, as far as nothing maps them."""
    for file in (each for place in places for each in (place.rglob("*") if place.is_dir() else [place])):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def ready(path: Path) -> Store:
    """An opened store whose columns are in memory, as in a second fit."""
    store = open_store(str(path))
    store.rows()
    store.column("checksum")
    return store


def whole(array: zarr.Array) -> object:
    """All of an array, as zarr reads it."""
    return array[...]


def reading(paths: dict[str, Path], others: Mapping[str, Callable[[], object]], repeats: int) -> Seconds:
    """Everything into memory."""
    ways: dict[str, Callable[[], object]] = dict(others)
    for name, path in paths.items():
        store = ready(path)
        ways[f"ours, {name}"] = partial(store.embeddings, store.rows())
        ways[f"zarr, {name}"] = partial(whole, zarr.open_array(str(path / "image" / "embedding"), mode="r"))
    return in_turn(ways, repeats)


def gathering(paths: dict[str, Path], flat: Path, rows: int, repeats: int) -> Seconds:
    """Single rows out of all, from warm files."""
    chosen = np.sort(np.random.default_rng(1).choice(rows, min(GATHERED, rows), replace=False))
    stores, kept = {name: ready(path) for name, path in paths.items()}, np.load(flat, mmap_mode="r")
    ways: dict[str, Callable[[], object]] = {
        "memory map": lambda: np.load(flat, mmap_mode="r")[chosen],
        "memory map, kept open": partial(kept.__getitem__, chosen),
        **{f"ours, {name}": partial(store.embeddings, chosen) for name, store in stores.items()}}
    slow = {f"oindex, {name}": partial(store.array("embedding").oindex.__getitem__, chosen)
            for name, store in stores.items()}
    return in_turn(ways, 5 * repeats) | in_turn(slow, 2)


def cold(paths: dict[str, Path], flat: Path, rows: int, repeats: int) -> Seconds:
    """The same from files that are not in memory."""
    chosen = np.sort(np.random.default_rng(1).choice(rows, min(GATHERED, rows), replace=False))
    seconds: Seconds = {}
    for _ in range(repeats):
        for name, path in {"memory map": flat, **{f"ours, {name}": path for name, path in paths.items()}}.items():
            store = None if path == flat else ready(path)
            evict(path / "image" / "embedding" if store else path)
            begun = time.perf_counter()
            store.embeddings(chosen) if store else np.load(path, mmap_mode="r")[chosen]
            seconds.setdefault(name, []).append(time.perf_counter() - begun)
    return seconds


def writing(folder: Path, rows: int, dim: int, repeats: int) -> Seconds:
    """Seconds per row of finished units and of `append`, in turn."""
    rows, block = min(rows, 1 << 18), np.zeros((256 * 64, dim), np.float16)
    seconds: Seconds = {"append": [], "ours, finished units": []}
    for _ in range(repeats):
        made = make(folder / f"written-{len(seconds['append'])}.zarr", rows, dim)
        seconds["ours, finished units"].append(made / rows)
        begun = time.perf_counter()
        append(folder / "appended.zarr", block)
        seconds["append"].append((time.perf_counter() - begun) / len(block))
    return seconds


def layouts(place: Path, rows: int, dim: int, chunks: list[int], repeats: int) -> Seconds:
    """Whole reads of stores with units of other sizes."""
    stores = {}
    for size in chunks:
        make(place / f"{size}.zarr", rows, dim, size)
        stores[size] = ready(place / f"{size}.zarr")
    ways = {f"ours, chunks of {size:,}": partial(store.embeddings, store.rows()) for size, store in stores.items()}
    return in_turn(ways, repeats)


@bench("store", small={"rows": "2000", "dim": 16, "repeats": 1, "chunks": "512,1024"})
@click.option("--rows", default="100000,1000000", help="Numbers of rows, with commas between.")
@click.option("--dim", default=512)
@click.option("--chunks", default="1024,4096,16384,65536", help="Rows per unit that are read at the fewest rows.")
@click.option("--repeats", default=5)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write.  [default: a temporary folder]")
def command(rows: str, dim: int, chunks: str, repeats: int, folder: Path | None) -> Iterator[Row]:
    """The store beside np.load, memory maps, safetensors, parquet, zarr's own reads and `append`."""
    numbers = sorted(map(int, rows.split(",")))
    for number in numbers:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            yield from _of(Path(temporary), number, dim, repeats, number == numbers[-1])
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        sizes = list(map(int, chunks.split(",")))
        seconds = layouts(Path(temporary), numbers[0], dim, sizes, repeats)
        yield make_row("read, by rows per chunk", {"rows": numbers[0], "dim": dim}, seconds, list(seconds))


def _of(place: Path, rows: int, dim: int, repeats: int, largest: bool) -> Iterator[Row]:
    """The figures of one number of rows; the goals are about the largest."""
    paths, at = {PLAIN: place / "plain.zarr", SHARDS: place / "shards.zarr"}, {"rows": rows, "dim": dim}
    make(paths[PLAIN], rows, dim)
    store = open_store(str(paths[PLAIN]))
    first = in_turn({"stream in pieces": lambda: sum(float(piece[0, 0]) for _, piece in store.pieces(store.rows())),
                     "open": lambda: open_store(str(paths[PLAIN]))}, repeats)
    first |= in_turn({"compact": lambda: compact(str(paths[PLAIN]), str(paths[SHARDS]))}, 1, 0)
    first |= in_turn({f"verify, {name}": partial(verify, str(path)) for name, path in paths.items()}, 2, 0)
    yield make_row(f"a store of {rows:,} rows", at, first, list(first))
    others = write_all(place, store.embeddings())
    flat = place / "rows.npy"
    ours = [f"ours, {name}" for name in paths]
    seconds = reading(paths, others, repeats)
    goals = {"9 chunks": ratio(seconds, "np.load", ours[0]), "9 shards": ratio(seconds, "np.load", ours[1]),
             "9 stock": ratio(seconds, f"zarr, {SHARDS}", ours[1])}
    yield make_row(f"read {rows:,} rows", at, seconds, ours, sorted(seconds["np.load"])[repeats // 2],
                   goals if largest else {}, gigabytes=rows * dim * 2 / 1e9)
    seconds = gathering(paths, flat, rows, repeats)
    yield make_row(f"gather {GATHERED:,} of {rows:,} rows", at, seconds, ours, goals={
        "10 warm": 1 / ratio(seconds, "memory map", ours[1]),
        "10 oindex": ratio(seconds, f"oindex, {SHARDS}", ours[1])} if largest else {})
    seconds = cold(paths, flat, rows, 3)
    yield make_row(f"gather {GATHERED:,} of {rows:,} rows from cold files", at, seconds, ours,
                   goals={"10 cold": ratio(seconds, "memory map", ours[1])} if largest else {})
    seconds = writing(place, rows, dim, 3)
    own = "ours, finished units"
    yield make_row(f"write a row of {rows:,}", at, seconds, [own], goals={
        "11 rows": 1 / sorted(seconds[own])[1], "11 append": ratio(seconds, "append", own)} if largest else {})
