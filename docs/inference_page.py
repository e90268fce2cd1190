"""Prints the table of docs/inference.md: every strategy that reads sets or streams, on three adapters of a store.

`make inference-page STORE=a.zarr` carries out the runs and prints it; killed, it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from onceclip.adapters.inference import INFERENCES
from onceclip.pipeline.runs.run import NO_INFERENCE, RunSpec
from onceclip.pipeline.runs.sweep import sweep
from onceclip.stores import Store, open_store

METHODS = ("zero-shot", "gda", "clip-adapter")
SHOTS, SEED, DRAWN = 16, 1, 30
STRATEGIES: list[tuple[str, dict[str, Any]]] = [
    (name, values) for name, kind in INFERENCES.items() if kind.sees in ("set", "stream")
    for values in ([{"fit_on": "train"}, {"fit_on": "query"}] if "fit_on" in kind.hyperparameters else [{}])]


def queries_of(store: Store) -> dict[str, dict[str, Any]]:
    """The ways in which test rows are dealt out, by the heading of their column."""
    label = store.column("label")[store.rows("test")]
    classes, least = len(store.classes), int(np.bincount(label, minlength=len(store.classes)).min())
    return {"test split": {},
            "balanced": {"number": 10, "size": classes * least, "classes": (classes, classes), "balanced": True},
            "1-4 classes": {"number": DRAWN, "size": 64, "classes": (1, 4)}}


@click.command()
@click.argument("place", metavar="STORE")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/inference"), help="Folder of result rows.")
def main(place: str, out: Path) -> None:
    """Carry out the runs and print the table."""
    store = open_store(place)
    dealt = queries_of(store)
    specs = {(method, strategy, tuple(values.items()), heading): RunSpec(
                 method, SHOTS, SEED, inference=strategy, inference_values=values, batches=batches)
             for method in METHODS for strategy, values in STRATEGIES for heading, batches in dealt.items()}
    alone = {method: RunSpec(method, SHOTS, SEED) for method in METHODS}
    rows = {row["run"]: row for row in sweep([store], [*alone.values(), *specs.values()], out, progress=True)}
    click.echo("| strategy | fitted on | " + " | ".join(f"{method}, {heading}" for method in METHODS
                                                         for heading in dealt) + " |")
    click.echo("| --- | --- |" + " --- |" * (len(METHODS) * len(dealt)))
    first, values = STRATEGIES[0]
    of_first = [rows[specs[method, first, tuple(values.items()), heading].identity(store)]
                for method in METHODS for heading in dealt]
    click.echo(f"| {NO_INFERENCE} | | " + " | ".join(cell(row["inference"]["alone"]["accuracy"], None)
                                                     for row in of_first) + " |")
    for strategy, values in STRATEGIES:
        cells = []
        for method in METHODS:
            for heading in dealt:
                spec = specs[method, strategy, tuple(values.items()), heading]
                row: Mapping[str, Any] = rows[spec.identity(store)]
                cells.append(cell(row["accuracy"], row.get("inference", {}).get("alone", {}).get("accuracy")))
        click.echo(f"| {strategy} | {values.get('fit_on', '')} | " + " | ".join(cells) + " |")


def cell(accuracy: float | None, alone: float | None) -> str:
    """An accuracy in per cent, bold where it is above that of the adapter alone."""
    if accuracy is None:
        return "-"
    return f"**{100 * accuracy:.2f}**" if alone is not None and accuracy > alone else f"{100 * accuracy:.2f}"


if __name__ == "__main__":
    main()
