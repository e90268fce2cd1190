"""What only a GPU can show: hundreds of runs at once beside the field's loop, which trains one.

The runs are CLIP-Adapter's, of several draws and learning rates; the loop is timed on one of them. `--device cpu` shows
that all of it works; the goal is about a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import click
import torch

from bench import peers
from bench.measure import Row, bench, in_turn, make_row, ratio, scaled
from bench.synthetic import task as make_task
from onceclip.adapters import ClipAdapter
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.loop import Run
from onceclip.pipeline.workers.devices import CUDA, name_of, training_device

PEER = "peer, loop"
EPSILON, BATCH = 1e-4, 256


class Grid:
    """Runs on one device, and both ways to train them."""

    def __init__(self, device: torch.device, classes: int, shots: int, dim: int, draws: int, rates: int,
                 epochs: int) -> None:
        self.device, self.epochs = device, epochs
        self.tasks = [make_task(classes, shots, dim, seed) for seed in range(draws)]
        self.there = [task.to(device) for task in self.tasks]
        self.rates = [1e-3 * (1 + number / rates) for number in range(rates)]

    def ours(self, narrow: bool, draws: int | None = None) -> Callable[[], None]:
        """All runs, or those of the first draws."""
        methods = [ClipAdapter(learning_rate=rate, epochs=self.epochs, batch_size=BATCH, epsilon=EPSILON)
                   for rate in self.rates]
        runs = [Run(method, task, task, seed) for seed, task in enumerate(self.there[:draws]) for method in methods]

        def way() -> None:
            train(runs, narrow=narrow)
            self._wait()

        return way

    def peer(self) -> None:
        """One run."""
        task = self.tasks[0]
        peers.train("clip-adapter", task.support.embedding, task.support.label,
                    self.there[0].text.class_weights, self.epochs, device=str(self.device))
        self._wait()

    def _wait(self) -> None:
        if self.device.type == CUDA:
            torch.cuda.synchronize(self.device)


@bench("gpu", small={"device": "cpu", "classes": 4, "shots": 2, "dim": 16, "draws": 2, "rates": 2, "epochs": 2,
                     "repeats": 1})
@click.option("--device", default="cuda", help="cuda, cuda:1 ..., or cpu.")
@click.option("--classes", default=100)
@click.option("--shots", default=16)
@click.option("--dim", default=512)
@click.option("--draws", default=32)
@click.option("--rates", default=8, help="Learning rates of each draw.")
@click.option("--epochs", default=20)
@click.option("--repeats", default=3)
def command(device: str, classes: int, shots: int, dim: int, draws: int, rates: int, epochs: int,
            repeats: int) -> Iterator[Row]:
    """Hundreds of CLIP-Adapter runs on a GPU beside the field's loop there; seconds are those of one run."""
    where = training_device(device)
    grid = Grid(where, classes, shots, dim, draws, rates, epochs)
    every, one = "ours, all runs, float32", "ours, one draw, float32"
    ways = {PEER: grid.peer, every: grid.ours(narrow=False), "ours, all runs, bfloat16": grid.ours(narrow=True),
            one: grid.ours(narrow=False, draws=1)}
    seconds = in_turn(ways, repeats)
    number = {PEER: 1, one: rates}
    seconds = {way: scaled(times, 1 / number.get(way, draws * rates)) for way, times in seconds.items()}
    yield make_row(f"CLIP-Adapter, {draws * rates} runs", {"classes": classes, "shots": shots, "dim": dim,
                                                           "draws": draws, "epochs": epochs}, seconds,
                   [way for way in ways if way != PEER],
                   goals={"16 runs": ratio(seconds, PEER, every)} if where.type == CUDA else {},
                   device=name_of(where))
