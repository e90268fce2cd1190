"""`onceclip info`: what a store or a saved adapter holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from onceclip.pipeline.commands.options import import_option, json_option, show
from onceclip.pipeline.words import counted, counts, shots_of

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
    refit = made.get("refit")
    again = f", then on all of {', '.join(map(str, refit['splits']))}" if isinstance(refit, dict) and isinstance(
        refit.get("splits"), list) else ""
    yield f"  fitted with      {shots_of(made.get('shots', '?'))}, seed {made.get('seed')}, {made.get('select')}{again}"
    yield f"  encoder          {_encoder(made.get('encoder', {}))}"
    if values["inputs"] != ["embedding"]:
        yield f"  reads            {', '.join(values['inputs'])}"
    if text := made.get("text"):
        rule = f", class weights {text['class_weights']}" if "class_weights" in text else ""
        yield f"  text             {repr(text['name']) if 'name' in text else 'of class names'}{rule}"
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
