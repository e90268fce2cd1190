"""`onceclip extract`: images into a store."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from onceclip.pipeline.commands.options import (
    column_option,
    encoder_options,
    gathered,
    json_option,
    one_way,
    part_option,
    scheduler_option,
    show,
    workers_of,
)
from onceclip.pipeline.commands.parameter_types import LocalPath, NumberOr
from onceclip.pipeline.words import counted, counts

if TYPE_CHECKING:
    from onceclip.pipeline.encoders import EncoderSpec
    from onceclip.pipeline.extraction.extract import Extraction, PartDone
    from onceclip.pipeline.extraction.outputs import OutputOptions
    from onceclip.pipeline.workers import Part

_SPLITS = ("train", "val", "test")
_VIEWS = ("views", "ten_crop", "crops")


class SplitShares(click.ParamType):
    """Per cent of train, val and test: 80/10/10."""

    name = "T/V/T"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        try:
            return value if isinstance(value, tuple) else tuple(float(each) for each in str(value).split("/"))
        except ValueError:
            self.fail(f"{value!r} is no list of per cent for train, val and test such as 80/10/10", param, context)


output_options = gathered(
    "outputs",
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
    click.option("--crops", is_flag=True, help="Store as views the plain image and the boxes that a manifest "
                 "gives for it (columns x0, y0, x1, y1)."),
    click.option("--preproj", is_flag=True, help="Store the encoder's output before its projection too, and "
                 "the projection."),
    click.option("--tokens", type=click.Choice(["last", "value"]), help="Store patch tokens too: the last "
                 "layer's, or the text-aligned ones of its value path."),
    click.option("--layer-statistics", is_flag=True, help="Store mean and deviation over the patches of every "
                 "block too, the style of an image."))


def outputs_of(given: dict[str, Any]) -> OutputOptions:
    """What `output_options` named."""
    from onceclip.pipeline.decoding.views import CROPS, TEN_CROP, Views
    from onceclip.pipeline.extraction.outputs import OutputOptions

    made = [name for name in _VIEWS if given[name]]
    if len(made) > 1:
        named = " and ".join(f"--{name.replace('_', '-')}" for name in made)
        raise click.UsageError(f"{named} both make the views of a store: give one of them")
    _require_views(made)
    low, high = given["view_scale"]
    if low > high:
        raise click.UsageError(f"--view-scale {low} {high}: the first number is the smaller one")
    splits = _SPLITS if given["views_for"] == "all" else tuple(given["views_for"].split(","))
    if not set(splits) <= set(_SPLITS):
        raise click.UsageError(f"--views-for {given['views_for']}: give train, val, test, several with commas, or all")
    views = Views(number=given["views"], scale=(low, high), seed=given["view_seed"]) if given["views"] else None
    views = TEN_CROP if given["ten_crop"] else Views(CROPS, 1) if given["crops"] else views
    return OutputOptions(views, splits, given["preproj"], given["tokens"] or "", given["layer_statistics"])


def _require_views(made: list[str]) -> None:
    """Raise UsageError for an option on the command line that is of views, where none are made. made: what makes them.
    """
    context = click.get_current_context()
    for name, makers in {"views_for": _VIEWS, "view_scale": _VIEWS[:1], "view_seed": _VIEWS[:1]}.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE and not {*makers} & {*made}:
            ways = " or ".join(f"--{each.replace('_', '-')}" for each in makers)
            raise click.UsageError(f"--{name.replace('_', '-')} is of the views that an image has: add {ways}")


# The fields of SourceOptions.
source_options = gathered(
    "sources",
    click.option("--root", metavar="DIR|URL", help="What the paths of a manifest or list are relative to, or "
                 "where a torchvision data set is.  [default: the manifest's folder; for others this one]"),
    click.option("--every", type=click.IntRange(1), metavar="N", help="Take every N-th frame of videos."),
    click.option("--frames", type=click.IntRange(1), metavar="N", help="Take N frames of every video, evenly "
                 "spread."),
    click.option("--download", is_flag=True, help="Let torchvision download its data set into --root."),
    click.option("--unlabelled", is_flag=True, help="Store the images without classes, for predict."),
    column_option)


@click.command()
@click.argument("source")
@click.argument("store")
@encoder_options(required=True)
@source_options
@output_options
@click.option("--split-shares", type=SplitShares(), help="Per cent of each class for train, val and test, where "
              "SOURCE has no splits; a store keeps those that it began with.  [default: 50/20/30]")
@click.option("--split-seed", type=click.IntRange(0), metavar="N", help="Of the draw of splits; other seeds give other "
              "splits.  [default: 1]")
@click.option("--templates", metavar="NAME|FILE", help="Prompt templates: photo, imagenet, imagenet-7, a file with one "
              "a line, or a sentence with {}.  [default: those of the store, else \"a photo of a {}.\"]")
@click.option("--class-names", type=LocalPath(path_type=Path), metavar="FILE",
              help="What prompts call a class folder: CSV lines folder,name or a JSON object.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto", show_default=True,
              help="auto: fp32 on a CPU (by its fastest way), fp16 on a GPU.")
@click.option("--compile", is_flag=True, help="Have torch compile the encoder (docs/encoders.md: when that pays off).")
@click.option("--dtype", type=click.Choice(["float16", "float32"]),
              help="Type of values.  [default: the store's or float16]")
@click.option("--batch-size", type=NumberOr("auto"), default="auto", show_default=True, metavar="N|auto",
              help="Images per encoder pass; auto: what suits the device, fewer if its memory does not hold as many.")
@click.option("--decode", type=click.Choice(["exact", "fast", "torchvision"]), default="exact", show_default=True,
              help="exact: the pixels of the encoder's own preprocessing; fast: JPEGs decoded at reduced size; "
              "torchvision: JPEGs decoded on the encoder's device.")
@click.option("--exif", is_flag=True, help="Turn images upright, as their cameras say; papers do not.")
@click.option("--decode-timeout", type=click.FloatRange(0, min_open=True), default=60, show_default=True,
              metavar="SECONDS", help="An image that takes more processor time to read and decode is bad.")
@click.option("--retry-bad", is_flag=True, help="Try images again that are recorded as bad.")
@click.option("--workers", type=click.IntRange(0), default=0, help="Decode processes, of each worker where there are "
              "several.  [default: one per core]")
@click.option("--local-workers", type=click.IntRange(0), metavar="N", help="Encode in N processes of this machine, "
              "with a GPU each where there are some; 0: one per GPU, or per core.  [default: in this process]")
@scheduler_option
@part_option
@click.option("--unit-rows", type=click.IntRange(1), default=4096, show_default=True,
              help="Images per unit of a new store.")
@click.option("--cache-dir", metavar="DIR", help="Where downloaded weights are kept.")
@click.option("--allow-random", is_flag=True, help="Accept a model without weights, for tests of speed.")
@click.option("--strict", is_flag=True, help="Exit with 1 if any image is bad.")
@json_option
def extract(source: str, store: str, encoder: EncoderSpec, device: str, sources: dict[str, Any],
            outputs: dict[str, Any], templates: str | None, class_names: Path | None, precision: str, compile: bool,
            decode: str, exif: bool, cache_dir: str | None, allow_random: bool, local_workers: int | None,
            scheduler: str | None, part: Part | None, retry_bad: bool, strict: bool, as_json: bool, **how: Any
            ) -> None:
    """Encode images and the prompts of their classes, once.

    Reads SOURCE, writes STORE. SOURCE holds one folder of images per class, or train/, val/ and test/ with such
    folders in them; without those, a stratified split (50 % train, 20 % val, 30 % test, see --split-shares) is drawn
    and recorded. Run it again when images were added, changed, moved or removed: only new content is encoded. Bad
    images are recorded with their reason and left out.

    \b
    SOURCE is one of (docs/sources.md describes them):
        FOLDER or its URL           pets, s3://bucket/pets
        manifest                    pets.csv, .tsv or .jsonl: path,label[,split,group]
        CoOp's split file           split_zhou_OxfordPets.json
        tar archives                'pets-{000..009}.tar', 'pets-*.tar', s3://bucket/pets.tar
        list of files               - (standard input: find pets -name '*.jpg' | ...)
        torchvision's data sets     torchvision:CIFAR10
        tables of images            hf-dataset:saved-pets, hf-dataset:ORG/NAME, 'parquet:data/train-*.parquet'
        your own                    MODULE:FUNCTION

    \b
    Example:
        onceclip extract pets pets.zarr --model ViT-B-32 --pretrained laion2b_s34b_b79k
    """
    one_way(scheduler=scheduler, local_workers=local_workers, part=part)
    one_way(retry_bad=retry_bad, part=part)
    # Workers start before this process imports what they import too.
    cluster = click.get_current_context().with_resource(
        workers_of(scheduler, local_workers, ("onceclip.pipeline.extraction.processes",)))

    from onceclip.pipeline.api.stores import extract as run
    from onceclip.pipeline.extraction.extract import PartDone, extract_part
    from onceclip.pipeline.extraction.survey import ExtractOptions
    from onceclip.pipeline.prompts import load_phrases
    from onceclip.pipeline.sources import SourceOptions

    options = ExtractOptions(templates or None,
                             load_phrases(class_names) if class_names else None, progress=True,
                             source=SourceOptions(**sources), outputs=outputs_of(outputs), retry_bad=retry_bad, **how)
    encoder = replace(encoder, precision=precision, allow_random=allow_random, cache_dir=cache_dir, compile=compile,
                      decode=decode, exif=exif)
    done: Extraction | PartDone = (extract_part(source, store, encoder, options, part) if part else
                                   run(source, store, encoder, options, workers=cluster))
    for warning in done.warnings:
        click.echo(f"Warning: {warning}", err=True)
    show(as_json, vars(done), lambda: part_lines(done) if isinstance(done, PartDone) else extraction_lines(done))
    if strict and done.bad:
        raise click.ClickException(f"{done.bad} of {done.images} images are bad (--strict)")


def extraction_lines(done: Extraction) -> Iterator[str]:
    """What `extract` did, every bad image by name, and the next command."""
    rate = f", {done.encoded / done.seconds:.0f} images/s" if done.encoded else ""
    yield (f"{done.store}: {counted(done.images - done.bad, 'image')} of "
           f"{counted(len(done.classes), 'class', 'classes')} ({counts(done.splits)})")
    yield (f"  encoded {done.encoded:,}, reused {done.reused:,} (moved {done.moved:,}), removed {done.removed:,}, "
           f"bad {done.bad:,}; {counted(done.text['prompts'], 'prompt')}; {done.seconds:.1f} s{rate}")
    if done.outputs:
        yield f"  {'; '.join(f'{name} ' + 'x'.join(map(str, shape)) for name, shape in done.outputs.items())}"
    yield from (f"  bad: {key}: {reason}" for key, reason in done.bad_images.items())
    yield from next_lines(done.store, len(done.classes))


def next_lines(store: str, classes: int) -> list[str]:
    """The next command of somebody with a new store."""
    if not classes:
        return [f"Next: onceclip predict ADAPTER {quote(store)}"]
    out = f"{posixpath.basename(store.rstrip('/')).removesuffix('.zarr') or 'my'}-adapter"
    return [f"Next: onceclip fit {quote(store)} --out {quote(out)}"]


def part_lines(done: PartDone) -> Iterator[str]:
    """What one part of an extraction did, every bad image by name, and what comes next."""
    yield (f"{done.store}, part {done.part}, {counted(done.images, 'image')}: encoded {done.encoded:,}, reused "
           f"{done.reused:,}, bad {done.bad:,}; {done.seconds:.1f} s")
    yield from (f"  bad: {key}: {reason}" for key, reason in done.bad_images.items())
    yield from (["The store is complete.", *next_lines(done.store, 2)] if done.complete else
                ["Other parts have images to encode still; the last one to end finishes the store."])
