"""One core and two: a sweep in processes of one thread, and a verification in threads.

What a process needs to start is timed on a sweep of the fewest runs, with as many processes, and taken off: it is the
same for ten runs and for ten thousand.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import click

from bench.measure import Row, Seconds, bench, in_turn, make_row, ratio
from bench.processes import onceclip
from bench.store import make
from bench.synthetic import store as make_store
from onceclip.stores.verification import verify


def sweep(store: Path, folder: Path, processes: int, seeds: int, methods: str) -> None:
    """A sweep of plain steps as a user runs it, with one thread a process."""
    out = folder / uuid4().hex
    onceclip("sweep", store, "--methods", methods, "--shots", "16", "--seeds", f"1-{seeds}", "--select", "fixed",
             "--compile", "off", "--local-workers", processes, "--out", out, OMP_NUM_THREADS="1")


def speeds(seconds: Seconds) -> dict[str, float]:
    """How many times as fast as the first way each one is."""
    first = next(iter(seconds))
    return {name: round(ratio(seconds, first, name), 3) for name in seconds}


def without_start(whole: Seconds, start: Seconds) -> Seconds:
    """What the same repetition of a way took beyond its start."""
    return {name: [max(each - begun, 1e-9) for each, begun in zip(whole[name], start[f"{name}, start"], strict=True)]
            for name in whole}


@bench("workers", small={"classes": 4, "dim": 16, "seeds": 2, "rows": 2000, "repeats": 1, "methods": "zero-shot",
                         "processes": "1"})
@click.option("--classes", default=100)
@click.option("--dim", default=512)
@click.option("--methods", default="clip-adapter,tip-adapter-f", help="With commas between.")
@click.option("--seeds", default=6, help="Runs of each method; as many for each process, or one waits.")
@click.option("--rows", default=250_000, help="Of the store that is verified.")
@click.option("--processes", default="1,2", help="Numbers of them, with commas between.")
@click.option("--repeats", default=2)
def command(classes: int, dim: int, methods: str, seeds: int, rows: int, processes: str, repeats: int) -> Iterator[Row]:
    """A sweep and a verification on one and on two cores."""
    numbers = list(map(int, processes.split(",")))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = make_store(folder / "runs.zarr", classes, 16, 4, 20, dim, noise=3.0)
        ways: dict[str, Callable[[], object]] = {}
        for number in numbers:
            name = f"{number} process{'es' * (number > 1)}"
            ways[name] = partial(sweep, store, folder, number, seeds, methods)
            ways[f"{name}, start"] = partial(sweep, store, folder, number, number, "zero-shot")
        seconds = in_turn(ways, repeats, warm=0)
        whole = {name: seconds[name] for name in seconds if not name.endswith("start")}
        net = without_start(whole, seconds)
        goals = {"15": ratio(net, "1 process", "2 processes")} if {1, 2} <= set(numbers) else {}
        yield make_row("a sweep, by processes", {"classes": classes, "dim": dim, "methods": methods,
                                                 "runs_of_each": seeds}, seconds, list(seconds), goals=goals,
                       speed_with_the_start=speeds(whole), speed_without=speeds(net))
        large = folder / "large.zarr"
        make(large, rows, dim)
        checks = in_turn({f"{number} thread{'s' * (number > 1)}": partial(verify, str(large), workers=number)
                          for number in numbers}, repeats)
        yield make_row("a verification, by threads", {"rows": rows, "dim": dim}, checks, list(checks),
                       speed=speeds(checks))
