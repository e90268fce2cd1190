"""`onceclip text`: a further set of class prompts in a store."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import click

from onceclip.pipeline.commands.options import LocalPath, encoder_options, encoder_spec, json_option, show
from onceclip.pipeline.words import class_remarks


@click.command()
@click.argument("store")
@click.option("--name", metavar="NAME", help="What to call the set; `extract` makes \"default\".")
@click.option("--templates", multiple=True, metavar="NAME|FILE|SENTENCE", help="imagenet, imagenet-7, photo, a data "
              "set such as oxford-pets or dtd, a file with one template a line, or a sentence with {} (repeatable).  "
              "[default: \"a photo of a {}.\" unless --prompts or --waffle is given]")
@click.option("--prompts", type=LocalPath(path_type=Path), metavar="FILE.json",
              help="Sentences of every class: a JSON object {\"class\": [\"sentence\", ...]}.")
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
@click.option("--truncate", is_flag=True, help="Cut prompts that are longer than the encoder reads.")
@click.option("--overwrite", is_flag=True, help="Replace a set of this name that has other prompts.")
@click.option("--dry-run", is_flag=True, help="Only print the sentences; needs no encoder.")
@encoder_options(required=False)
@json_option
def text(store: str, name: str | None, templates: tuple[str, ...], prompts: Path | None, prompts_form: str | None,
         states: str | None, normal: str, waffle: int, seed: int, class_names: Path | None, tower: bool,
         words: tuple[str, ...], truncate: bool, overwrite: bool, dry_run: bool, model: str | None,
         pretrained: str | None, preprocess: str | None, device: str, as_json: bool) -> None:
    """Embed another set of class prompts, without touching the images.

    Templates, sentences of a file and random words add up. `fit --text NAME` then uses the set. The encoder is the
    store's own; --model says where it is if the store cannot.

    \b
    Examples:
        onceclip text pets.zarr --name ensemble --templates imagenet
        onceclip text pets.zarr --name gpt --prompts cupl.json --dry-run
        onceclip text pets.zarr --tower
        onceclip text bottles.zarr --name states --states bottle --normal good
    """
    from onceclip.pipeline.api.stores import add_text, add_tower, sentences_of
    from onceclip.stores import open_store

    if tower == bool(name):
        raise click.UsageError("give --name for a set of prompts, or --tower for the text model" if not tower else
                               "--tower makes no text set: give it alone, then --name in a call of its own")
    given = encoder_spec(model, pretrained, preprocess, device) if model else None
    if tower:
        if templates or prompts or states or waffle or class_names or dry_run:
            raise click.UsageError("--tower makes no prompts: leave their options out")
        written = add_tower(store, words, encoder=given, device=device)
        show(as_json, written, lambda: [
            f"{store}: text tower of {written['classes']:,} class names and {written['tokens']:,} tokens, "
            f"{written['bytes'] / 1e6:,.1f} MB{'' if written['written'] else ', was there already'}",
            f"Next: onceclip fit {quote(store)} --method coop --shots 4"])
        return
    if words:
        raise click.UsageError("--words goes with --tower")
    assert name is not None
    if prompts_form and not prompts:
        raise click.UsageError("--prompts-form says what --prompts holds: give a file")
    sentences = sentences_of(open_store(store), name, templates, prompts, prompts_form, class_names, waffle, seed,
                             states, normal)
    made = sentences.source
    said = ({each: sentences.of_class(each) for each in sentences.classes} if "file" in made else made["phrases"])
    for warning in class_remarks(said):
        click.echo(f"Warning: {warning}", err=True)
    if dry_run:
        values = {"store": store, "name": name, "prompts": {each: sentences.of_class(each)
                                                            for each in sentences.classes}}
        show(as_json, values, lambda: [f"{each}\t{sentence}" for each in sentences.classes
                                       for sentence in sentences.of_class(each)])
        return
    done = add_text(store, name, templates, prompts, prompts_form=prompts_form, class_names=class_names, waffle=waffle,
                    seed=seed, states=states, normal=normal, encoder=given, device=device, truncate=truncate,
                    overwrite=overwrite, progress=True)
    if done["truncated"]:
        click.echo(f"Warning: {done['truncated']} prompts are longer than the encoder reads and were cut", err=True)
    show(as_json, done, lambda: [
        f"{store}: text set {name!r} has {done['prompts']:,} prompts of {done['classes']:,} classes; encoded "
        f"{done['encoded']:,} in {done['seconds']:.1f} s",
        f"Next: onceclip fit {quote(store)} --method zero-shot --text {quote(name)}"])
