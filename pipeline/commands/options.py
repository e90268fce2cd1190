"""What commands share: options, groups of them, and how a result is told."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from tqdm import tqdm

from onceclip.pipeline.commands.parameter_types import LocalPath, Missing, PartOf, pair_in

if TYPE_CHECKING:
    from onceclip.pipeline.workers.cluster import Workers

Decorator = Callable[[Callable[..., None]], Callable[..., None]]
KEEPS_NOTHING = "onceclip.keeps_nothing"  # of a context: its command begins anew, though others of its name go on


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator; help has them in this order."""
    return lambda function: reduce(lambda made, option: option(made), reversed(options), function)


def gathered(argument: str, *options: Decorator, make: Callable[..., Any] = dict) -> Decorator:
    """Several options that a command gets as one argument: what `make` makes of their values by name."""
    names = [str(each.name) for each in click.command()(together(*options)(lambda: None)).params]

    def add(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def command(**given: Any) -> None:
            made = make(**{name: given.pop(name) for name in names})
            function(**{argument: made}, **given)

        return together(*options)(command)

    return add


def _roles(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    named: dict[str, str] = {}
    for role, name in (pair_in(each, "ROLE=NAME, such as label=species") for each in given):
        if named.setdefault(role, name) != name:
            raise click.BadParameter(f"{role} is given two columns, {named[role]} and {name}: give it one")
    return tuple(named.items())


def _model(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """The model's name; the error where there is none says one that can be taken."""
    if not value and not context.resilient_parsing:
        raise click.UsageError("say which model encodes: --model ViT-B-32 --pretrained laion2b_s34b_b79k, or --model "
                               "demo, a small one that ships with onceclip (docs/encoders.md)", context)
    return value


def _not_empty(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """What a script gives by an empty variable is a mistake, not the option's absence."""
    if not value and parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
        raise click.BadParameter(f"it is empty: give {parameter.make_metavar(context)}, or leave {parameter.opts[0]} "
                                 "out")
    return value


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")

compile_option = click.option("--compile", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True,
                              help="Compile training steps: auto does where it pays, on a CPU with a C++ compiler.")

training_device_option = click.option("--device", default="cpu", show_default=True, metavar="D",
                                      help="Train on cpu, cuda, cuda:1 ..., or auto: a GPU where there is one.")

coverage_option = click.option("--coverage", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="P",
                               help="Count prediction sets that should hold the true class with this probability, "
                               "by lac and aps.")

import_option = click.option("--import", "modules", multiple=True, metavar="MODULE",
                             help="Import a module of yours: methods and heads from it may be used (repeatable).")

column_option = click.option(
    "--column", "columns", multiple=True, metavar="ROLE=NAME", callback=_roles, help="A table's column "
    "that is its embedding, image, label, split, key or group (repeatable).")

scheduler_option = click.option(
    "--scheduler", metavar="ADDRESS|FILE|dask", help="Have the workers of a dask scheduler do it: its address, the "
    "file that it wrote, or dask for the one that DASK_SCHEDULER_ADDRESS names (docs/clusters.md).")

part_option = click.option(
    "--part", type=PartOf(), metavar="I/N", help="Do one of N shares, such as 2/8, beside processes that do the "
    "others, as in a job array (docs/clusters.md).")

join_option = click.option(
    "--join", multiple=True, metavar="NAME=STORE", help="Another encoder's store of the same images: NAME/embedding is "
    "then one more output (repeatable; docs/encoders.md).")

# Where support rows come from that nobody labelled.
support_options = together(
    click.option("--support", default="", callback=_not_empty, metavar="SOURCE:K",
                 help="Take support rows that nobody labelled: upl, fpl, ifpl, grip and nola guess the labels of "
                 "training images, retrieve and captions take images of a --bank; MODULE:CLASS is one of your own. "
                 "Without --shots no label is read (docs/support.md)."),
    click.option("--bank", default="", callback=_not_empty, metavar="STORE",
                 help="Store of other images, of the same encoder, for --support and for methods that keep one."),
    click.option("--captions", default="", callback=_not_empty, metavar="NAME",
                 help="Text set of the bank that has the captions of its images.  [default: captions]"))

# What a draw is: of a file, not balanced, or not clean; fields of `DrawSpec` by name.
draw_options = together(
    click.option("--draws", type=LocalPath(path_type=Path, exists=True), metavar="FILE|FOLDER",
                 help="Take the images that a file lists, or of a folder the file shot_K-seed_S, in place of a draw: "
                 "CoOp's .pkl, or .json or .csv (docs/paper.md)."),
    click.option("--long-tail", type=click.FloatRange(1), default=1, metavar="RATIO",
                 help="The largest class has K images, the smallest K/RATIO, the others numbers in between."),
    click.option("--natural-prior", is_flag=True, help="Draw K images per class on average, whatever their class."),
    click.option("--label-noise", type=click.FloatRange(0, 1, max_open=True), default=0, metavar="P",
                 help="Replace each training label by another class with this probability."),
    click.option("--missing", type=Missing(), default=0, metavar="N|A,B,...",
                 help="Leave N classes that the seed chooses, or those named, without labelled images ('3,' is the "
                 "class called 3)."))


def encoder_options(required: bool) -> Decorator:
    """Options that name an encoder: a command gets `encoder`, None where there is no --model, and `device`."""
    options = together(
        click.option("--model", callback=_model if required else None, metavar="NAME",
                     help="open_clip model, hf-hub:ORG/NAME, local-dir:FOLDER, transformers:ORG/NAME|FOLDER, "
                     "MODULE:FUNCTION (an encoder of your own), or demo (ships with onceclip)."),
        click.option("--pretrained", metavar="TAG|FILE", help="Weights of an open_clip model."),
        click.option("--preprocess", metavar="openai|FILE", help="How images are prepared, where the "
                     "weights do not say it: CLIP's way, or a JSON file with mean, std, interpolation, "
                     "resize_mode."),
        click.option("--device", default="auto", show_default=True, metavar="D",
                     help="auto, cpu, cuda, cuda:1 ..."))

    def add(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def command(model: str | None, pretrained: str | None, preprocess: str | None, device: str, **given: Any
                    ) -> None:
            from onceclip.pipeline.encoders.spec import EncoderSpec, check_model

            require_model(model, pretrained, preprocess)
            encoder = EncoderSpec(model, pretrained, device=device, preprocess=preprocess) if model else None
            if encoder:
                check_model(encoder)  # before a library is imported
            function(encoder=encoder, device=device, **given)

        return options(command)

    return add


def require_model(model: str | None, pretrained: str | None, preprocess: str | None) -> None:
    """Raise UsageError for what says more of an encoder where none is named."""
    if not model and (pretrained or preprocess):
        raise click.UsageError(f"--{'pretrained' if pretrained else 'preprocess'} says more of the encoder that "
                               "--model names: add --model NAME")


def one_way(**given: Any) -> None:
    """Raise UsageError if several of some options are given; names are those of the parameters."""
    named = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None and value is not False]
    if len(named) > 1:
        raise click.UsageError(f"{' and '.join(named)} do not go together: give one of them")


def require_there(adapters: Iterable[str | None] = (), stores: Iterable[str | None] = ()) -> None:
    """Refuse a folder that holds no adapter, and a path that is no store, before the imports that take seconds.

    What is behind URLs is left to whom it concerns.
    Raises AdapterFileError, NotAStore.
    """
    from onceclip.adapters.saving import CONFIG, file_of, read_configuration
    from onceclip.pipeline.files import is_url, local_path

    for folder in (Path(local_path(place)) for place in adapters if place and not is_url(place)):
        if not os.path.isfile(file_of(folder, CONFIG)):
            read_configuration(folder)
    for place in (place for place in stores if place and not is_url(place)):
        if not os.path.isfile(os.path.join(local_path(place), "zarr.json")):  # a zip file, or no store
            from onceclip.stores import open_store

            open_store(place)


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


def show(as_json: bool, values: Any, lines: Callable[[], Iterable[str]]) -> None:
    """Print one JSON object for scripts, or lines for people."""
    click.echo(json.dumps(values, allow_nan=False) if as_json else "\n".join(lines()))


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows as lines with their cells below each other. left: number of columns that are not set to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) if place < left else cell.rjust(width)
                      for place, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]


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
