"""`onceclip info`, `verify`, `compact` and `draws`: what a store holds, whether it is sound, and what is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from onceclip.pipeline.commands.options import (
    KEEPS_NOTHING,
    import_option,
    json_option,
    percentage,
    require_there,
    show,
)
from onceclip.pipeline.commands.parameter_types import LocalPath, Numbers, ShotList
from onceclip.pipeline.words import counted, counts, shots_of

if TYPE_CHECKING:
    from onceclip.stores.verification import Verification

_LISTED = 20  # classes
_TEMPLATES = 3


@click.command()
@click.argument("path")
@click.option("--card", "with_card", is_flag=True, help="Also write README.md into the store, for those you share it "
              "with; one that was changed by hand is left alone.")
@import_option
@json_option
def info(path: str, with_card: bool, modules: tuple[str, ...], as_json: bool) -> None:
    """Show what a store or a saved adapter holds.

    \b
    Example:
        onceclip info pets.zarr --card
    """
    from onceclip.pipeline.reporting.description import card
    from onceclip.pipeline.reporting.description import info as describe
    from onceclip.stores.card import write_card

    values = describe(path, modules)
    if with_card:
        if values["kind"] != "store":
            raise click.ClickException(f"{path} is an adapter, only stores have a card: leave --card out")
        write_card(path, card(values))
    show(as_json, values, lambda: adapter_lines(values) if values["kind"] == "adapter" else store_lines(values))


def adapter_lines(values: dict[str, Any]) -> Iterator[str]:
    """What a saved adapter holds, for people to read."""
    made = values["provenance"]
    yield f"{values['path']}: adapter {values['method']}, {len(values['classes'])} classes, {values['dim']} dimensions"
    yield f"  hyperparameters  {', '.join(f'{name}={value}' for name, value in values['hyperparameters'].items())}"
    yield f"  fitted with      {shots_of(made.get('shots', '?'))}, seed {made.get('seed')}, {made.get('select')}"
    yield f"  encoder          {_encoder(made.get('encoder', {}))}"
    if values["inputs"] != ["embedding"]:
        yield f"  reads            {', '.join(values['inputs'])}"
    if text := made.get("text"):
        rule = f", class weights {text['class_weights']}" if "class_weights" in text else ""
        yield f"  text             {text['name']!r}{rule}"
        yield from _made_of(text)


def store_lines(values: dict[str, Any]) -> Iterator[str]:
    """What a store holds, for people to read."""
    images, embedding, source = values["images"], values["embedding"], values["split_source"] or {}
    yield f"{values['path']}: {'complete' if values['complete'] else 'UNFINISHED'} store, schema {values['schema']}"
    yield f"  images           {', '.join(f'{number:,} {name}' for name, number in images.items() if number) or 'none'}"
    yield f"  splits           {counts(values['splits'])} ({source.get('how', 'not yet drawn')})"
    yield (f"  embeddings       {embedding['dim']} x {embedding['dtype']}, {embedding['bytes'] / 1e6:.1f} MB, units of "
           f"{embedding['unit_rows']} rows{_beside(embedding)}")
    yield f"  encoder          {_encoder(values['encoder'])}"
    yield f"  fingerprint      {values['fingerprint']}"
    if embedding["norm"]:
        yield "  length           {minimum:.3g} to {maximum:.3g}, median {median:.3g}".format(**embedding["norm"])
    for name, text in values["texts"].items():
        example = f", e.g. {text['first']!r}" if text["first"] else ""
        what = (f"{counted(text['prompts'], 'caption')} of {counted(text['classes'], 'item')}"
                if text["source"].get("kind") == "caption" else counted(text["prompts"], "prompt"))
        yield f"  text {name!r}   {what}{example}"
        yield from _made_of(text["source"])
    classes = list(values["classes"].items())
    yield f"  classes          {len(classes)}"
    for name, numbers in classes[:_LISTED]:
        yield f"    {name}: {', '.join(f'{split} {number}' for split, number in numbers.items()) or 'no image'}"
    if len(classes) > _LISTED:
        yield f"    and {len(classes) - _LISTED} more (--json lists all)"
    for key, reason in values["bad_images"].items():
        yield f"  bad: {key}: {reason}"


def _made_of(source: dict[str, Any]) -> Iterator[str]:
    """What made a text set, a line each."""
    from onceclip.pipeline.prompts import class_phrases

    templates, file, waffle = source.get("templates", []), source.get("file"), source.get("waffle")
    if templates:
        more = f" and {len(templates) - _TEMPLATES} more" if len(templates) > _TEMPLATES else ""
        yield f"    templates: {', '.join(map(repr, templates[:_TEMPLATES]))}{more}"
    if waffle:
        yield f"    of these {waffle['pairs']} pairs of random words and characters, seed {waffle['seed']}"
    if file:
        repeated = f", {file['repeated']} repeated sentences left out" if file["repeated"] else ""
        yield f"    file: {file['name']}, {file['form']}, digest {file['digest']}{repeated}"
    renamed = {name: phrase for name, phrase in source.get("phrases", {}).items()
               if phrase != class_phrases([name])[name]}
    if renamed:
        shown = ", ".join(f"{name!r} as {phrase!r}" for name, phrase in list(renamed.items())[:_TEMPLATES])
        more = " ..." if len(renamed) > _TEMPLATES else ""
        yield f"    {counted(len(renamed), 'class', 'classes')} by other names: {shown}{more}"
    if source.get("truncated"):
        yield f"    {source['truncated']} prompts were cut to the encoder's context"


def _beside(embedding: dict[str, Any]) -> str:
    """How the embeddings lie on disk if not plainly, and what there is beside them."""
    outputs = [f"{name} ({' x '.join(map(str, shape))})" for name, shape in embedding["outputs"].items()]
    if embedding["views"] and "view" not in embedding["outputs"]:
        outputs.append("view")
    shards = f", in shards of chunks of {embedding['chunk_rows']} rows" if embedding["chunk_rows"] else ""
    return shards + (f", with {', '.join(outputs)}" if outputs else "")


def _encoder(encoder: Any) -> str:
    if not isinstance(encoder, dict):
        return str(encoder)
    weights = f" / {encoder['pretrained']}" if encoder.get("pretrained") else ""
    length = ", normalised" if encoder.get("normalized") else ""
    return f"{encoder.get('name', 'unknown')}{weights}{length}, fingerprint {encoder.get('fingerprint', 'unknown')}"


@click.command()
@click.argument("store")
@click.option("--repair", is_flag=True, help="Mark what is damaged as to be encoded again by the next extract.")
@json_option
def verify(store: str, repair: bool, as_json: bool) -> None:
    """Read a whole store and check it.

    Checks every chunk of STORE against its checksum, rows, columns and text sets against each other, and looks for
    equal pictures in different splits or classes. Exit code 1 if anything is wrong.

    \b
    Example:
        onceclip verify pets.zarr
    """
    from onceclip.pipeline.api.stores import verify as run
    from onceclip.stores.verification import repair as mend

    with percentage("verify") as progress:
        found = run(store, progress=progress)
    show(as_json, asdict(found), lambda: verification_lines(found))
    if repair and found.faults:
        click.echo(f"{counted(mend(store, found), 'unit is', 'units are')} marked: run the `onceclip extract` command "
                   "of this store again", err=True)
    elif found.faults:
        raise click.ClickException(f"{store} has {counted(len(found.faults), 'fault')}: add --repair to have the next "
                                   "extract mend that, or take the store from a copy")


def verification_lines(found: Verification) -> Iterator[str]:
    """What is wrong with a store, or that nothing is."""
    state = counted(len(found.faults), "fault") if found.faults else "no fault"
    yield f"{found.store}: {counted(found.images, 'image')}, {counted(found.chunks, 'chunk')} read, {state}"
    yield from (f"  fault: {each.where} {each.what}" for each in found.faults)
    yield from (f"  note: {each.where} {each.what}" for each in found.remarks)


@click.command()
@click.argument("store")
@click.argument("new")
@click.option("--shard-rows", type=click.IntRange(1), metavar="N",
              help="Rows per shard of embeddings.  [default: 262144, fewer where rows are large or few]")
@json_option
def compact(store: str, new: str, shard_rows: int | None, as_json: bool) -> None:
    """Copy a store into few large files.

    Joins the chunks of STORE into shards, each checked on the way, for very large stores and for object storage.
    Every command works on NEW as on STORE. Run the same command again to go on with a copy that was cut short.
    hf://datasets/ORG/NAME publishes the copy on Hugging Face's hub, with its card, as one commit, which a command that
    was cut short begins anew (docs/sharing.md).

    \b
    Examples:
        onceclip compact pets.zarr s3://my-bucket/pets.zarr
        onceclip compact pets.zarr hf://datasets/my-name/pets
    """
    from onceclip.pipeline.api.stores import compact as run

    click.get_current_context().meta[KEEPS_NOTHING] = new.startswith("hf://")
    with percentage("compact") as progress:
        done = run(store, new, shard_rows, progress)
    show(as_json, asdict(done), lambda: [
        f"{done.store}: {done.images:,} images, {done.bytes / 1e6:.1f} MB in shards of {done.shard_rows:,} rows",
        f"  shards written {done.units:,}, reused {done.reused:,}"])


@click.command()
@click.argument("store")
@click.option("--shots", type=ShotList(), default="1,2,4,8,16", show_default=True,
              help="Labelled training images per class, each of these numbers.")
@click.option("--seeds", type=Numbers(), default="1-3", show_default=True, help="Of the draws.")
@click.option("--format", "form", type=click.Choice(["json", "csv", "coop", "tip-adapter"]), default="json",
              show_default=True, help="json, csv: keys; coop: CoOp's pickles; tip-adapter: lists of path, number and "
              "class, as split files have.")
@click.option("--root", metavar="DIR", help="What other code has the images in: put before every key.")
@click.option("--out", type=LocalPath(path_type=Path, file_okay=False), required=True, metavar="FOLDER",
              help="Gets a file shot_K-seed_S for each draw.")
@json_option
def draws(store: str, out: Path, as_json: bool, **drawn: Any) -> None:
    """Write the images that runs train on into files.

    A draw is its training images, and min(shots, 4) validation images per class. Other code that reads them learns from
    the same images, so that its numbers can be paired with those of a sweep. `fit` and `sweep` read the folder again
    with --draws.

    \b
    Example:
        onceclip draws pets.zarr --shots 1,2,4 --seeds 1-3 --out pets-draws
        onceclip draws pets.zarr --shots 16 --seeds 1 --format coop --root /data/pets --out split_fewshot
    """
    require_there(stores=[store])
    from onceclip.pipeline.api.datasets import write_draws

    files = write_draws(store, out=out, **drawn)
    show(as_json, {"store": store, "files": [str(file) for file in files]}, lambda: [
        f"{out}: {counted(len(files), 'draw')} of {store}",
        f"Next: onceclip sweep {quote(store)} --draws {quote(str(out))} --out results"])
