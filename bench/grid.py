"""1,000 CLIP-Adapter runs, and the search for the best of them, beside the field's ways.

The grid: five numbers of shots, five learning rates, five ratios and eight seeds; every run is scored on val and test
rows. The peers' loop and their process per run are timed on runs spread over the grid and multiplied up; neither draws
its rows nor scores val rows. A process imports what the published trainer imports, and does not load CLIP as that does.
The search finds, for each number of shots and each seed, the setting that is best on val rows: the peers train all of
them; ours are short trainings of which the best go on, in bfloat16 where the processor is faster with it, and one in
float32 at the end. Whatever processes take to start is in our times. Steps are compiled once, at first; what that takes
is a figure of its own, and all processes that come after load the code.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from bench import peers
from bench.machine import this_machine
from bench.measure import Row, bench, in_turn, make_row, ratio, scaled
from bench.processes import cores, onceclip, spread, start, wait_for
from bench.synthetic import store as make_store
from onceclip.adapters import ClipAdapter, Task, fit_selected
from onceclip.adapters.selection.search import Search
from onceclip.adapters.training.compile import ON, Compiling, compiling
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.loop import Run
from onceclip.pipeline.api.runs import make_task
from onceclip.pipeline.evaluation.evaluate import score_together
from onceclip.stores import Store, open_store

WHOLE = 1000
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
RATIOS = (0.1, 0.2, 0.4, 0.6, 0.8)
LOOP, PROCESSES, FLOAT32, BFLOAT16, SEARCH = ("peer, loop", "peer, a process per run", "ours, sweep in float32",
                                              "ours, bfloat16", "ours, halving")


class Searched(ClipAdapter):
    """CLIP-Adapter whose learning rate and ratio are searched over the grid."""

    hyperparameters = {**ClipAdapter.hyperparameters,
                       "learning_rate": replace(ClipAdapter.hyperparameters["learning_rate"], search=RATES),
                       "ratio": replace(ClipAdapter.hyperparameters["ratio"], search=RATIOS)}


@dataclass(frozen=True)
class Part:
    """The runs of one number of shots and one seed, as a value that can be sent to another process.

    runs: of all parts, by which it is decided whether steps are compiled.
    """

    store: str
    shots: int
    seed: int
    epochs: int
    runs: int = 0

    @property
    def recipe(self) -> dict[str, Any]:
        """The peers' batch size and epsilon, and as they do nothing of zero-shot's answers beside the adapter's."""
        return {"epochs": self.epochs, "batch_size": 256, "epsilon": 1e-4, "share": 1.0}

    def task(self) -> Task:
        """Its rows."""
        return make_task(_opened(self.store), self.shots, self.seed, select="val")


@cache
def _opened(path: str) -> Store:
    return open_store(path)


def narrow(part: Part) -> list[float]:
    """Test accuracy of every setting, trained with products in bfloat16."""
    task = part.task()
    methods = [ClipAdapter(learning_rate=rate, ratio=share, **part.recipe) for rate, share in product(RATES, RATIOS)]
    with compiling(Compiling(alike=part.runs)):
        trained = train([Run(method, task, task, part.seed) for method in methods], narrow=True)
    classifiers = [method.classifier(task, task, each) for method, each in zip(methods, trained, strict=True)]
    scores = [score_together(classifiers, _opened(part.store), split) for split in ("val", "test")]
    return [each.scores()["accuracy"] for each in scores[1]]


def first_compiling(part: Part) -> float:
    """Seconds by which the first trainings of compiled steps in both precisions take longer than the second."""
    task, seconds = part.task(), []
    run = Run(ClipAdapter(**part.recipe), task, task, part.seed)
    for _ in range(2):
        begun = time.perf_counter()
        with compiling(Compiling(ON)):
            for narrow in (True, False):
                train([run], narrow=narrow)
        seconds.append(time.perf_counter() - begun)
    return seconds[0] - seconds[1]


