"""The stages of a store's life at any number of rows, each to be run in a process of its own, which says what it took.

`python -m bench.stages NAME STORE ROWS UNIT_ROWS` prints seconds and the most memory as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onceclip.stores import StoreWriter, Table, open_store
from onceclip.stores.schema import SPLITS, STORED, TODO

ENCODER = {"name": "synthetic", "fingerprint": "0" * 32}
DIM, CLASSES, PIECE, BATCH = 4, 1000, 1 << 18, 4096


def tables(rows: int) -> Iterator[Table]:
    """What a folder of classes would give, sorted, piece by piece."""
    for start in range(0, rows, PIECE):
        numbers = np.arange(start, min(start + PIECE, rows))
        label = numbers * CLASSES // rows
        key = np.array([f"class-{number:04d}/image-{row:010d}.jpg" for number, row in
                        zip(label.tolist(), numbers.tolist(), strict=True)], object)
        size = len(numbers)
        yield Table(key, label.astype(np.int32), (numbers % len(SPLITS)).astype(np.int8),
                    np.full(size, TODO, np.int8), np.zeros((size, 16), np.uint8), np.full(size, "", object))


def digests(start: int, stop: int) -> np.ndarray:
    """Digests of rows (rows, 16), no two of them equal."""
    whole = np.arange(start, stop, dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = whole * np.uint64(0x9E3779B97F4A7C15)
    return np.stack([mixed ^ (mixed >> np.uint64(29)), whole], axis=1).view(np.uint8)


def values(start: int, stop: int) -> np.ndarray:
    """Embeddings of rows: (rows, DIM) float32."""
    return np.random.default_rng(start).standard_normal((stop - start, DIM), dtype=np.float32)


def plan(path: str, rows: int, unit_rows: int) -> dict[str, Any]:
    """Say which rows there are to be."""
    writer = StoreWriter.create(path, ENCODER, DIM, unit_rows=unit_rows)
    writer.plan(tables(rows), [f"class-{number:04d}" for number in range(CLASSES)])
    return {}


def fill(path: str, rows: int, unit_rows: int) -> dict[str, Any]:
    """Write the first half of the units, and end without a word."""
    writer = StoreWriter.open(path, ENCODER)
    for number in range(-(-rows // unit_rows) // 2):
        start, stop = number * unit_rows, min((number + 1) * unit_rows, rows)
        writer.commit(number, values(start, stop), digests(start, stop), np.full(stop - start, "", object),
                      np.full(stop - start, STORED, np.int8))
    return {}


def resume(path: str, rows: int, unit_rows: int) -> dict[str, Any]:
    """Find what is to be done, and write it as an extraction does."""
    from onceclip.pipeline.encoders.images import EMBEDDING, Encoded
    from onceclip.pipeline.extraction.units import UnitBuffers, rows_to_embed

    writer = StoreWriter.open(path, ENCODER)
    missing = rows_to_embed(writer).rows
    with UnitBuffers(writer) as buffers:
        for number, count in zip(*np.unique(missing // unit_rows, return_counts=True), strict=True):
            buffers.expect(int(number), int(count))
        for begin in range(0, len(missing), BATCH):
            batch = missing[begin:begin + BATCH]
            start, stop = int(batch[0]), int(batch[-1]) + 1
            buffers.put(Encoded(batch, digests(start, stop), [""] * len(batch), np.arange(len(batch)),
                                {EMBEDDING: values(start, stop)}))
    return {"resumed": len(missing)}


def finish(path: str, rows: int, unit_rows: int) -> dict[str, Any]:
    """Declare the store complete, which hashes its content."""
    writer = StoreWriter.open(path, ENCODER)
    return {"fingerprint": writer.finish(writer.store.column("split")).fingerprint}


def look(path: str, rows: int, unit_rows: int) -> dict[str, Any]:
    """Open it, and read a thousand rows from all over it."""
    begun = time.perf_counter()
    store = open_store(path)
    opened = time.perf_counter()
    store.embeddings(np.arange(0, rows, max(1, rows // 1000)))
    return {"open_seconds": opened - begun, "gather_seconds": time.perf_counter() - opened}


def verify(path: str, rows: int, unit_rows: int) -> dict[str, Any]:
    """Read all of it and check it."""
    from onceclip.stores.verification import verify as verification

    found = verification(path)
    return {"faults": len(found.faults), "remarks": len(found.remarks), "chunks": found.chunks}


def files(path: str, rows: int, unit_rows: int) -> dict[str, Any]:
    """List its files."""
    found = [(name, os.path.getsize(os.path.join(folder, name))) for folder, _, names in os.walk(path)
             for name in names]
    described = sum(size for name, size in found if name == "zarr.json")
    return {"files": len(found), "bytes": sum(size for _, size in found), "metadata_bytes": described}


def most_memory() -> float:
    """The most memory that this process has had, in MiB; `getrusage` would count that of the parent too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


STAGES: dict[str, Callable[[str, int, int], dict[str, Any]]] = {
    each.__name__: each for each in (plan, fill, resume, finish, look, verify, files)}

if __name__ == "__main__":
    before = most_memory()
    begun = time.perf_counter()
    found = STAGES[sys.argv[1]](sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    found |= {"seconds": time.perf_counter() - begun, "idle_mib": before, "peak_mib": most_memory()}
    sys.stdout.write(json.dumps(found) + "\n")
