"""Training on streamed rows beside training in memory: `python -m bench.stream`."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch

from bench.measure import in_turn, record
from bench.store import make
from onceclip.adapters import METHODS, Rows, Task, Text
from onceclip.adapters.engine import Run, Training
from onceclip.adapters.stream import BLOCK, Stream
from onceclip.stores import open_store

CLASSES = 100


def one_epoch(task: Task, runs: int) -> Callable[[], object]:
    """An epoch of some linear heads of different learning rates, each from its start."""
    cls = METHODS["linear-probe-adamw"]
    methods = [cls(epochs=1, batch_size=256, learning_rate=1e-3 * (1 + number)) for number in range(runs)]
    prepared = methods[0].prepare(task)
    starts = [method.initial(prepared, torch.Generator().manual_seed(0)) for method in methods]
    return lambda: Training([Run(method, task, prepared, 0) for method in methods], starts).epoch(0)


@click.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--dim", default=512, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--streamed-only", is_flag=True, help="Leave the side in memory out, to see the memory of the other.")
@click.option("--out", type=click.Path(path_type=Path), help="Append the figures to this file, as JSON lines.")
def main(rows: int, dim: int, repeats: int, streamed_only: bool, out: Path | None) -> None:
    """Seconds per epoch of 1 and of 16 linear heads, streamed from a store and from memory."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.zarr"
        make(path, rows, dim)
        store = open_store(str(path))
        stored = store.rows()
        label = torch.from_numpy(store.column("label")[stored].astype(np.int64)) % CLASSES
        text = Text(torch.randn(CLASSES, dim), torch.arange(CLASSES), tuple(map(str, range(CLASSES))))
        stream = Stream(label, lambda places: (values for _, values in store.pieces(stored[places], BLOCK)),
                        torch.empty(0))
        tasks = {"streamed": Task(text, stream)}
        if not streamed_only:
            held = Rows(torch.from_numpy(store.embeddings(stored)).float(), label)
            assert len(held.unit) == rows
            tasks["in memory"] = replace(tasks["streamed"], support=held)
        for runs in (1, 16):
            seconds = in_turn({name: one_epoch(task, runs) for name, task in tasks.items()}, repeats)
            ratio = seconds["streamed"] / seconds.get("in memory", float("nan"))
            click.echo(f"R={runs:<3} " + ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
                       + f", ratio {ratio:.3f}")
            record(out, "stream", rows=rows, dim=dim, runs=runs, seconds=seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    click.echo(f"peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
