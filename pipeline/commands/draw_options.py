"""Options of `fit` and `sweep` that say what a draw is: by a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from onceclip.pipeline.commands.options import LocalPath

OPTIONS = (
    click.option("--draws", type=LocalPath(path_type=Path, exists=True), metavar="FILE|FOLDER",
                 help="Take the images that a file lists, or of a folder the file shot_K-seed_S, in place of a draw: "
                 "CoOp's .pkl, or .json or .csv (docs/paper.md)."),
)


def draw_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options; all of them are fields of `RunSpec`, or what its fields are made of."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function
