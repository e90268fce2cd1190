"""A table over several stores, as papers have it over eleven data sets: stores cut out of one file of features."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import click
import numpy as np

import onceclip
from onceclip.pipeline.commands.compare import comparison_lines
from onceclip.pipeline.words import counted


def cut(arrays: Path, out: Path, stores: int, encoder: str) -> list[Path]:
    """Cut features into stores of neighbouring classes, of which each has about equally many, and give their paths.

    arrays: an .npz file that `onceclip import` reads, with class_names and text. ImageNet's classes are in the order of
    WordNet, so that neighbours are related: dogs, birds, vehicles.
    """
    with np.load(arrays, allow_pickle=False) as file:
        values = {name: file[name] for name in file.files}
    ends = np.linspace(0, len(values["class_names"]), stores + 1).astype(int).tolist()
    paths = []
    for first, last in pairwise(ends):
        rows = (values["label"] >= first) & (values["label"] < last)
        part = {name: each[rows] for name, each in values.items() if name in ("embedding", "split")}
        part |= {"label": values["label"][rows] - first, "key": np.flatnonzero(rows).astype(str),
                 "text": values["text"][first:last], "class_names": values["class_names"][first:last],
                 "logit_scale": values["logit_scale"]}
        paths.append(out / f"{first:03d}-{last - 1:03d}.zarr")
        np.savez(out / "part.npz", **part)
        onceclip.import_arrays(out / "part.npz", paths[-1], encoder)
        (out / "part.npz").unlink()
    return paths


@click.command()
@click.argument("arrays", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--stores", default=11, show_default=True, help="Number of stores.")
@click.option("--encoder", default="ViT-B-32/openai", show_default=True, help="What made the features.")
@click.option("--methods", default="zero-shot,tip-adapter,gda", show_default=True)
@click.option("--shots", default="1,4", show_default=True)
@click.option("--seeds", default=2, show_default=True, help="Number of seeds.")
def command(arrays: Path, out: Path, stores: int, encoder: str, methods: str, shots: str, seeds: int) -> None:
    """Cut ARRAYS into stores in the folder OUT, sweep over all of them, and print the table and its tests."""
    out.mkdir(parents=True, exist_ok=True)
    paths = cut(arrays, out, stores, encoder)
    rows = onceclip.sweep(paths, methods=methods.split(","), shots=[int(each) for each in shots.split(",")],
                          seeds=list(range(1, seeds + 1)), out=out / "results", progress=True)
    click.echo(f"{counted(len(rows), 'run')} on {counted(len(paths), 'store')}")
    click.echo(onceclip.table(out / "results"))
    click.echo(onceclip.table(out / "results", columns="shots", interval=True))
    for test in ("wilcoxon", "friedman"):
        click.echo("\n".join(comparison_lines(onceclip.compare(out / "results", test))))
