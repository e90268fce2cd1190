"""Options that say how images are read, and what is stored of each beside its embedding."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from onceclip.pipeline.commands.options import Decorator

if TYPE_CHECKING:
    from onceclip.pipeline.extraction.outputs import OutputOptions

_OUTPUT_NAMES = ("views", "view_scale", "view_seed", "views_for", "ten_crop", "preproj", "tokens")
_SPLITS = ("train", "val", "test")


def output_options() -> Decorator:
    """Options of a store's outputs; the command gets them as one argument `outputs`, for `outputs_of`."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def command(**values: Any) -> None:
            function(outputs={name: values.pop(name) for name in _OUTPUT_NAMES}, **values)

        for option in reversed([
            click.option("--views", type=click.IntRange(2), metavar="N", help="Store N views of an image: the plain "
                         "one and N - 1 random resized crops, half of them flipped."),
            click.option("--view-scale", nargs=2, type=click.FloatRange(0, 1, min_open=True), default=(0.5, 1.0),
                         show_default=True, metavar="LOW HIGH", help="Share of an image's area that such a crop has."),
            click.option("--view-seed", type=int, default=1, show_default=True, metavar="S",
                         help="With an image's content this decides its crops."),
            click.option("--views-for", default="train", show_default=True, metavar="SPLITS",
                         help="Images that have views: train, val, test, several with commas, or all."),
            click.option("--ten-crop", is_flag=True, help="Store as views the corners and the centre of an image, and "
                         "the same flipped."),
            click.option("--preproj", is_flag=True, help="Store the encoder's output before its projection too, and "
                         "the projection."),
            click.option("--tokens", type=click.Choice(["last", "value"]), help="Store patch tokens too: the last "
                         "layer's, or the text-aligned ones of its value path."),
        ]):
            command = option(command)
        return command

    return add


def outputs_of(given: dict[str, Any]) -> OutputOptions:
    """What `output_options` named."""
    from onceclip.pipeline.decoding.views import TEN_CROP, Views
    from onceclip.pipeline.extraction.outputs import OutputOptions

    if given["views"] and given["ten_crop"]:
        raise click.UsageError("--views and --ten-crop both make the views of a store: give one of them")
    low, high = given["view_scale"]
    if low > high:
        raise click.UsageError(f"--view-scale {low} {high}: the first number is the smaller one")
    splits = _SPLITS if given["views_for"] == "all" else tuple(given["views_for"].split(","))
    if not set(splits) <= set(_SPLITS):
        raise click.UsageError(f"--views-for {given['views_for']}: give train, val, test, several with commas, or all")
    views = Views(number=given["views"], scale=(low, high), seed=given["view_seed"]) if given["views"] else None
    return OutputOptions(TEN_CROP if given["ten_crop"] else views, splits, given["preproj"], given["tokens"] or "")


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
