"""`onceclip text`: a further set of class prompts in a store, or captions of its images or videos."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from onceclip.pipeline.commands.options import encoder_options, json_option, show
from onceclip.pipeline.commands.parameter_types import LocalPath, Names
from onceclip.pipeline.words import class_remarks, counted

if TYPE_CHECKING:
    from onceclip.pipeline.encoders import EncoderSpec


@click.command()
@click.argument("store")
@click.option("--name", metavar="NAME", help="What to call the set; `extract` makes \"default\".  [required, but for "
              "--captions: captions]")
@click.option("--templates", multiple=True, metavar="NAME|FILE|SENTENCE", help="imagenet, imagenet-7, photo, a data "
              "set such as oxford-pets or dtd, a file with one template a line, or a sentence with {} (repeatable).  "
              "[default: \"a photo of a {}.\" unless --prompts or --waffle is given]")
@click.option("--prompts", type=LocalPath(path_type=Path), metavar="FILE",
              help="Sentences of every class: a JSON object {\"class\": [\"sentence\", ...]}; or a .txt file with one "
              "a line, each of all classes that it names.")
@click.option("--prompts-form", type=click.Choice(["sentences", "descriptors"]), help="What the file holds: whole "
              "sentences, or descriptors such as \"two legs\", which become \"a photo of a {}, which has two legs.\"  "
              "[default: sentences, if they name their class]")
@click.option("--states", metavar="THING", help="What the images show, such as bottle: the normal class gets sentences "
              "of its normal states, all others of damaged ones, for --inference anovl.")
@click.option("--normal", default="", metavar="CLASS", help="The normal class of --states.  [default: the one called "
              "normal, good, ok or nominal]")
@click.option("--waffle", type=click.IntRange(0), default=0, metavar="N", help="Add N pairs of templates with random "
              "words and random characters (WaffleCLIP; 15 in the paper).")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of --waffle.")
@click.option("--class-names", type=LocalPath(path_type=Path), metavar="FILE", help="What prompts call a class: CSV "
              "lines folder,name or a JSON object.  [default: as in the store's default set]")
@click.option("--tower", is_flag=True, help="Write the encoder's text model into the store, for methods that learn "
              "prompts (docs/prompt-learning.md); makes no text set.")
@click.option("--words", multiple=True, metavar="TEXT", help="With --tower: words that learned prompts may start as, "
              "beside those of templates (repeatable).")
@click.option("--captions", type=LocalPath(path_type=Path), metavar="FILE", help="Sentences of single images or of "
              "groups, such as videos, instead of class prompts: CSV with the columns path,caption, JSON {\"path\": "
              "[\"caption\", ...]}, JSON lines, or COCO's file.")
@click.option("--names", type=Names(), default="", metavar="A,B,...", help="Classes for a store of unlabelled images, "
              "which has none.")
@click.option("--truncate", is_flag=True, help="Cut prompts that are longer than the encoder reads.")
@click.option("--overwrite", is_flag=True, help="Replace a set of this name that has other prompts.")
@click.option("--dry-run", is_flag=True, help="Only print the sentences; needs no encoder.")
@encoder_options(required=False)
@json_option
def text(store: str, name: str | None, tower: bool, words: tuple[str, ...], truncate: bool, overwrite: bool,
         dry_run: bool, encoder: EncoderSpec | None, device: str, as_json: bool, **of_set: Any) -> None:
    """Embed other prompts for the classes; images stay as they are.

    Templates, sentences of a file and random words add up. `fit --text NAME` then uses the set. The encoder is the
    store's own; --model says where it is if the store cannot. Captions of images or videos make a set of another kind,
    which `retrieve --text NAME` uses.

    \b
    Examples:
        onceclip text pets.zarr --name ensemble --templates imagenet
        onceclip text pets.zarr --name gpt --prompts cupl.json --dry-run
        onceclip text pets.zarr --tower
        onceclip text pets.zarr --captions captions.csv
        onceclip text unlabelled.zarr --name animals --names cat,dog
        onceclip text bottles.zarr --name states --states bottle --normal good
    """
    from onceclip.pipeline.api.stores import add_text, add_tower, sentences_of
    from onceclip.stores import open_store

    captions = of_set["captions"]
    if tower and (name or captions):
        raise click.UsageError("--tower makes no text set: give it alone, then the set in a call of its own")
    if tower:
        if dry_run or truncate or overwrite or any(value for each, value in of_set.items() if each != "seed"):
            raise click.UsageError("--tower makes no prompts: leave their options out")
        written = add_tower(store, words, encoder=encoder, device=device)
        show(as_json, written, lambda: [
            f"{store}: text tower of {written['classes']:,} class names and {written['tokens']:,} tokens, "
            f"{written['bytes'] / 1e6:,.1f} MB{'' if written['written'] else ', was there already'}",
            f"Next: onceclip fit {quote(store)} --method coop --shots 4"])
        return
    if words:
        raise click.UsageError("--words goes with --tower")
    if of_set["prompts_form"] and not of_set["prompts"]:
        raise click.UsageError("--prompts-form says what --prompts holds: give a file")
    name = "captions" if name is None and captions else name
    if name is None:
        raise click.UsageError("--name says what to call the set: give one, such as ensemble")
    opened = open_store(store)
    sentences = sentences_of(opened, name, **of_set)
    made = sentences.source
    said: Mapping[str, Any] = ({} if captions else sentences.by_class() if "file" in made else made["phrases"])
    for warning in class_remarks(said):
        click.echo(f"Warning: {warning}", err=True)
    if unused := made.get("file", {}).get("unused"):
        click.echo(f"Warning: {counted(unused, 'line')} of {made['file']['name']} left out: no class is named there",
                   err=True)
    if dry_run:
        values = {"store": store, "name": name, "prompts": sentences.by_class()}
        show(as_json, values, lambda: [f"{each}\t{sentence}" for each, lines in sentences.by_class().items()
                                       for sentence in lines])
        return
    done = add_text(store, name, encoder=encoder, device=device, truncate=truncate, overwrite=overwrite, progress=True,
                    **of_set)
    command = ("retrieve {} --text {}" if captions else
               "fit {} --method zero-shot --text {}" if opened.classes else "predict --zero-shot {} --text {}")
    if done["truncated"]:
        click.echo(f"Warning: {done['truncated']} prompts are longer than the encoder reads and were cut", err=True)
    what = (f"{counted(done['prompts'], 'caption')} of {counted(done['classes'], 'item')}" if captions else
            f"{done['prompts']:,} prompts of {done['classes']:,} classes")
    show(as_json, done, lambda: [
        f"{store}: text set {name!r} has {what}; encoded {done['encoded']:,} in {done['seconds']:.1f} s",
        f"Next: onceclip {command.format(quote(store), quote(name))}"])
