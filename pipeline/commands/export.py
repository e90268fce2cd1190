"""`onceclip export`: a saved adapter for other programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from onceclip.pipeline.commands.options import LocalPath, encoder_spec, import_option, json_option, show


@click.command()
@click.argument("adapter", type=LocalPath(path_type=Path))
@click.option("--to", "format", type=click.Choice(["safetensors", "torch", "onnx"]), required=True,
              help="safetensors: weight and bias of an adapter that is one linear map. torch: a program of "
              "torch.export. onnx: what ONNX Runtime and others run; needs onceclip[onnx].")
@click.argument("file", type=LocalPath(path_type=Path, dir_okay=False))
@click.option("--with-encoder", is_flag=True, help="Put the image encoder into the file too: pixels go in instead of "
              "embeddings.")
@click.option("--check", metavar="STORE|FOLDER", help="Compare on these rows, or with --with-encoder on the images of "
              "this folder, instead of on random ones.")
@click.option("--model", metavar="NAME", help="Where the encoder is, if the adapter cannot say; as of `extract`.")
@click.option("--pretrained", metavar="TAG|FILE", help="Weights of an open_clip model.")
@click.option("--preprocess", metavar="openai|FILE", help="How images are prepared for a weights FILE.")
@import_option
@json_option
def export(adapter: Path, format: str, file: Path, with_encoder: bool, check: str | None, model: str | None,
           pretrained: str | None, preprocess: str | None, modules: tuple[str, ...], as_json: bool) -> None:
    """Write a saved adapter into a file for other programs.

    Raw embeddings go in, logits and probabilities come out, for any number of rows. The file is run and its answers
    are compared with onceclip's; it appears if they agree. With --with-encoder, --model says where the encoder is if
    the adapter cannot, and preprocess.py, which makes pixels of image files, is written beside FILE.

    \b
    Examples:
        onceclip export pets-adapter --to onnx pets.onnx --check pets.zarr
        onceclip export pets-adapter --to onnx pets-images.onnx --with-encoder
    """
    if not with_encoder and (model or pretrained or preprocess):
        raise click.UsageError("--model, --pretrained and --preprocess name an encoder: add --with-encoder")

    from onceclip.pipeline.api.adapters import export as write

    kind = "images" if with_encoder else "rows"
    encoder = encoder_spec(model, pretrained, preprocess, "cpu") if model else None
    made = write(adapter, format, file, with_encoder=with_encoder, check=check, encoder=encoder, modules=modules)
    script = made.preprocess and str(made.preprocess)
    show(as_json, {**asdict(made), "file": str(made.file), "preprocess": script, "adapter": str(adapter)}, lambda: [
        f"{adapter} as {format}: {file}, {made.size:,} bytes",
        f"Its answers on {made.rows} {f'{kind} of {check}' if check else f'random {kind}'} differ from onceclip's by "
        f"{made.difference:.1g} at most.",
        *([f"{script} makes its pixels of image files (NumPy and Pillow alone)."] if script else [])])
