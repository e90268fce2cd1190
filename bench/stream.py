"""Training on streamed rows beside training in memory."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch

from bench.measure import Row, bench, in_turn, make_row, ratio
from bench.store import make
from onceclip.adapters import METHODS, Rows, Task, Text
from onceclip.adapters.task import Stream
from onceclip.adapters.training.loop import Run, Training
from onceclip.stores import open_store

CLASSES = 100
RUNS = (1, 16)


def one_epoch(task: Task, runs: int) -> Callable[[], object]:
    """An epoch of some linear heads of different learning rates, each from its start."""
    cls = METHODS["linear-probe-adamw"]
    methods = [cls(epochs=1, batch_size=256, learning_rate=1e-3 * (1 + number)) for number in range(runs)]
    prepared = methods[0].prepare(task)
    starts = [method.initial(prepared, torch.Generator().manual_seed(0)) for method in methods]
    return lambda: Training([Run(method, task, prepared, 0) for method in methods], starts).epoch(0)


@bench("stream", small={"rows": 2000, "dim": 16, "repeats": 1})
@click.option("--rows", default=200_000)
@click.option("--dim", default=512)
@click.option("--repeats", default=3)
def command(rows: int, dim: int, repeats: int) -> Iterator[Row]:
    """An epoch of 1 and of 16 linear heads, streamed from a store and from memory, on one thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.zarr"
        make(path, rows, dim)
        store = open_store(str(path))
        stored = store.rows()
        label = torch.from_numpy(store.column("label")[stored].astype(np.int64)) % CLASSES
        text = Text(torch.randn(CLASSES, dim), torch.arange(CLASSES), tuple(map(str, range(CLASSES))))
        stream = Stream(label, lambda places: store.embeddings(stored[places]), torch.empty(0))
        streamed = Task(text, stream)
        one_epoch(streamed, RUNS[-1])()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # before anything else is held
        held = Rows(torch.from_numpy(store.embeddings(stored)).float(), label)
        in_memory = replace(streamed, support=held)
        held.unit  # noqa: B018 - made once, as in a fit
        for runs in RUNS:
            seconds = in_turn({"in memory": one_epoch(in_memory, runs), "ours, streamed": one_epoch(streamed, runs)},
                              repeats)
            goals = {"14 one" if runs == 1 else "14 sixteen": 1 / ratio(seconds, "in memory", "ours, streamed")}
            yield make_row(f"an epoch of {rows:,} rows, {runs} run{'s' * (runs > 1)}", {"dim": dim}, seconds,
                           ["ours, streamed"], goals={**goals, "14 memory": peak})
