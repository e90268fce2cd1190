"""`onceclip table`: results as the table of a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onceclip.pipeline.commands.options import json_option, show
from onceclip.pipeline.commands.parameter_types import LocalPath, Names, ShotList
from onceclip.pipeline.words import counted


@click.command()
@click.argument("results", nargs=-1, required=True, metavar="RESULTS...")
@click.option("--format", "form", type=click.Choice(["markdown", "latex", "csv", "html"]), default="markdown",
              show_default=True, help="csv has plain numbers, fractions of one, without marks.")
@click.option("--score", type=Names(), default="accuracy", show_default=True, metavar="NAME,...",
              help="accuracy, accuracy_new, harmonic_mean, top5, macro_recall, nll, brier or ece; several are columns.")
@click.option("--columns", type=click.Choice(["stores", "shots", "scores"]), help="Each store and their mean, or shots "
              "or scores as means over stores.  [default: stores if there are several]")
@click.option("--shots", type=ShotList(), help="Only these.")
@click.option("--methods", type=Names(), metavar="A,B,...", help="Only these lines, in this order.")
@click.option("--interval", is_flag=True, help="Add half of the 95 % interval over seeds.")
@click.option("--digits", type=click.IntRange(0, 6), default=1, show_default=True, help="Decimals of per cent.")
@click.option("--out", type=LocalPath(path_type=Path, dir_okay=False), metavar="FILE", help="Write it to a file.")
@json_option
def table(results: tuple[str, ...], form: str, out: Path | None, as_json: bool, **shown: Any) -> None:
    """Print results as the table of a paper.

    The best of each column is bold, the second underlined. Means are over seeds, and of several stores over the seeds
    that all of them have.

    \b
    Example:
        onceclip table results --format latex --interval
        onceclip table results --columns shots --methods zero-shot,gda
    """
    from onceclip.pipeline.api.tables import table as make
    from onceclip.stores.location import whole_file

    text = make(list(results), form, **shown)
    if out is not None:
        with whole_file(out) as file:
            file.write(f"{text}\n".encode())
    show(as_json, {"format": form, "table": text, "out": out and str(out)},
         lambda: [text if out is None else f"{out}: {counted(len(text.splitlines()), 'line')} of {form}"])
