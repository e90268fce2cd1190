"""Reading, gathering and writing a large store, beside the ways that people use: `python bench/store.py`.

Goals 9 to 11 of the project: each figure is a ratio of two ways that ran in turn, A B A B, in one process. The store
reads with every checksum checked, from plain chunks and from shards.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import zarr

from onceclip.stores import Store, StoreWriter, Table, open_store
from onceclip.stores.compact import compact
from onceclip.stores.schema import STORED, TODO
from onceclip.stores.verify import verify

LAYOUTS = ("plain", "shards")
GATHERED = 1600


def make(path: Path, rows: int, dim: int) -> float:
    """Write a synthetic float16 store and give the seconds that its units took."""
    random = np.random.default_rng(0)
    writer = StoreWriter.create(str(path), {"name": "synthetic", "fingerprint": "0" * 32}, dim)
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


def in_turn(repeats: int, **ways: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each way, run A B A B after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if turn:
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def append(path: Path, block: np.ndarray) -> None:
    """Write batches of 256 rows with `append`, as a first draft would."""
    array = zarr.create_array(str(path), shape=(0, block.shape[1]), chunks=(4096, block.shape[1]), dtype=block.dtype,
                              overwrite=True)
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


def reading(paths: dict[str, Path], flat: Path, repeats: int) -> dict[str, Any]:
    """Goal 9: everything into memory."""
    stores = {name: ready(path) for name, path in paths.items()}
    rows = stores["plain"].rows()
    ways: dict[str, Callable[[], object]] = {"numpy_load": partial(np.load, flat)}
    for name, store in stores.items():
        ways[name] = partial(store.embeddings, rows)
        ways[f"{name}_by_zarr"] = partial(whole, store.array("embedding"))
    if find_spec("zarrs"):
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            for name, path in paths.items():
                ways[f"{name}_by_zarrs"] = partial(whole, zarr.open_array(str(path / "image" / "embedding"), mode="r"))
    return in_turn(repeats, **ways)


def whole(array: zarr.Array) -> object:
    """All of an array, as zarr reads it."""
    return array[...]


def gathering(paths: dict[str, Path], flat: Path, rows: int, repeats: int) -> dict[str, Any]:
    """Goal 10: single rows out of all, from warm and from cold files."""
    chosen = np.sort(np.random.default_rng(1).choice(rows, min(GATHERED, rows), replace=False))
    stores, kept = {name: ready(path) for name, path in paths.items()}, np.load(flat, mmap_mode="r")
    figures = in_turn(5 * repeats, memory_map=lambda: np.load(flat, mmap_mode="r")[chosen],
                      memory_map_kept=partial(kept.__getitem__, chosen),
                      **{name: partial(store.embeddings, chosen) for name, store in stores.items()})
    figures |= in_turn(2, **{f"{name}_by_oindex": partial(store.array("embedding").oindex.__getitem__, chosen)
                             for name, store in stores.items()})
    del stores, kept  # what is mapped cannot be evicted
    cold: dict[str, list[float]] = {}
    for _ in range(3):
        for name, path in {"memory_map": flat, **paths}.items():
            store = None if path == flat else ready(path)
            evict(path / "image" / "embedding" if store else path)
            begun = time.perf_counter()
            store.embeddings(chosen) if store else np.load(path, mmap_mode="r")[chosen]
            cold.setdefault(f"{name}_cold", []).append(time.perf_counter() - begun)
    return figures | {name: statistics.median(values) for name, values in cold.items()}


def writing(folder: Path, rows: int, dim: int) -> dict[str, float]:
    """Goal 11: rows per second, finished units against `append`, in turn."""
    rows, block = min(rows, 1 << 18), np.zeros((256 * 64, dim), np.float16)
    units, appended = [], []
    for turn in range(3):
        units.append(rows / make(folder / f"written-{turn}.zarr", rows, dim))
        begun = time.perf_counter()
        append(folder / "appended.zarr", block)
        appended.append(len(block) / (time.perf_counter() - begun))
    return {"units": statistics.median(units), "append": statistics.median(appended)}


@click.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--dim", default=512, show_default=True)
@click.option("--repeats", default=7, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write.  [default: a temporary folder]")
@click.option("--out", type=click.Path(path_type=Path), help="Append the figures to this file, as a JSON line.")
def main(rows: int, dim: int, repeats: int, folder: Path | None, out: Path | None) -> None:
    """Compare the store with np.load, memory maps, zarr's own reads and `append`."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        place = Path(temporary)
        paths, flat = {name: place / f"{name}.zarr" for name in LAYOUTS}, place / "large.npy"
        make(paths["plain"], rows, dim)
        store = open_store(str(paths["plain"]))
        begun = time.perf_counter()
        total = sum(float(piece[0, 0]) for _, piece in store.pieces(store.rows()))
        figures: dict[str, Any] = {"stream": {"seconds": time.perf_counter() - begun, "sum": total, "peak_bytes":
                                              resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}}
        begun = time.perf_counter()
        compact(str(paths["plain"]), str(paths["shards"]))
        figures["compact_seconds"] = time.perf_counter() - begun
        np.save(flat, store.embeddings())
        figures |= {"open_seconds": in_turn(repeats, open=lambda: open_store(str(paths["plain"])))["open"],
                    "read": reading(paths, flat, repeats), "gather": gathering(paths, flat, rows, repeats),
                    "write_rows_per_second": writing(place, rows, dim)}
        figures["verify"] = in_turn(1, **{name: partial(verify, str(path)) for name, path in paths.items()})
    report(rows, dim, figures)
    if out:
        machine = {"machine": platform.machine(), "python": platform.python_version(), "zarr": zarr.__version__}
        with out.open("a", encoding="ascii") as file:
            file.write(json.dumps({"bench": "store", "rows": rows, "dim": dim, **machine, **figures}) + "\n")


def report(rows: int, dim: int, figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    size, read, gather = rows * dim * 2 / 1e9, figures["read"], figures["gather"]
    write, stream = figures["write_rows_per_second"], figures["stream"]
    click.echo(f"{rows:,} x {dim} float16 ({size:.2f} GB), medians; open {figures['open_seconds'] * 1e3:.1f} ms")
    click.echo("\nread all                 GB/s   of np.load")
    for name, seconds in read.items():
        click.echo(f"  {name:18} {size / seconds:8.2f} {read['numpy_load'] / seconds:12.2f}")
    click.echo(f"\ngather {GATHERED:,} rows            ms   times a memory map opened each time, as warm or cold")
    for name, seconds in gather.items():
        other = gather["memory_map_cold" if name.endswith("_cold") else "memory_map"]
        click.echo(f"  {name:18} {seconds * 1e3:8.2f} {seconds / other:12.2f}")
    click.echo(f"\nwrite units {write['units']:,.0f} rows/s, append {write['append']:,.0f} rows/s: "
               f"{write['units'] / write['append']:.1f} times as fast")
    click.echo(f"stream in pieces {stream['seconds']:.2f} s, peak {stream['peak_bytes'] / 1e9:.2f} GB; compact "
               f"{figures['compact_seconds']:.1f} s; verify "
               + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in figures["verify"].items()))


if __name__ == "__main__":
    main()
