"""`onceclip extract`: images into a store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from onceclip.pipeline.commands.extract_options import output_options, outputs_of, source_options
from onceclip.pipeline.commands.options import (
    BatchSize,
    LocalPath,
    encoder_options,
    encoder_spec,
    hired,
    json_option,
    one_way,
    part_option,
    scheduler_option,
    show,
)
from onceclip.pipeline.words import counted, counts

if TYPE_CHECKING:
    from onceclip.pipeline.extraction.extract import Extraction, PartDone
    from onceclip.pipeline.workers.work import Part


@click.command()
@click.argument("source")
@click.argument("store")
@encoder_options(required=True)
@source_options()
@output_options()
@click.option("--templates", metavar="NAME|FILE", help="Prompt templates: photo, imagenet, imagenet-7, a file with one "
              "a line, or a sentence with {}.  [default: those of the store, else \"a photo of a {}.\"]")
@click.option("--class-names", type=LocalPath(path_type=Path), metavar="FILE",
              help="What prompts call a class folder: CSV lines folder,name or a JSON object.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto", show_default=True,
              help="auto: fp32 on a CPU (by its fastest way), fp16 on a GPU.")
@click.option("--compile", is_flag=True, help="Have torch compile the encoder (docs/encoders.md: when that pays off).")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True,
              help="Type of the stored embeddings.")
@click.option("--batch-size", type=BatchSize(), default="auto", show_default=True, metavar="N|auto",
              help="Images per encoder pass; auto: what suits the device, fewer if its memory does not hold as many.")
@click.option("--decode", type=click.Choice(["exact", "fast", "torchvision"]), default="exact", show_default=True,
              help="exact: the pixels of the encoder's own preprocessing; fast: JPEGs decoded at reduced size; "
              "torchvision: JPEGs decoded on the encoder's device.")
@click.option("--exif", is_flag=True, help="Turn images as their cameras say, which papers do not.")
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
def extract(source: str, sources: dict[str, Any], outputs: dict[str, Any], store: str, model: str,
            pretrained: str | None, preprocess: str | None, device: str, templates: str | None,
            class_names: Path | None, precision: str, compile: bool, dtype: str, batch_size: int, decode: str,
            exif: bool, decode_timeout: float, retry_bad: bool, workers: int,
            local_workers: int | None, scheduler: str | None, part: Part | None, unit_rows: int,
            cache_dir: str | None, allow_random: bool, strict: bool, as_json: bool) -> None:
    """Encode images and the prompts of their classes, once.

    Reads SOURCE, writes STORE. SOURCE holds one folder of images per class, or train/, val/ and test/ with such
    folders in them; without those, a stratified split (50 % train, 20 % val, 30 % test) is drawn and recorded. Run it
    again when images were added, changed, moved or removed: only new content is encoded. Bad images are recorded with
    their reason and left out.

    \b
    SOURCE is one of (docs/sources.md describes them):
        FOLDER or its URL           pets, s3://bucket/pets
        manifest                    pets.csv, .tsv or .jsonl: path,label[,split,group]
        CoOp's split file           split_zhou_OxfordPets.json
        tar archives                'pets-{000..009}.tar', 'pets-*.tar', s3://bucket/pets.tar
        list of files               - (standard input: find pets -name '*.jpg' | ...)
        torchvision's data sets     torchvision:CIFAR10
        your own                    MODULE:FUNCTION

    \b
    Example:
        onceclip extract pets pets.zarr --model ViT-B-32 --pretrained laion2b_s34b_b79k
    """
    one_way(scheduler=scheduler, local_workers=local_workers, part=part)
    one_way(retry_bad=retry_bad, part=part)
    # Workers start before this process imports what they import too.
    cluster = click.get_current_context().with_resource(
        hired(scheduler, local_workers, ("onceclip.pipeline.extraction.units",)))

    from onceclip.pipeline.extraction.extract import PartDone, extract_part
    from onceclip.pipeline.extraction.extract import extract as run
    from onceclip.pipeline.extraction.survey import ExtractOptions
    from onceclip.pipeline.prompts import load_phrases, load_templates
    from onceclip.pipeline.sources import SourceOptions

    options = ExtractOptions(load_templates(templates) if templates else None,
                             load_phrases(class_names) if class_names else None,
                             batch_size, workers, dtype, unit_rows, progress=True, source=SourceOptions(**sources),
                             outputs=outputs_of(outputs), decode_timeout=decode_timeout, retry_bad=retry_bad)
    encoder = encoder_spec(model, pretrained, preprocess, device, precision=precision, allow_random=allow_random,
                           cache_dir=cache_dir, compile=compile, decode=decode, exif=exif)
    done: Extraction | PartDone = (extract_part(source, store, encoder, options, part) if part else
                                   run(source, store, encoder, options, cluster))
    for warning in done.warnings:
        click.echo(f"Warning: {warning}", err=True)
    show(as_json, vars(done), lambda: part_lines(done) if isinstance(done, PartDone) else extraction_lines(done))
    if strict and done.bad:
        raise click.ClickException(f"{done.bad} of {done.images} images are bad (--strict)")


def extraction_lines(done: Extraction) -> list[str]:
    """What `extract` did, every bad image by name, and the next command."""
    rate = f", {done.encoded / done.seconds:.0f} images/s" if done.encoded else ""
    stored = [f"{name} {'x'.join(map(str, shape))}" for name, shape in done.outputs.items()]
    return [
        f"{done.store}: {counted(done.images - done.bad, 'image')} of {counted(len(done.classes), 'class', 'classes')} "
        f"({counts(done.splits)})",
        f"  encoded {done.encoded:,}, reused {done.reused:,} (moved {done.moved:,}), removed {done.removed:,}, "
        f"bad {done.bad:,}; {counted(done.text['prompts'], 'prompt')}; {done.seconds:.1f} s{rate}",
        *([f"  {'; '.join(stored)}"] if stored else []),
        *(f"  bad: {key}: {reason}" for key, reason in done.bad_images.items()),
        *next_lines(done.store, done.splits, len(done.classes), done.text["prompts"] > 0),
    ]


def next_lines(store: str, splits: Mapping[str, int], classes: int, text: bool) -> list[str]:
    """The next command of somebody with a new store, as far as it has what that needs."""
    if not classes:
        return [f"Next: onceclip predict ADAPTER {quote(store)}"]
    method, choice = "tip-adapter" if text else "linear-probe", " --select val" if splits.get("val") else ""
    return [f"Next: onceclip fit {quote(store)} --method {method} --shots 16{choice}"]


def part_lines(done: PartDone) -> list[str]:
    """What one part of an extraction did, every bad image by name, and what comes next."""
    return [
        f"{done.store}, part {done.part}: encoded {done.encoded:,} of {counted(done.images, 'image')}, "
        f"bad {done.bad:,}; {done.seconds:.1f} s",
        *(f"  bad: {key}: {reason}" for key, reason in done.bad_images.items()),
        f"The store is complete. Next: onceclip fit {quote(done.store)} --method tip-adapter --shots 16 --select val"
        if done.complete else "Other parts have images to encode still; the last one to end finishes the store.",
    ]
