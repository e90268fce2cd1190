"""Prints `docs/methods.md`: what each method is, which test holds its numbers, and what it reaches on given stores.

`make methods-page STORES="a.zarr b.zarr"` carries out the runs, which takes hours for all methods, and writes the page;
killed, it goes on where it was. Rows are kept in the results folder: `--known` makes the page of those that are there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from onceclip.adapters import METHODS, Method
from onceclip.pipeline.api.catalogue import cost, trainings
from onceclip.pipeline.evaluation.statistics import mean_interval
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.runs.sweep import known, sweep
from onceclip.stores import Store, open_store

TESTS = Path(__file__).resolve().parent.parent / "tests" / "adapters"
BASELINE = "zero-shot"
SHOTS = (1, 2, 4, 8, 16)
POLICIES = ("fixed", "val")
Rows = dict[str, dict[str, Any]]


@click.command()
@click.argument("stores", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/methods"), help="Folder of result rows.")
@click.option("--methods", default="all", help="Names with commas between: the runs to carry out now.")
@click.option("--shots", default="", help="Numbers with commas between.  [default: 1 to 16, as the store has them]")
@click.option("--seeds", default=5)
@click.option("--known", "only_known", is_flag=True, help="Carry out nothing.")
def main(stores: tuple[str, ...], out: Path, methods: str, shots: str, seeds: int, only_known: bool) -> None:
    """Carry out the runs and print the page."""
    opened = [open_store(path) for path in stores]
    names = list(METHODS) if methods == "all" else methods.split(",")
    if not only_known:
        for store in opened:
            wanted = [int(each) for each in shots.split(",")] if shots else shots_of(store)
            usable = [name for name in names if fits(METHODS[name], store)]
            sweep([store], [spec for name in usable for spec in specs(name, wanted, seeds)], out, progress=True)
    rows = known(out)
    click.echo(HEAD.format(seeds=seeds))
    for line in table_of_methods():
        click.echo(line)
    for store in opened:
        click.echo("\n".join(["", *table_of_accuracies(store, rows, seeds)]))


def shots_of(store: Store) -> list[int]:
    """The usual numbers of shots that every class of a store has."""
    most = int(np.bincount(store.column("label")[store.rows("train")], minlength=len(store.classes)).min())
    return [number for number in SHOTS if number <= most]


def fits(method: type[Method], store: Store) -> bool:
    """Whether a store alone has what a method takes: the outputs, and the text tower if it wants one."""
    if method.from_bank or (method.wants_tower and not store.tower_attributes):
        return False
    return all(name == "embedding" or name in store.outputs for name in method.inputs)


def specs(name: str, shots: Sequence[int], seeds: int) -> list[RunSpec]:
    """All runs of a method; zero-shot, which has nothing to choose, is not run twice."""
    policies = POLICIES if name != BASELINE else POLICIES[:1]
    return [RunSpec(name, number, seed, select=policy) for policy in policies for number in shots
            for seed in range(1, seeds + 1)]


def table_of_methods() -> Iterator[str]:
    """One line per method."""
    yield "| method | family | a fit is | `--select val` compares | new classes | needs | its numbers are held by |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, method in METHODS.items():
        exact = " and the mixing weight" if method.mixing else ""
        number, unit = trainings(method), "trainings" if method.trained else "settings"
        compared = f"{number} {unit}{exact}" if number > 1 else exact.removeprefix(" and ") or "nothing"
        held = ", ".join(f"`{file}`" for file in tests_of(method)) or "none"
        yield (f"| [{name}](../adapters/methods/{method.__module__.rsplit('.', 1)[1]}.py) | {method.family} | "
               f"{cost(method)} | {compared} | {'yes' if method.transfers else 'no'} | {method.needs} | {held} |")


def tests_of(method: type[Method]) -> list[str]:
    """The files of golden values and dense formulas that name a method; else other tests of its family alone."""
    named = [file.name for file in sorted(TESTS.rglob("test_*.py"))
             if re.search(rf"\b{method.__name__}\b", file.read_text(encoding="utf-8"))]
    held = [name for name in named if name.startswith(("test_golden", "test_dense"))]
    return held or [name for name in named if name.startswith(("test_text", "test_linear", "test_prompt"))]


def table_of_accuracies(store: Store, rows: Rows, seeds: int) -> Iterator[str]:
    """Mean test accuracies with their intervals, a line per method and policy; numbers of shots that were run."""
    shots = [number for number in shots_of(store) if accuracies(store, rows, BASELINE, POLICIES[0], number, seeds)]
    test = len(store.rows("test"))
    yield f"## {Path(store.path).stem}: {len(store.classes)} classes, {test:,} test rows\n"
    yield "| method | select | " + " | ".join(f"{number} shot{'s' * (number > 1)}" for number in shots) + " |"
    yield "| --- | --- |" + " --- |" * len(shots)
    absent = []
    for name, method in METHODS.items():
        if not fits(method, store):
            absent.append(name)
            continue
        found = False
        for policy in POLICIES if name != BASELINE else POLICIES[:1]:
            cells = [cell(store, rows, name, policy, number, seeds) for number in shots]
            if any(cells):
                found = True
                yield f"| {name} | {policy} | " + " | ".join(cells) + " |"
        if not found:
            absent.append(name)
    if absent:
        yield f"\nWithout a run here: {', '.join(absent)}."


def cell(store: Store, rows: Rows, name: str, policy: str, shots: int, seeds: int) -> str:
    """Mean and interval in per cent, marked where it is below zero-shot by more than the interval of the difference."""
    own, base = (accuracies(store, rows, each, each_policy, shots, seeds)
                 for each, each_policy in ((name, policy), (BASELINE, POLICIES[0])))
    if not own:
        return ""
    mean = mean_interval([100 * value for value in own.values()])
    text = f"{mean.value:.2f}" + (f" ± {mean.half_width:.2f}" if mean.half_width is not None else "")
    common = sorted(own.keys() & base.keys())
    if len(common) > 1:
        difference = mean_interval([100 * (own[seed] - base[seed]) for seed in common])
        text += " ▼" if difference.value + (difference.half_width or 0) < 0 else ""
    return text + (f" ({len(own)} seed{'s' * (len(own) > 1)})" if len(own) < seeds else "")


def accuracies(store: Store, rows: Rows, name: str, policy: str, shots: int, seeds: int) -> dict[int, float]:
    """Test accuracy of every seed that has a row."""
    found = {spec.seed: rows.get(spec.identity(store)) for spec in specs(name, [shots], seeds)
             if spec.select == policy}
    return {seed: row["accuracy"] for seed, row in found.items() if row and row["accuracy"] is not None}


HEAD = """# Methods

`onceclip methods NAME` prints a method's equation, its hyperparameters with what is tried, and its source.
`docs/methods_page.py` makes this page.

- "A fit is": what one fit computes; "no fit" stores the support as it is.
- "`--select val` compares": the trainings, or the settings of a method without training; a mixing weight costs no
  training ([the rule](selection.md)).
- Accuracies: top-1 of the test split in per cent, mean ± 95 % interval over {seeds} draws (Student's t). `fixed`: every
  hyperparameter at its default. `val`: chosen on min(shots, 4) validation rows per class.
  An interval of 0 at the most shots of a store: every draw has all its rows.
- ▼: below zero-shot by more than the 95 % interval of the paired difference. The linear probes that never see the text
  start from nothing: with few shots they are below zero-shot, as they are in the papers.
- Empty cells were not run; a cell of fewer draws says so. Some defaults of `zs-lp`, `clap`, `taskres`,
  `cross-modal-lp`, `cross-modal-adapter`, `wise-ft`, `ape-t` and `multi-modal-adapter` were chosen with these stores'
  test rows in sight: their numbers at `fixed` are optimistic here.
"""


if __name__ == "__main__":
    main()
