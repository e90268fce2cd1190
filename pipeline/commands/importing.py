"""`onceclip import`: features made elsewhere into a store."""

from __future__ import annotations

import click

from onceclip.pipeline.commands.extract import next_lines
from onceclip.pipeline.commands.options import column_option, json_option, show
from onceclip.pipeline.commands.parameter_types import pair_in
from onceclip.pipeline.words import counted, counts


@click.command("import")
@click.argument("arrays")
@click.argument("store")
@click.option("--encoder", metavar="NAME", help="Name of the encoder that made them, e.g. ViT-B-32/openai.")
@click.option("--text-set", "text_sets", multiple=True, metavar="NAME=FILE", help="Add a text set: an .npy file of "
              "(c, d) or (c, p, d) in the order of the classes, or .npz with text and class_names (repeatable).")
@column_option
@json_option
def import_(arrays: str, store: str, encoder: str | None, text_sets: tuple[str, ...],
            columns: tuple[tuple[str, str], ...], as_json: bool) -> None:
    """Make a store from features made elsewhere.

    ARRAYS is an .npz file, or a folder of .npy files, with embedding (n, d), label (n,) and split (n,); optionally
    key (n,), view (n, v, d), text (c, d) or (c, p, d), class_names (c,), and logit_scale, what cosines are multiplied
    with: 100 for CLIP, not its logarithm. Labels are names, or numbers with -1 for none: places in class_names, else
    each number is a class. Rows of zeros are stored as bad images.

    Or ARRAYS is a table with such columns: Parquet files (a file, a folder, a pattern, or hf://datasets/ORG/NAME), a
    folder of Hugging Face's save_to_disk, or Lance; or a folder that clip-retrieval wrote, with img_emb/*.npy and
    metadata/*.parquet: classes and splits are then the folders of the images. An import that was cut short is done
    anew by the same command.

    \b
    Examples:
        onceclip import features.npz imagenet.zarr --encoder ViT-B-32/openai --text-set cupl=cupl.npz
        onceclip import pets.parquet pets.zarr --column embedding=clip --column label=species
        onceclip import clip-retrieval-output pets.zarr --encoder ViT-B-32/openai
    """
    from onceclip.pipeline.api.stores import import_arrays

    named: dict[str, str] = {}
    for name, file in (pair_in(each, "NAME=FILE", "--text-set") for each in text_sets):
        if name in named:
            raise click.BadParameter(f"{name!r} is given twice: a set has one file", param_hint="--text-set")
        named[name] = file
    done = import_arrays(arrays, store, encoder, named, dict(columns))
    for remark in done["remarks"]:
        click.echo(f"Note: {remark}", err=True)
    show(as_json, done, lambda: [
        f"{done['store']}: {counted(done['images'], 'row')} of {done['dim']} dimensions, "
        f"{counted(done['classes'], 'class', 'classes')} ({counts(done['splits'])}), "
        f"{'with' if done['text'] else 'without'} text",
        *next_lines(done["store"], done["classes"])])
