"""Training runs on cached features beside the field's loop, one thread each: `python -m bench.runs`.

Both sides do the same arithmetic: AdamW, cosine per step, batches of 256. The peers' loop has torch's default products.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from bench import peers
from bench.measure import in_turn, record
from bench.synthetic import task as make_task
from onceclip.adapters import METHODS, Task
from onceclip.adapters.engine import Run, train
from onceclip.adapters.products import fast_products

NAMES = {"linear": "linear-probe-adamw", "clip-adapter": "clip-adapter", "tip-adapter-f": "tip-adapter-f"}


def ours(task: Task, name: str, runs: int, epochs: int, narrow: bool) -> Callable[[], object]:
    """Train runs that differ in learning rate and decay."""
    cls = METHODS[NAMES[name]]
    values: dict[str, Any] = {"epochs": epochs, "batch_size": 256, "optimiser": "adamw", "schedule": "cosine",
                              "epsilon": 1e-4}
    methods = [cls(**values, learning_rate=1e-3 * (1 + number / runs), weight_decay=0.01) for number in range(runs)]
    prepared = methods[0].prepare(task)
    return lambda: train([Run(method, task, prepared, 0) for method in methods], narrow=narrow)


def theirs(task: Task, name: str, epochs: int) -> Callable[[], object]:
    """One run of the peers' loop, with the products that torch has by default."""
    weights = task.text.class_weights

    def run() -> None:
        peers.train(name, task.support.embedding, task.support.label, weights, epochs)

    return run


@click.command()
@click.option("--classes", default=100, show_default=True)
@click.option("--shots", default=16, show_default=True)
@click.option("--dim", default=512, show_default=True)
@click.option("--epochs", default=5, show_default=True)
@click.option("--names", default="linear,clip-adapter,tip-adapter-f", show_default=True)
@click.option("--sizes", default="1,64,256", show_default=True, help="Numbers of runs.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Append the figures to this file, as JSON lines.")
def main(classes: int, shots: int, dim: int, epochs: int, names: str, sizes: str, repeats: int,
         out: Path | None) -> None:
    """Milliseconds per step and run, and how many times faster than the peers' loop."""
    torch.set_num_threads(1)
    task = make_task(classes, shots, dim)
    steps = epochs * -(-len(task.support) // 256)
    click.echo(f"{classes} classes, {shots} shots, {dim} dimensions, {steps} steps; products: {fast_products()}")
    for name in names.split(","):
        for runs in map(int, sizes.split(",")):
            ways = {"peer": theirs(task, name, epochs), "float32": ours(task, name, runs, epochs, False),
                    "bfloat16": ours(task, name, runs, epochs, True)}
            seconds = in_turn(ways, repeats if runs == 1 else max(1, repeats // 2))
            each = {way: value / (1 if way == "peer" else runs) for way, value in seconds.items()}
            click.echo(f"{name:<14} R={runs:<4} peer {1e3 * each['peer'] / steps:7.3f} ms   " + "   ".join(
                f"{way} {1e3 * each[way] / steps:7.3f} ms, {each['peer'] / each[way]:5.2f}x" for way in list(ways)[1:]))
            record(out, "runs", name=name, runs=runs, classes=classes, shots=shots, dim=dim, steps=steps,
                   seconds_per_run=each)


if __name__ == "__main__":
    main()
