"""What commands share: types of arguments, groups of options, and how a result is told."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from tqdm import tqdm

from onceclip.pipeline.words import numbers_in

if TYPE_CHECKING:
    from onceclip.pipeline.encoders import EncoderSpec
    from onceclip.pipeline.workers.cluster import Workers

Decorator = Callable[[Callable[..., None]], Callable[..., None]]
KEEPS_NOTHING = "onceclip.keeps_nothing"  # of a context: its command begins anew, though others of its name go on
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")

compile_option = click.option("--compile", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True,
                              help="Compile training steps: auto does where it pays, on a CPU with a C++ compiler.")

training_device_option = click.option("--device", default="cpu", show_default=True, metavar="D",
                                      help="Train on cpu, cuda, cuda:1 ..., or auto: a GPU where there is one.")

coverage_option = click.option("--coverage", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="P",
                               help="Count prediction sets that are to hold the true class with this probability, by "
                               "lac and aps.")

import_option = click.option("--import", "modules", multiple=True, metavar="MODULE",
                             help="Import a module of yours: methods and heads from it may be used (repeatable).")


def _roles(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    named: dict[str, str] = {}
    for text in given:
        role, _, name = text.partition("=")
        if not role or not name:
            raise click.BadParameter(f"{text!r} is not ROLE=NAME, such as label=species")
        if named.setdefault(role, name) != name:
            raise click.BadParameter(f"{role} is given two columns, {named[role]} and {name}: give it one")
    return tuple(named.items())


column_option = click.option(
    "--column", "columns", multiple=True, metavar="ROLE=NAME", callback=_roles, help="A table's column "
    "that is its embedding, image, label, split, key or group (repeatable).")


def names_in(text: str) -> list[str]:
    """The names in a list with commas; quotes hold together one that has a comma, as in CSV: 'cat,"dog, small"'."""
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [])]


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


class Numbers(click.ParamType):
    """Whole numbers and ranges: 1,2,5-8."""

    name = "1,2,5-8"

    def convert(self, value: Any, param: Any, context: Any) -> list[int]:
        numbers = numbers_in(str(value))
        if not numbers:
            self.fail(f"{value!r} is no list of whole numbers such as 1,2,5-8", param, context)
        return list(dict.fromkeys(numbers))


class ShotList(click.ParamType):
    """Numbers of shots, or all."""

    name = "1,2,4,...,all"

    def convert(self, value: Any, param: Any, context: Any) -> list[int | None]:
        return [Shots().convert(part.strip(), param, context) or None for part in str(value).split(",")]


class BatchSize(click.ParamType):
    """A whole number from 1 up, or auto (0)."""

    name = "N|auto"

    def convert(self, value: Any, param: Any, context: Any) -> int:
        if str(value).lower() == "auto" or value == 0:
            return 0
        if str(value).isdecimal() and int(value) > 0:
            return int(value)
        self.fail(f"{value!r} is not a whole number from 1 up, or auto", param, context)


def _model(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """The model's name; the error where there is none says one that can be taken."""
    if value is None and not context.resilient_parsing:
        raise click.UsageError("say which model encodes: --model ViT-B-32 --pretrained laion2b_s34b_b79k, or --model "
                               "demo, a small one that ships with onceclip (docs/encoders.md)", context)
    return value


def encoder_options(required: bool) -> Decorator:
    """Options that name an encoder."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        for option in reversed([
            click.option("--model", callback=_model if required else None, metavar="NAME",
                         help="open_clip model, hf-hub:ORG/NAME, local-dir:FOLDER, transformers:ORG/NAME|FOLDER, "
                         "MODULE:FUNCTION (an encoder of your own), or demo (ships with onceclip)."),
            click.option("--pretrained", metavar="TAG|FILE", help="Weights of an open_clip model."),
            click.option("--preprocess", metavar="openai|FILE", help="How images are prepared, where the "
                         "weights do not say it: CLIP's way, or a JSON file with mean, std, interpolation, "
                         "resize_mode."),
            click.option("--device", default="auto", show_default=True, metavar="D",
                         help="auto, cpu, cuda, cuda:1 ..."),
        ]):
            function = option(function)
        return function

    return add


def encoder_spec(model: str, pretrained: str | None, preprocess: str | None, device: str,
                 **further: Any) -> EncoderSpec:
    """What `encoder_options` named; `further` are fields of EncoderSpec.

    Raises EncoderError for a model that does not exist, before a library is imported.
    """
    from onceclip.pipeline.encoders.spec import EncoderSpec, check_model

    spec = EncoderSpec(model, pretrained, device=device, preprocess=preprocess, **further)
    check_model(spec)
    return spec


def show(as_json: bool, values: Any, lines: Callable[[], list[str]]) -> None:
    """Print one JSON object for scripts, or lines for people."""
    click.echo(json.dumps(values, allow_nan=False) if as_json else "\n".join(lines()))


def say_at_once(text: str) -> None:
    """Tell on a terminal what is being done, before the imports that take a person's seconds."""
    if sys.stderr.isatty():
        click.echo(text, err=True)


