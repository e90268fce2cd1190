"""Options that say how a source of images is listed."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from onceclip.pipeline.commands.options import Decorator

_NAMES = ("root", "every", "frames", "download", "unlabelled")


def source_options() -> Decorator:
    """Options of a source; the command gets them as one argument `sources`, the fields of SourceOptions."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def command(**values: Any) -> None:
            function(sources={name: values.pop(name) for name in _NAMES}, **values)

        for option in reversed([
            click.option("--root", metavar="DIR|URL", help="What the paths of a manifest or list are relative to, or "
                         "where a torchvision data set is.  [default: the manifest's folder; for others this one]"),
            click.option("--every", type=click.IntRange(1), metavar="N", help="Take every N-th frame of videos."),
            click.option("--frames", type=click.IntRange(1), metavar="N", help="Take N frames of every video, evenly "
                         "spread."),
            click.option("--download", is_flag=True, help="Let torchvision download its data set into --root."),
            click.option("--unlabelled", is_flag=True, help="Store the images without classes, for predict."),
        ]):
            command = option(command)
        return command

    return add
