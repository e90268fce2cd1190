"""What commands share: types of arguments, groups of options, and how a result is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from onceclip.pipeline.encoders import EncoderSpec

Decorator = Callable[[Callable[..., None]], Callable[..., None]]
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")

compile_option = click.option("--compile", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True,
                              help="Compile training steps: auto does where it pays, on a CPU with a C++ compiler.")

training_device_option = click.option("--device", default="cpu", show_default=True, metavar="D",
                                      help="Train on cpu, cuda, cuda:1 ..., or auto: a GPU where there is one.")

import_option = click.option("--import", "modules", multiple=True, metavar="MODULE",
                             help="Import a module of yours: methods and heads from it may be used (repeatable).")


class LocalPath(click.Path):
    """A path on this machine: of what is not a store, a URL would become a folder of an odd name."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(f"{value} is a URL; only stores can be: give a path on this machine", param, context)
        return super().convert(value, param, context)


class Shots(click.ParamType):
    """A whole number from 1 up, or all."""

    name = "K|all"

    def convert(self, value: Any, param: Any, context: Any) -> int:
        if str(value).lower() == "all":
            return 0
        if str(value).isdecimal() and int(value) > 0:
            return int(value)
        self.fail(f"{value!r} is not a whole number from 1 up, or all", param, context)


class BatchSize(click.ParamType):
    """A whole number from 1 up, or auto (0)."""

    name = "N|auto"

    def convert(self, value: Any, param: Any, context: Any) -> int:
        if str(value).lower() == "auto" or value == 0:
            return 0
        if str(value).isdecimal() and int(value) > 0:
            return int(value)
        self.fail(f"{value!r} is not a whole number from 1 up, or auto", param, context)


def encoder_options(required: bool) -> Decorator:
    """Options that name an encoder."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        for option in reversed([
            click.option("--model", required=required, metavar="NAME",
                         help="open_clip model, hf-hub:ORG/NAME, local-dir:FOLDER, transformers:ORG/NAME|FOLDER, "
                         "MODULE:FUNCTION (an encoder of your own), or demo (ships with onceclip)."),
            click.option("--pretrained", metavar="TAG|FILE", help="Weights of an open_clip model."),
            click.option("--preprocess", metavar="openai|FILE", help="How images are prepared for a weights FILE: "
                         "CLIP's way, or a JSON file with mean, std, interpolation, resize_mode."),
            click.option("--device", default="auto", show_default=True, metavar="D",
                         help="auto, cpu, cuda, cuda:1 ..."),
        ]):
            function = option(function)
        return function

    return add


def encoder_spec(model: str, pretrained: str | None, preprocess: str | None, device: str,
                 **further: Any) -> EncoderSpec:
    """What `encoder_options` named; `further` are fields of EncoderSpec."""
    from onceclip.pipeline.encoders import EncoderSpec

    return EncoderSpec(model, pretrained, device=device, preprocess=preprocess, **further)


def show(as_json: bool, values: Any, lines: Callable[[], list[str]]) -> None:
    """Print one JSON object for scripts, or lines for people."""
    click.echo(json.dumps(values, allow_nan=False) if as_json else "\n".join(lines()))
