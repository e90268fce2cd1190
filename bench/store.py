"""Reading, gathering and writing a large store, beside the ways that people use: `python bench/store.py`.

Both sides run in turn in one process; medians are printed. The store reads with every checksum checked.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import zarr

from onceclip.stores import StoreWriter, Table, open_store
from onceclip.stores.schema import STORED, TODO
from onceclip.stores.verify import verify

REPEATS = 7


def main() -> None:
    """Make the store and print the table of `compare`."""
    command()


def make(path: Path, rows: int, dim: int) -> float:
    """Write a synthetic float16 store and give the seconds that its units took."""
    random = np.random.default_rng(0)
    writer = StoreWriter.create(str(path), {"name": "synthetic", "fingerprint": "0" * 32}, dim)
    key = np.array([f"{row // 1000:04d}/{row:09d}.jpg" for row in range(rows)], dtype=object)
    digest = random.integers(0, 256, (rows, 16), dtype=np.uint8)
    label = (np.arange(rows) // 1000).astype(np.int32)
    text = np.full(rows, "", object)
    split = np.zeros(rows, np.int8)
    table = Table(key, label, split, np.full(rows, TODO, np.int8), digest, text)
    writer.plan(table, [str(number) for number in range(label[-1] + 1)])
    block = random.standard_normal((writer.unit_rows, dim), dtype=np.float32).astype(np.float16)
    begun = time.perf_counter()
    for unit in range(-(-rows // writer.unit_rows)):
        where = slice(unit * writer.unit_rows, min((unit + 1) * writer.unit_rows, rows))
        size = where.stop - where.start
        writer.commit(unit, block[:size], digest[where], text[where], np.full(size, STORED, np.int8))
    seconds = time.perf_counter() - begun
    writer.finish(split)
    return seconds


def in_turn(**ways: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each way, run A B A B after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(REPEATS + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if turn:
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def append(path: Path, block: np.ndarray, batches: int) -> None:
    """Write batch by batch with `append`, as a first draft would."""
    array = zarr.create_array(str(path), shape=(0, block.shape[1]), chunks=(4096, block.shape[1]), dtype=block.dtype,
                              overwrite=True)
    for start in range(batches):
        array.append(block[start * 256:(start + 1) * 256])


@click.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--dim", default=512, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write.  [default: a temporary folder]")
@click.option("--out", type=click.Path(path_type=Path), help="Append the figures to this file, as a JSON line.")
def command(rows: int, dim: int, folder: Path | None, out: Path | None) -> None:
    """Compare the store with np.load, memory maps, zarr's own reads and `append`."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path, flat = Path(temporary) / "large.zarr", Path(temporary) / "large.npy"
        writing = make(path, rows, dim)
        np.save(flat, open_store(str(path)).embeddings())
        chosen = np.sort(np.random.default_rng(1).choice(rows, 1600, replace=False))
        store = open_store(str(path))
        everything = store.rows()
        store.column("checksum")
        array = store.array("embedding")
        figures = {
            "open_seconds": in_turn(open=lambda: open_store(str(path)))["open"],
            "read": in_turn(store=lambda: store.embeddings(everything), numpy_load=lambda: np.load(flat)),
            "read_by_zarr": in_turn(zarr=lambda: array[...])["zarr"] if rows <= 2_000_000 else None,
            "gather_1600": in_turn(store=lambda: store.embeddings(chosen),
                                   memory_map=lambda: np.load(flat, mmap_mode="r")[chosen]),
            "gather_by_oindex": in_turn(zarr=lambda: array.oindex[chosen])["zarr"],
            "write_rows_per_second": rows / writing,
        }
        block = np.zeros((256 * 64, dim), np.float16)
        seconds = in_turn(append=lambda: append(Path(temporary) / "append.zarr", block, 64))["append"]
        figures["append_rows_per_second"] = len(block) / seconds
        begun = time.perf_counter()
        total = sum(float(piece[0, 0]) for _, piece in store.pieces(everything))
        figures["stream_seconds"] = time.perf_counter() - begun
        begun = time.perf_counter()
        faults = len(verify(str(path)).faults)
        figures |= {"verify_seconds": time.perf_counter() - begun, "verify_faults": faults, "stream_sum": total,
                    "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    report(rows, dim, figures)
    if out:
        machine = {"machine": platform.machine(), "python": platform.python_version(), "zarr": zarr.__version__}
        with out.open("a", encoding="ascii") as file:
            file.write(json.dumps({"bench": "store", "rows": rows, "dim": dim, **machine, **figures}) + "\n")


def report(rows: int, dim: int, figures: dict) -> None:
    """Print the figures as a table."""
    read, gather = figures["read"], figures["gather_1600"]
    size = rows * dim * 2 / 1e9
    for line in (
        f"{rows:,} x {dim} float16 ({size:.2f} GB), warm, medians of {REPEATS}",
        f"open                 {figures['open_seconds'] * 1e3:8.1f} ms",
        f"read all             {size / read['store']:8.2f} GB/s, np.load {size / read['numpy_load']:.2f} GB/s: "
        f"{read['numpy_load'] / read['store']:.2f} of it; zarr's own read {size / figures['read_by_zarr']:.2f} GB/s",
        f"gather 1,600 rows    {gather['store'] * 1e3:8.2f} ms, memory map {gather['memory_map'] * 1e3:.2f} ms, zarr's "
        f"oindex {figures['gather_by_oindex'] * 1e3:.0f} ms",
        f"write                {figures['write_rows_per_second']:8,.0f} rows/s, append "
        f"{figures['append_rows_per_second']:,.0f} rows/s",
        f"stream               {figures['stream_seconds']:8.2f} s in pieces",
        f"verify               {figures['verify_seconds']:8.2f} s, {figures['verify_faults']} faults",
    ):
        click.echo(line)


if __name__ == "__main__":
    main()
