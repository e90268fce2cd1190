"""`onceclip predict`: labels for images."""

from __future__ import annotations

import sys
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onceclip.pipeline.commands.inference import inference_option
from onceclip.pipeline.commands.options import (
    encoder_options,
    gathered,
    import_option,
    join_option,
    json_option,
    require_there,
    say_at_once,
    show,
)
from onceclip.pipeline.commands.parameter_types import LocalPath, Names
from onceclip.pipeline.words import counted

if TYPE_CHECKING:
    from onceclip.pipeline.encoders import EncoderSpec


@click.command()
@click.argument("adapter", required=False)
@click.argument("inputs", nargs=-1, metavar="(IMAGES... | FOLDER | SOURCE | STORE)")
@click.option("--zero-shot", is_flag=True, help="Label by class names alone, without an adapter: give --names and "
              "--model, or for a STORE --names or --text.")
@click.option("--names", type=Names(), metavar="A,B,...", help="Classes of --zero-shot.")
@click.option("--templates", multiple=True, metavar="NAME|FILE|SENTENCE", help="Sentences of --zero-shot, as of "
              "`onceclip text` (repeatable).  [default: \"a photo of a {}.\"]")
@click.option("--text", metavar="NAME", help="With --zero-shot: a text set of the STORE in place of --names.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Only this split of a store.")
@click.option("--top-k", type=click.IntRange(1), default=1, show_default=True, help="Classes per image.")
@click.option("--min-probability", type=click.FloatRange(0, 1), default=0, metavar="P",
              help="Leave an image without a class, as unsure, where no class has this probability.")
@click.option("--coverage", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="P",
              help="Give each image a set of classes that holds the true one with this probability.")
@click.option("--set-kind", type=click.Choice(["lac", "aps"]), default="lac", show_default=True,
              help="lac makes the smallest sets, aps sets that are larger where images are hard.")
@click.option("--out", type=LocalPath(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write the answers to a .csv, .jsonl or .parquet file instead.")
@click.option("--logits", type=LocalPath(path_type=Path, dir_okay=False), metavar="FILE.npy",
              help="Also write all logits, a row per image in the order of the answers.")
@gathered(
    "sources",
    click.option("--root", metavar="DIR|URL", help="What the paths of a manifest or list are relative to."),
    click.option("--every", type=click.IntRange(1), metavar="N", help="Label every N-th frame of videos."),
    click.option("--frames", type=click.IntRange(1), metavar="N", help="Label N frames of every video, evenly spread."))
@inference_option("Read the images by a strategy, such as mta; `onceclip methods` lists them.")
@click.option("--views", type=click.IntRange(2), metavar="N", help="Views of each image that --inference reads.  "
              "[default: as in the adapter's store, else 64]")
@encoder_options(required=False)
@join_option
@import_option
@json_option
def predict(adapter: str | None, inputs: tuple[str, ...], zero_shot: bool, names: list[str] | None,
            templates: tuple[str, ...], text: str | None, top_k: int, out: Path | None, logits: Path | None,
            sources: dict[str, Any], encoder: EncoderSpec | None, device: str, modules: tuple[str, ...], as_json: bool,
            **how: Any) -> None:
    """Label images, folders or a store with a saved adapter.

    Prints a line per image, separated by tabs: name, "ok", class and probability; or name, "unsure" or "bad", and the
    reason; or "interrupted", where this machine could not read or decode it now. The encoder is the adapter's own;
    --model says where it is if the adapter cannot. SOURCE is what `onceclip extract` takes too: a manifest, tar
    archives, - for a list of files on standard input, a URL. With --inference the adapter reads them by a strategy
    (docs/test-time.md): it makes views of the images, takes the boxes of a manifest for views, reads them as a stream
    in this order, or all together.

    \b
    Examples:
        onceclip predict pets-adapter new-photos/ --top-k 3
        onceclip predict pets-adapter new-photos/*.jpg --out labels.csv
        onceclip predict pets-adapter new-photos/ --inference mta
        onceclip predict --zero-shot --model ViT-B-32 --pretrained openai --names cat,dog new-photos/
    """
    own = [f"--{name}" for name, value in (("names", names), ("templates", templates), ("text", text)) if value]
    if own and not zero_shot:
        raise click.UsageError(f"{' and '.join(own)}: of --zero-shot alone, which takes no ADAPTER: add it")
    if zero_shot and adapter:
        inputs = (adapter, *inputs)
    if not adapter or not inputs:
        raise click.UsageError(f"give {'' if zero_shot else 'ADAPTER (or --zero-shot), and '}what is to be labelled: "
                               "images, a folder, a source or a store")
    require_there([None if zero_shot else adapter])
    say_at_once(f"loading {encoder.model if encoder else 'the encoder' if zero_shot else adapter} ...")
    from tqdm import tqdm

    from onceclip.pipeline.api.arguments import loaded
    from onceclip.pipeline.api.predictions import stream, zero_shot_of
    from onceclip.pipeline.prediction.files import FORMATS, Passing, as_line, json_text, logits_file, prediction_file
    from onceclip.pipeline.sources import SourceOptions
    from onceclip.stores.location import require_outside

    for each in filter(None, (out, logits)):
        require_outside(each)
    if out and out.suffix.lower() not in FORMATS:
        raise click.BadParameter(f"{out} does not end in {', '.join(FORMATS)}", param_hint="--out")
    found: Any = encoder
    if zero_shot:
        classifier, found = zero_shot_of(inputs, names or [], templates, text, encoder, device)
    else:
        classifier = loaded(adapter, modules)
    top_k = min(top_k, len(classifier.class_names))
    asked = stream(classifier, inputs, SourceOptions(**sources), found, top_k=top_k, device=device, **how)
    for remark in asked.remarks:
        click.echo(f"Note: {remark}", err=True)
    with ExitStack() as files:
        adders = [files.enter_context(prediction_file(out, top_k, how["coverage"] is not None))] if out else []
        if logits:
            adders.append(files.enter_context(logits_file(logits, asked.count, len(classifier.class_names))))
        shown = sys.stdout.isatty() and not (out or as_json)
        passing = Passing(tqdm(asked.predictions, "predict", asked.count, unit="image", delay=1, leave=False,
                               disable=shown or None), adders)
        made_by = {"adapter": None if zero_shot else str(adapter)}
        if out:
            deque(passing, maxlen=0)
        elif as_json:
            for part in json_text(made_by, passing):
                click.echo(part, nl=False)
            click.echo()
        else:
            for answer in passing:
                click.echo(as_line(answer))
    counts = passing.counts()
    interrupted = counts.get("interrupted", 0)
    if out:
        show(as_json, {**made_by, "out": str(out), **counts}, lambda: [
            f"{out}: {counts['n']:,} images, {counts['unsure']:,} unsure, {counts['bad']:,} bad"
            + (f", {interrupted:,} interrupted" if interrupted else "")])
    if not asked.count:
        split = f" in its {how['split']} split" if how["split"] else ""
        raise click.ClickException(f"{inputs[0]} has no images{split}")
    if interrupted:
        raise click.ClickException(f"{counted(interrupted, 'image')} could not be read or decoded for reasons of this "
                                   "machine, which says nothing of them: see that there is memory enough and that the "
                                   "storage answers, then run the same command again")
    if asked.count == counts["bad"]:
        raise click.ClickException(f"no image could be read, of {asked.count:,}")