def best(part: Part) -> tuple[float, float]:
    """Accuracy on val and on test rows of the setting that the search finds."""
    with compiling(Compiling(alike=part.runs // len(RATES) // len(RATIOS))):
        found = fit_selected(Searched(**part.recipe), part.task(), "val", frozenset(part.recipe), part.seed,
                             search=Search("halving", narrow=this_machine()["bfloat16"]))
    score, = score_together([found.classifier], _opened(part.store))
    return found.accuracy or 0.0, score.scores()["accuracy"]


class Grid:
    """All runs on one store, each way of carrying them out, and what the ways found."""

    def __init__(self, path: Path, folder: Path, shots: Sequence[int], seeds: int, epochs: int, points: int,
                 processes: int) -> None:
        self.processes = processes
        self.path, self.folder, self.shots, self.seeds, self.epochs = path, folder, shots, seeds, epochs
        self.runs = len(shots) * seeds * len(RATES) * len(RATIOS)
        self.parts = [Part(str(path), number, seed, epochs, self.runs) for number in shots
                      for seed in range(1, seeds + 1)]
        settings = list(product(range(1, seeds + 1), RATES, RATIOS))
        self.samples = [(number, *settings[(2 * place + 1) * len(settings) // (2 * points)]) for number in shots
                        for place in range(points)]
        self.found: dict[str, Any] = {}
        self.turn = 0
        store = _opened(str(path))
        rows = store.rows("test")
        self.test = torch.from_numpy(store.embeddings(rows).astype(np.float32))
        self.label = torch.from_numpy(store.column("label")[rows].astype(np.int64))
        self.tasks = {(number, seed): Part(str(path), number, seed, epochs).task() for number, seed, *_ in self.samples}

    def loop(self) -> None:
        """The sampled runs, one after the other in this process."""
        found = {}
        for number, seed, rate, share in self.samples:
            task = self.tasks[number, seed]
            model = peers.train("clip-adapter", task.support.embedding, task.support.label, task.text.class_weights,
                                self.epochs, rate, seed, ratio=share)
            found[number, seed, rate, share] = peers.accuracy(model, self.test, self.label)
        self.found["loop"] = found

    def ends(self) -> list[tuple[int, int, float, float]]:
        """A sampled run with the fewest and one with the most shots."""
        return [self.samples[0], self.samples[-1]] if len(self.shots) > 1 else self.samples[:1]

    def one_each(self) -> None:
        """The runs at the ends, as many processes at once as there are cores."""
        for number, seed, rate, share in self.ends():
            task, arrays = self.tasks[number, seed], self.folder / f"{number}.npz"
            np.savez(arrays, support=task.support.embedding, label=task.support.label, test=self.test,
                     weights=task.text.class_weights, target=self.label)
            for process in [start("bench.peers", arrays, self.epochs, rate, share, seed, OMP_NUM_THREADS="1")
                            for _ in range(self.processes)]:
                wait_for(process)

    def sweep(self) -> None:
        """All runs as a user has them carried out."""
        self.turn += 1
        out = self.folder / f"rows-{self.turn}"
        grids = {"learning_rate": RATES, "ratio": RATIOS, **{name: (value,) for name, value in
                                                             self.parts[0].recipe.items()}}
        onceclip("sweep", self.path, "--methods", "clip-adapter", "--shots", ",".join(map(str, self.shots)), "--seeds",
                 f"1-{self.seeds}", *(word for name, values in grids.items() for word in
                                      ("--grid", f"{name}={','.join(map(str, values))}")),
                 "--local-workers", self.processes, "--out", out)
        rows = map(json.loads, (out / "results.jsonl").read_text(encoding="ascii").splitlines())
        self.found["sweep"] = [row for row in rows if row["accuracy"] is not None]

    def narrow(self) -> None:
        """All runs in bfloat16, on processes of one thread."""
        self.found["narrow"] = spread(narrow, self.parts[::-1], self.processes)

    def search(self) -> None:
        """The best setting of every part, on processes of one thread."""
        self.found["search"] = spread(best, self.parts[::-1], self.processes)  # the longest first: all end together

    def best_of_all(self) -> tuple[float, float]:
        """Mean accuracy on val and test rows of the settings that are best on val rows, of all runs in float32."""
        chosen: dict[tuple[int, int], Mapping[str, Any]] = {}
        for row in self.found["sweep"]:
            place = row["shots"], row["seed"]
            if place not in chosen or row["accuracy_val"] > chosen[place]["accuracy_val"]:
                chosen[place] = row
        val, test = (float(np.mean([row[name] for row in chosen.values()])) for name in ("accuracy_val", "accuracy"))
        return val, test

    def apart(self) -> float:
        """Mean difference of test accuracy, ours less the peers', over the sampled runs: start values differ."""
        own = {(row["shots"], row["seed"], row["hyperparameters"]["learning_rate"], row["hyperparameters"]["ratio"]):
               row["accuracy"] for row in self.found["sweep"]}
        return float(np.mean([own[place] - value for place, value in self.found["loop"].items() if place in own]))


@bench("grid", small={"classes": 5, "dim": 16, "shots": "1", "seeds": 1, "epochs": 3, "points": 1, "repeats": 1,
                      "processes": 1})
@click.option("--store", type=click.Path(exists=True, path_type=Path), help="Take its features, not synthetic ones.")
@click.option("--classes", default=100)
@click.option("--dim", default=512)
@click.option("--shots", default="1,2,4,8,16")
@click.option("--seeds", default=8)
@click.option("--epochs", default=20)
@click.option("--points", default=6, help="Runs of the peers that are timed for each number of shots.")
@click.option("--repeats", default=3)
@click.option("--processes", type=int, default=cores, show_default="one per core")
def command(store: Path | None, classes: int, dim: int, shots: str, seeds: int, epochs: int, points: int,
            repeats: int, processes: int) -> Iterator[Row]:
    """1,000 CLIP-Adapter runs, and the search for the best of them, on all cores."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = store or make_store(folder / "grid.zarr", classes, 16, 4, 25, dim, noise=3.0)
        grid = Grid(path, folder, list(map(int, shots.split(","))), seeds, epochs, points, processes)
        compiled = max(spread(first_compiling, grid.parts[-1:] * processes, processes))
        own = {FLOAT32: grid.sweep, **({BFLOAT16: grid.narrow} if this_machine()["bfloat16"] else {})}
        seconds = in_turn({LOOP: grid.loop, PROCESSES: grid.one_each, **own, SEARCH: grid.search}, repeats, warm=0)
        seconds[LOOP] = scaled(seconds[LOOP], grid.runs / len(grid.samples))
        seconds[PROCESSES] = scaled(seconds[PROCESSES], grid.runs / grid.processes / len(grid.ends()))
        at = {"classes": len(_opened(str(path)).classes), "dim": _opened(str(path)).dim, "runs": grid.runs,
              "epochs": epochs, "features": store.name if store else "synthetic"}
        whole = grid.runs >= WHOLE  # the goals are about no less
        of_all = {"3": ratio(seconds, PROCESSES, FLOAT32),
                  **{f"2 {way.split()[-1]}": ratio(seconds, LOOP, way) for way in own}} if whole else {}
        yield make_row("CLIP-Adapter, all runs of a grid", at,
                       {way: seconds[way] for way in (LOOP, PROCESSES, *own)}, list(own), goals=of_all,
                       compiling_once_takes=compiled, peer_runs_timed=len(grid.samples),
                       peer_process_imports=", ".join(peers.IMPORTS),
                       accuracy_less_the_peers=grid.apart(),
                       accuracy_float32=float(np.mean([row["accuracy"] for row in grid.found["sweep"]])),
                       **({"accuracy_bfloat16": float(np.mean(grid.found["narrow"]))} if BFLOAT16 in own else {}))
        (val, test), found = grid.best_of_all(), np.mean(grid.found["search"], axis=0)
        yield make_row("CLIP-Adapter, the best settings of a grid", at, {way: seconds[way] for way in (LOOP, SEARCH)},
                       [SEARCH], goals={"best": ratio(seconds, LOOP, SEARCH)} if whole else {},
                       accuracy_val_of_all_runs=val, accuracy_val_found=float(found[0]), accuracy_of_all_runs=test,
                       accuracy_found=float(found[1]))
