"""`onceclip export`: a saved adapter for other programs, and a store as one file."""

from __future__ import annotations

from dataclasses import asdict

import click

from onceclip.pipeline.commands.options import (
    import_option,
    json_option,
    percentage,
    require_model,
    require_there,
    show,
)
from onceclip.pipeline.words import counted

_OF_STORES, _FOLDER = ("parquet", "npz"), "folder"


@click.command()
@click.argument("adapter", metavar="ADAPTER|STORE")
@click.option("--to", "format", required=True,
              type=click.Choice(["safetensors", "torch", "onnx", *_OF_STORES, _FOLDER]), help="safetensors: weight and "
              "bias of an adapter that is one linear map. torch: a program of "
              "torch.export. onnx: what ONNX Runtime and others run; needs onceclip[onnx]. parquet, npz: key, label, "
              "split and embedding of a store's images; parquet needs onceclip[parquet]. folder: the adapter as it is, "
              "to a URL such as hf://ORG/NAME, where commands take it from.")
@click.argument("file", metavar="FILE|URL")
@click.option("--with-encoder", is_flag=True, help="Put the image encoder into the file too: pixels go in instead of "
              "embeddings.")
@click.option("--check", metavar="STORE|FOLDER", help="Compare on these rows, or with --with-encoder on the images of "
              "this folder, instead of on random ones.")
@click.option("--model", metavar="NAME", help="Where the encoder is, if the adapter cannot say; as of `extract`.")
@click.option("--pretrained", metavar="TAG|FILE", help="Weights of an open_clip model.")
@click.option("--preprocess", metavar="openai|FILE", help="How images are prepared for a weights FILE.")
@import_option
@json_option
def export(adapter: str, format: str, file: str, with_encoder: bool, check: str | None, model: str | None,
           pretrained: str | None, preprocess: str | None, modules: tuple[str, ...], as_json: bool) -> None:
    """Write an adapter or a store for other programs.

    Of an adapter: raw embeddings go in, logits and probabilities come out, for any number of rows. The file is run and
    its answers are compared with onceclip's; it appears if they agree. With --with-encoder, --model says where the
    encoder is if the adapter cannot, and preprocess.py, which makes pixels of image files, is written beside FILE.

    Of a store: a row per image, and a file of every text set beside FILE. `onceclip import FILE` makes the store again.

    \b
    Examples:
        onceclip export pets-adapter --to onnx pets.onnx --check pets.zarr
        onceclip export pets-adapter --to onnx pets-images.onnx --with-encoder
        onceclip export pets.zarr --to parquet pets.parquet
        onceclip export pets-adapter --to folder hf://my-name/pets-adapter
    """
    if not with_encoder and (model or pretrained or preprocess):
        raise click.UsageError("--model, --pretrained and --preprocess name an encoder: add --with-encoder")
    require_model(model, pretrained, preprocess)
    from onceclip.pipeline.api.arguments import output_of

    if format != _FOLDER:
        output_of(file, "out: a file")
    require_there(**{"stores" if format in _OF_STORES else "adapters": [adapter]})
    from onceclip.pipeline.api.adapters import export as write
    from onceclip.pipeline.encoders import EncoderSpec

    encoder = EncoderSpec(model, pretrained, device="cpu", preprocess=preprocess) if model else None
    with percentage("export") as progress:
        made = write(adapter, format, file, with_encoder=with_encoder, check=check, encoder=encoder, modules=modules,
                     progress=progress)
    if format == _FOLDER:
        show(as_json, {**asdict(made), "adapter": adapter}, lambda: [
            f"{adapter} is at {made.url}: {counted(made.files, 'file')}, {made.bytes:,} bytes",
            *([] if made.card else ["Its README.md is the one that was there."])])
        return
    if format in _OF_STORES:
        show(as_json, {**asdict(made), "file": str(made.file), "store": adapter,
                       "texts": {name: str(each) for name, each in made.texts.items()}}, lambda: [
            f"{adapter} as {format}: {file}, {counted(made.rows, 'row')} of {made.dim} dimensions, {made.size:,} bytes",
            *[f"  text set {name}: {path}" for name, path in made.texts.items()],
            *([f"Not in it: {', '.join(made.left_out)}, which the store has of each image too."]
              if made.left_out else [])])
        return
    kind, script = "images" if with_encoder else "rows", made.preprocess and str(made.preprocess)
    show(as_json, {**asdict(made), "file": str(made.file), "preprocess": script, "adapter": adapter}, lambda: [
        f"{adapter} as {format}: {file}, {made.size:,} bytes",
        f"Its answers on {made.rows} {f'{kind} of {check}' if check else f'random {kind}'} differ from onceclip's by "
        f"{made.difference:.1g} at most.",
        *([f"{script} makes its pixels of image files (NumPy and Pillow alone)."] if script else [])])
