"""Options of `fit` and `sweep` that say what a draw is: of a file, not balanced, or not clean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from onceclip.pipeline.commands.options import LocalPath, names_in


class Missing(click.ParamType):
    """A number of classes, or their names; a comma makes names of numbers, as in `3,` for the class 3."""

    name = "N|A,B,..."

    def convert(self, value: Any, param: Any, context: Any) -> int | tuple[str, ...]:
        if isinstance(value, int | tuple):
            return value
        names = tuple(name for name in names_in(value) if name)
        if not names:
            self.fail("it is empty: give a number of classes, or their names", param, context)
        return int(value) if value.removeprefix("-").isdecimal() else names


OPTIONS = (
    click.option("--draws", type=LocalPath(path_type=Path, exists=True), metavar="FILE|FOLDER",
                 help="Take the images that a file lists, or of a folder the file shot_K-seed_S, in place of a draw: "
                 "CoOp's .pkl, or .json or .csv (docs/paper.md)."),
    click.option("--long-tail", type=click.FloatRange(1), default=1, metavar="RATIO",
                 help="The largest class has K images, the smallest K/RATIO, and others numbers between."),
    click.option("--natural-prior", is_flag=True, help="K times the number of classes images in all, as classes come."),
    click.option("--label-noise", type=click.FloatRange(0, 1, max_open=True), default=0, metavar="P",
                 help="Replace each training label by another class with this probability."),
    click.option("--missing", type=Missing(), default=0, metavar="N|A,B,...",
                 help="Classes without any labelled image: so many, by the seed, or by name (of a class called 3: "
                 "'3,')."),
)


def draw_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options, which are fields of `DrawSpec` by name."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function
