"""Training runs on cached features beside the field's loop, one thread each.

Both sides do the same arithmetic: AdamW, cosine per step, batches of 256. The peers' loop has torch's default products.
Ours takes plain steps and compiled ones; what compiling takes, once per kind of step, is a figure of its own. What the
machine allows is the time of a step's matrix products alone, at the rate of one large product.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import click
import torch

from bench import peers
from bench.machine import precisions
from bench.measure import Row, bench, in_turn, make_row, ratio, scaled
from bench.products import peak, step_work
from bench.synthetic import task as make_task
from onceclip.adapters import METHODS, Task
from onceclip.adapters.cpu import fast_products
from onceclip.adapters.training.compile import OFF, ON, Compiling, compiling
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.loop import Run

METHOD = {"linear": "linear-probe-adamw", "clip-adapter": "clip-adapter", "tip-adapter-f": "tip-adapter-f"}
BATCH = 256


@dataclass(frozen=True)
class Case:
    """One method at one size.

    goal: key of its goals. sizes: numbers of runs that these are about. most: the most that are timed.
    """

    name: str
    classes: int
    epochs: int
    goal: str = ""
    sizes: tuple[int, ...] = ()
    most: int = 64


CASES = (Case("linear", 10, 500, "5 ten", (8, 64)), Case("linear", 100, 40, "5", (8, 64)),
         Case("clip-adapter", 100, 20, most=8), Case("tip-adapter-f", 100, 20, "4", (1,), most=8))
LADDER = (Case("linear", 100, 20), Case("clip-adapter", 100, 3))
LADDER_SHOTS, ALONE = 4, 16


def ours(task: Task, name: str, runs: int, epochs: int, narrow: bool = False,
         compile: str = OFF) -> Callable[[], object]:
    """Train runs that differ in learning rate."""
    cls = METHODS[METHOD[name]]
    values: dict[str, Any] = {"epochs": epochs, "batch_size": BATCH, "optimizer": "adamw", "schedule": "cosine",
                              "epsilon": 1e-4, "weight_decay": 0.01}
    if name == "linear":
        values["start"] = "random"
    methods = [cls(**values, learning_rate=1e-3 * (1 + number / runs)) for number in range(runs)]
    prepared = methods[0].prepare(task)

    def run() -> None:
        with compiling(Compiling(compile)):
            train([Run(method, task, prepared, 0) for method in methods], narrow=narrow)

    return run


def theirs(task: Task, name: str, epochs: int) -> Callable[[], object]:
    """One run of the peers' loop."""
    support, weights = task.support, task.text.class_weights
    return lambda: peers.train(name, support.embedding, support.label, weights, epochs)


def beside(case: Case, shots: int, dim: int, runs: int, repeats: int) -> Row:
    """Some runs beside the peers' loop; seconds are those of one run."""
    task = make_task(case.classes, shots, dim)
    kinds = precisions()
    begun = time.perf_counter()
    for narrow in kinds.values():
        ours(task, case.name, runs, 1, narrow, ON)()
    compiling_takes = time.perf_counter() - begun
    ways = {"peer": theirs(task, case.name, case.epochs)}
    for kind, narrow in kinds.items():
        ways[f"{kind}, compiled"] = ours(task, case.name, runs, case.epochs, narrow, ON)
        ways[kind] = ours(task, case.name, runs, case.epochs, narrow)
    seconds = in_turn(ways, repeats)
    seconds = {way: scaled(times, 1 if way == "peer" else 1 / runs) for way, times in seconds.items()}
    number = len(task.support)
    work = case.epochs * step_work(case.name, number, dim, case.classes, number)
    goals = {f"{case.goal} {kind}": ratio(seconds, "peer", f"{kind}, compiled") for kind in kinds
             if runs in case.sizes}
    return make_row(f"{case.name}, {case.classes} classes, {runs} run{'s' * (runs > 1)}",
                    {"shots": shots, "dim": dim, "epochs": case.epochs}, seconds,
                    [way for way in ways if way != "peer"], work / peak(torch.float32), goals,
                    steps=case.epochs * -(-number // BATCH), products=fast_products(),
                    seconds_to_compile=compiling_takes,
                    **{f"{kind}_of_its_bound": work / peak(torch.bfloat16) / median(seconds[f"{kind}, compiled"])
                       for kind in kinds if kind == "bfloat16"})


def ladder(case: Case, dim: int, most: int, repeats: int) -> Row:
    """Any number of runs beside single ones; seconds are those of one run."""
    task = make_task(case.classes, LADDER_SHOTS, dim)
    sizes = [2**power for power in range(1, most.bit_length()) if 2**power <= most]
    one = ours(task, case.name, 1, case.epochs)
    ways: dict[str, Callable[[], object]] = {"1 run": lambda: [one() for _ in range(ALONE)]}
    ways |= {f"{runs} runs": ours(task, case.name, runs, case.epochs) for runs in sizes}
    seconds = in_turn(ways, repeats, warm=0)
    seconds = {way: scaled(times, 1 / (ALONE if way == "1 run" else int(way.split()[0])))
               for way, times in seconds.items()}
    return make_row(f"{case.name}, any number of runs", {"shots": LADDER_SHOTS, "dim": dim, "epochs": case.epochs},
                    seconds, list(seconds),
                    goals={"7": min(ratio(seconds, "1 run", way) for way in seconds if way != "1 run")})


@bench("runs", small={"shots": 1, "dim": 16, "sizes": "8", "most": 8, "repeats": 1, "names": "linear"})
@click.option("--shots", default=16)
@click.option("--dim", default=512)
@click.option("--names", default=",".join(METHOD), help="With commas between.")
@click.option("--sizes", default="1,8,64", help="Numbers of runs.")
@click.option("--most", default=1024, help="Runs up to which every power of two is timed beside single runs.")
@click.option("--repeats", default=3)
def command(shots: int, dim: int, names: str, sizes: str, most: int, repeats: int) -> Iterator[Row]:
    """Linear heads, CLIP-Adapter and Tip-Adapter-F in groups of runs, beside the field's loop and single runs."""
    torch.set_num_threads(1)
    wanted = names.split(",")
    for case in CASES:
        for runs in map(int, sizes.split(",") if case.name in wanted else ()):
            if runs > case.most:
                continue
            yield beside(case, shots, dim, runs, repeats if runs < 64 else 1)
    for case in LADDER:
        if case.name in wanted:
            yield ladder(case, dim, most, max(1, repeats - 1))