@contextmanager
def percentage(name: str) -> Iterator[Callable[[float], None]]:
    """A bar for work that tells the fraction that is done; shown on a terminal, after the first second."""
    with tqdm(total=100, desc=name, delay=1, leave=False, disable=None,
              bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}") as bar:
        yield lambda fraction: None if bar.disable else bar.update(100 * fraction - bar.n)


scheduler_option = click.option(
    "--scheduler", metavar="ADDRESS|FILE|dask", help="Have the workers of a dask scheduler do it: its address, the "
    "file that it wrote, or dask for the one that DASK_SCHEDULER_ADDRESS names (docs/clusters.md).")


join_option = click.option(
    "--join", multiple=True, metavar="NAME=STORE", help="Another encoder's store of the same images: NAME/embedding is "
    "then one more output (repeatable; docs/encoders.md).")


def _not_empty(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """What a script gives by an empty variable is a mistake, not the option's absence."""
    if not value and parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
        raise click.BadParameter(f"it is empty: give {parameter.make_metavar(context)}, or leave {parameter.opts[0]} "
                                 "out")
    return value


def support_options(function: Callable[..., None]) -> Callable[..., None]:
    """Options that say where support rows come from that nobody labelled."""
    for option in reversed([
        click.option("--support", default="", callback=_not_empty, metavar="SOURCE:K",
                     help="Take support rows that nobody labelled: upl, fpl, ifpl, grip and nola guess the labels of "
                     "training images, retrieve and captions take images of a --bank; MODULE:CLASS is one of your own. "
                     "Without --shots no label is read (docs/support.md)."),
        click.option("--bank", default="", callback=_not_empty, metavar="STORE",
                     help="Store of other images, of the same encoder, for --support and for methods that keep one."),
        click.option("--captions", default="", callback=_not_empty, metavar="NAME",
                     help="Text set of the bank that has the captions of its images.  [default: captions]"),
    ]):
        function = option(function)
    return function


class PartOf(click.ParamType):
    """One of several shares of the work."""

    name = "I/N"

    def convert(self, value: Any, param: Any, context: Any) -> Any:
        from onceclip.pipeline.workers import Part

        try:
            return value if isinstance(value, Part) else Part.parse(value)
        except ValueError as error:
            self.fail(str(error), param, context)


part_option = click.option(
    "--part", type=PartOf(), metavar="I/N", help="Do one of N shares, such as 2/8, beside processes that do the "
    "others, as in a job array (docs/clusters.md).")


@contextmanager
def workers_of(scheduler: str | None, local_workers: int | None = None,
          modules: Sequence[str] = ()) -> Iterator[Workers | None]:
    """The workers that options name; None where they name none. local_workers: 0 for one per GPU, or per core.

    modules: what workers import while this process prepares their tasks.
    Raises WorkerError if the scheduler does not answer.
    """
    if scheduler is not None:
        from onceclip.pipeline.workers.cluster import connected

        with connected(scheduler, modules) as cluster:
            yield cluster
    elif local_workers is not None:
        from onceclip.pipeline.workers.cluster import local
        from onceclip.pipeline.workers.devices import cores, visible_gpus

        gpus = visible_gpus()
        with local(local_workers or len(gpus) or cores(), gpus, modules) as cluster:
            yield cluster
    else:
        yield None


def one_way(**given: Any) -> None:
    """Raise UsageError if several of some options are given; names are those of the parameters."""
    named = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None and value is not False]
    if len(named) > 1:
        raise click.UsageError(f"{' and '.join(named)} do not go together: give one of them")
