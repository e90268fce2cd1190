"""`onceclip extract`: a folder of images into a store."""

from __future__ import annotations

from pathlib import Path

import click

from onceclip.pipeline.commands.options import LocalPath, encoder_options, encoder_spec, json_option, show


@click.command()
@click.argument("folder", type=LocalPath(path_type=Path))
@click.argument("store")
@encoder_options(required=True)
@click.option("--templates", metavar="NAME|FILE", help="Prompt templates: photo, imagenet, imagenet-7, a file with one "
              "a line, or a sentence with {}.  [default: those of the store, else \"a photo of a {}.\"]")
@click.option("--class-names", type=LocalPath(path_type=Path), metavar="FILE",
              help="What prompts call a class folder: CSV lines folder,name or a JSON object.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto", show_default=True,
              help="auto: fp32 on a CPU, fp16 on a GPU.")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True,
              help="Type of the stored embeddings.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Images per encoder pass.")
@click.option("--workers", type=click.IntRange(0), default=0, help="Decoding threads.  [default: one per core]")
@click.option("--unit-rows", type=click.IntRange(1), default=4096, show_default=True,
              help="Images per unit of a new store.")
@click.option("--cache-dir", metavar="DIR", help="Where downloaded weights are kept.")
@click.option("--allow-random", is_flag=True, help="Accept a model without weights, for tests of speed.")
@click.option("--strict", is_flag=True, help="Exit with 1 if any image is bad.")
@json_option
def extract(folder: Path, store: str, model: str, pretrained: str | None, preprocess: str | None, device: str,
            templates: str | None, class_names: Path | None, precision: str, dtype: str, batch_size: int, workers: int,
            unit_rows: int, cache_dir: str | None, allow_random: bool, strict: bool, as_json: bool) -> None:
    """Encode a folder of images and its class prompts, once.

    Reads FOLDER, writes STORE. FOLDER holds one folder of images per class, or train/, val/ and test/ with such
    folders in them; without those, a stratified split (50 % train, 20 % val, 30 % test) is drawn and recorded. Run it
    again when images were added, changed, moved or removed: only new content is encoded. Bad images are recorded with
    their reason and left out.

    \b
    Example:
        onceclip extract pets pets.zarr --model ViT-B-32 --pretrained laion2b_s34b_b79k
    """
    from onceclip.pipeline.extract import ExtractOptions
    from onceclip.pipeline.extract import extract as run
    from onceclip.pipeline.prompts import load_phrases, load_templates
    from onceclip.pipeline.wording import extraction_lines

    options = ExtractOptions(load_templates(templates) if templates else None,
                             load_phrases(class_names) if class_names else None,
                             batch_size, workers, dtype, unit_rows, progress=True)
    done = run(folder, store, encoder_spec(model, pretrained, preprocess, device, precision, allow_random, cache_dir),
               options)
    for warning in done.warnings:
        click.echo(f"Warning: {warning}", err=True)
    show(as_json, vars(done), lambda: extraction_lines(done))
    if strict and done.bad:
        raise click.ClickException(f"{done.bad} of {done.images} images are bad (--strict)")
