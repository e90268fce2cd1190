"""CLIP-Adapter at ImageNet's size: 1,000 classes of 16 images, 1,024 dimensions, 200 epochs, on all cores.

A few epochs are timed and multiplied up. The efficiency table of the Tip-Adapter paper has 50 minutes for CLIP-Adapter
on one GPU, where every epoch encodes the images again.
"""

from __future__ import annotations

from collections.abc import Iterator

import click
import torch

from bench.machine import precisions
from bench.measure import Row, bench, in_turn, make_row, scaled
from bench.products import peak, step_work
from bench.runs import ours, theirs
from bench.synthetic import task as make_task
from onceclip.adapters.training.compile import OFF, ON


@bench("large", small={"classes": 10, "shots": 2, "dim": 16, "repeats": 1})
@click.option("--classes", default=1000)
@click.option("--shots", default=16)
@click.option("--dim", default=1024)
@click.option("--epochs", default=200)
@click.option("--timed", default=6, help="Epochs that are timed.")
@click.option("--repeats", default=3)
def command(classes: int, shots: int, dim: int, epochs: int, timed: int, repeats: int) -> Iterator[Row]:
    """CLIP-Adapter at ImageNet's size beside the field's loop on the same features."""
    task, threads = make_task(classes, shots, dim), torch.get_num_threads()
    ways = {f"{kind}{name}": ours(task, "clip-adapter", 1, timed, narrow, compile)
            for name, compile in (("", OFF), (", compiled", ON)) for kind, narrow in precisions().items()}
    seconds = in_turn({"peer": theirs(task, "clip-adapter", timed), **ways}, repeats)
    seconds = {way: scaled(times, epochs / timed) for way, times in seconds.items()}
    work = epochs * step_work("clip-adapter", len(task.support), dim, classes, 0)
    yield make_row(f"CLIP-Adapter, {classes:,} classes, {epochs} epochs",
                   {"shots": shots, "dim": dim, "threads": threads}, seconds, list(ways),
                   work / peak(torch.float32) / threads, epochs_timed=timed)
