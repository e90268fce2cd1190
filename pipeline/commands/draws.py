"""`onceclip draws`: the draws of a store as files, for other code."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

import click

from onceclip.pipeline.commands.options import json_option, require_there, show
from onceclip.pipeline.commands.parameter_types import LocalPath, Numbers, ShotList
from onceclip.pipeline.words import counted


@click.command()
@click.argument("store")
@click.option("--shots", type=ShotList(), default="1,2,4,8,16", show_default=True,
              help="Labelled training images per class, each of these numbers.")
@click.option("--seeds", type=Numbers(), default="1-3", show_default=True, help="Of the draws.")
@click.option("--format", "form", type=click.Choice(["json", "csv", "coop", "tip-adapter"]), default="json",
              show_default=True, help="json, csv: keys; coop: CoOp's pickles; tip-adapter: lists of path, number and "
              "class, as split files have.")
@click.option("--root", metavar="DIR", help="What other code has the images in: put before every key.")
@click.option("--out", type=LocalPath(path_type=Path, file_okay=False), required=True, metavar="FOLDER",
              help="Gets a file shot_K-seed_S for each draw.")
@json_option
def draws(store: str, out: Path, as_json: bool, **drawn: Any) -> None:
    """Write the images that runs train on into files.

    A draw is its training images, and min(shots, 4) validation images per class. Other code that reads them learns from
    the same images, so that its numbers can be paired with those of a sweep. `fit` and `sweep` read the folder again
    with --draws.

    \b
    Example:
        onceclip draws pets.zarr --shots 1,2,4 --seeds 1-3 --out pets-draws
        onceclip draws pets.zarr --shots 16 --seeds 1 --format coop --root /data/pets --out split_fewshot
    """
    require_there(stores=[store])
    from onceclip.pipeline.api.datasets import write_draws

    files = write_draws(store, out=out, **drawn)
    show(as_json, {"store": store, "files": [str(file) for file in files]}, lambda: [
        f"{out}: {counted(len(files), 'draw')} of {store}",
        f"Next: onceclip sweep {quote(store)} --draws {quote(str(out))} --out results"])
