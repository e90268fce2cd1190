"""Exact nearest rows of a store, and captions and images that rank each other, beside the products that they take.

Every checksum of the rows is checked.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from bench.measure import Row, bench, in_turn, make_row
from bench.products import peak
from bench.store import make
from onceclip.adapters.cpu import threads_for
from onceclip.adapters.ops import unit
from onceclip.pipeline.retrieval.evaluation import evaluate
from onceclip.pipeline.retrieval.items import items_of
from onceclip.pipeline.retrieval.search import nearest
from onceclip.stores import StoreWriter, TextSet, open_store


def all_at_once(queries: Tensor, rows: Tensor, top: int) -> None:
    """The way of a script: all rows in memory as float32, blocks of queries against all of them, topk."""
    with threads_for(queries.numel() * len(rows)):
        for block in queries.split(256):
            (block @ rows.T).topk(top, dim=1)


def with_captions(path: Path, rows: int, dim: int) -> None:
    """Write a store with a caption of every image, whose embedding is the image's and noise."""
    make(path, rows, dim)
    store = open_store(str(path))
    writer = StoreWriter.open(str(path), dict(store.encoder))
    noise = np.random.default_rng(1).standard_normal((rows, dim), dtype=np.float32)
    writer.put_text("captions", TextSet(
        store.embeddings().astype(np.float32) + 4 * noise, tuple(map(str, store.column("key"))), np.arange(rows + 1),
        np.full(rows, -1, np.int32), tuple(map(str, range(rows))), store.encoder["fingerprint"],
        {"kind": "caption", "by": "key"}))


def peak_gib() -> float:
    """Most memory that this process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@bench("retrieval", small={"rows": 3000, "queries": 50, "captions": 200, "dim": 16, "repeats": 1})
@click.option("--rows", default=1_000_000)
@click.option("--queries", default=10_000)
@click.option("--captions", default=30_000, help="Images with a caption each, all of which rank each other.")
@click.option("--dim", default=512)
@click.option("--top", default=10)
@click.option("--threads", default=1)
@click.option("--repeats", default=2)
@click.option("--peer/--no-peer", default=True, help="Also in one go, which takes memory for all rows in float32.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write.  [default: a temporary folder]")
def command(rows: int, queries: int, captions: int, dim: int, top: int, threads: int, repeats: int, peer: bool,
            folder: Path | None) -> Iterator[Row]:
    """The nearest rows of many queries, exactly, read from a store and scored in blocks."""
    torch.set_num_threads(threads)
    yield _ranked(captions, dim, threads, folder)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "rows.zarr"
        make(path, rows, dim)
        store = open_store(str(path))
        items, asked = items_of(store), unit(torch.randn(queries, dim, generator=torch.Generator().manual_seed(0)))
        before = peak_gib()
        ways = {"ours, from the store": lambda: nearest(asked, store, items, top)}
        seconds = in_turn(ways, repeats, warm=0)
        most = peak_gib()
        if peer:
            whole = unit(torch.from_numpy(store.embeddings()).float())
            seconds |= in_turn({"in one go, from memory": lambda: all_at_once(asked, whole, top)}, 1, warm=0)
    bound = queries * rows * dim / peak(torch.float32) / threads
    at = {"rows": rows, "queries": queries, "dim": dim, "top": top, "threads": threads}
    share = bound / sorted(seconds["ours, from the store"])[0]
    yield make_row(f"the nearest {top} of {queries:,} queries among {rows:,} rows", at, seconds,
                   ["ours, from the store"], bound, {"20 products": share, "20 memory": most}, gib_before=before)


def _ranked(captions: int, dim: int, threads: int, folder: Path | None) -> Row:
    """Both directions are ranked, so that all products are made twice."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "captions.zarr"
        with_captions(path, captions, dim)
        before, store = peak_gib(), open_store(str(path))
        seconds = in_turn({"ours, from the store": lambda: evaluate(store, split="all")}, 1, warm=0)
    bound = 2 * captions**2 * dim / peak(torch.float32) / threads
    return make_row(f"{captions:,} captions and as many images that rank each other",
                    {"captions": captions, "dim": dim, "threads": threads}, seconds, ["ours, from the store"], bound,
                    gib_before=before, gib_at_most=peak_gib())
