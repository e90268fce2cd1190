"""`onceclip info`: what a store or an adapter holds."""

from __future__ import annotations

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
    show(as_json, values, lambda: info_lines(values))


def info_lines(values: dict[str, Any]) -> list[str]:
    """What a store or an adapter holds, for people to read."""
    if values["kind"] == "adapter":
        source = values["provenance"]
        return [
            f"{values['path']}: adapter {values['method']}, {len(values['classes'])} classes, {values['dim']} "
            "dimensions",
            f"  hyperparameters  {', '.join(f'{name}={value}' for name, value in values['hyperparameters'].items())}",
            f"  fitted with      {shots_of(source.get('shots', '?'))}, seed {source.get('seed')}, "
            f"{source.get('select')}",
            f"  encoder          {_encoder(source.get('encoder', {}))}",
            *([] if values["inputs"] == ["embedding"] else [f"  reads            {', '.join(values['inputs'])}"]),
            *_adapter_text(source.get("text")),
        ]
    images, embedding, source = values["images"], values["embedding"], values["split_source"] or {}
    result = [
        f"{values['path']}: {'complete' if values['complete'] else 'UNFINISHED'} store, schema {values['schema']}",
        f"  images           {', '.join(f'{number:,} {name}' for name, number in images.items() if number) or 'none'}",
        f"  splits           {counts(values['splits'])} ({source.get('how', 'not yet drawn')})",
        f"  embeddings       {embedding['dim']} x {embedding['dtype']}, {embedding['bytes'] / 1e6:.1f} MB, units of "
        f"{embedding['unit_rows']} rows" + _beside(embedding),
        f"  encoder          {_encoder(values['encoder'])}",
        f"  fingerprint      {values['fingerprint']}",
    ]
    if embedding["norm"]:
        norm = "{minimum:.3g} to {maximum:.3g}, median {median:.3g}".format(**embedding["norm"])
        result.append(f"  length           {norm}")
    for name, text in values["texts"].items():
        example = f", e.g. {text['first']!r}" if text["first"] else ""
        what = (f"{counted(text['prompts'], 'caption')} of {counted(text['classes'], 'item')}"
                if text["source"].get("kind") == "caption" else counted(text["prompts"], "prompt"))
        result.append(f"  text {name!r}   {what}{example}")
        result += [f"    {line}" for line in _made_of(text["source"])]
    result.append(f"  classes          {len(values['classes'])}")
    result += [f"    {name}: {', '.join(f'{split} {number}' for split, number in counts.items()) or 'no image'}"
               for name, counts in list(values["classes"].items())[:_LISTED]]
    if len(values["classes"]) > _LISTED:
        result.append(f"    and {len(values['classes']) - _LISTED} more (--json lists all)")
    return result + [f"  bad: {key}: {reason}" for key, reason in values["bad_images"].items()]


def _made_of(source: dict[str, Any]) -> list[str]:
    """What made a text set, a line each."""
    from onceclip.pipeline.prompts import class_phrases

    templates, file, waffle = source.get("templates", []), source.get("file"), source.get("waffle")
    found = [f"templates: {', '.join(map(repr, templates[:_TEMPLATES]))}"
             + (f" and {len(templates) - _TEMPLATES} more" if len(templates) > _TEMPLATES else "")] if templates else []
    if waffle:
        found.append(f"of these {waffle['pairs']} pairs of random words and characters, seed {waffle['seed']}")
    if file:
        found.append(f"file: {file['name']}, {file['form']}, digest {file['digest']}"
                     + (f", {file['repeated']} repeated sentences left out" if file["repeated"] else ""))
    renamed = {name: phrase for name, phrase in source.get("phrases", {}).items()
               if phrase != class_phrases([name])[name]}
    if renamed:
        shown = ", ".join(f"{name!r} as {phrase!r}" for name, phrase in list(renamed.items())[:_TEMPLATES])
        more = " ..." if len(renamed) > _TEMPLATES else ""
        found.append(f"{counted(len(renamed), 'class', 'classes')} by other names: {shown}{more}")
    if source.get("truncated"):
        found.append(f"{source['truncated']} prompts were cut to the encoder's context")
    return found


def _adapter_text(text: dict[str, Any] | None) -> list[str]:
    if not text:
        return []
    rule = f", class weights {text['class_weights']}" if "class_weights" in text else ""
    return [f"  text             {text['name']!r}{rule}", *(f"    {line}" for line in _made_of(text))]


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
