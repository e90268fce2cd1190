"""`onceclip retrieve`: captions and images or videos rank each other; a query finds the nearest; near-duplicates."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import click
from click.core import ParameterSource

from onceclip.pipeline.commands.options import (
    LocalPath,
    encoder_options,
    encoder_spec,
    json_option,
    one_way,
    percentage,
    show,
)
from onceclip.pipeline.words import counted, few_words, percent

_FIGURES = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "median_rank": "median rank", "mean_rank": "mean rank",
            "map": "mAP", "ndcg": "nDCG"}
CAPTIONS = "captions"
_WAYS = {CAPTIONS: "scoring captions", "search": "--query and --image", "duplicates": "--duplicates",
         "answers": "--answers"}
# Options that not all of them take.
_TAKEN_BY = {
    **dict.fromkeys(("text", "rerank", "phrases", "normalize", "bank", "negatives", "save", "maps"), (CAPTIONS,)),
    **dict.fromkeys(("train", "seed", "epochs", "learning_rate"), (CAPTIONS, "answers")),
    **dict.fromkeys(("pooling", "page", "images"), (CAPTIONS, "search")),
    **dict.fromkeys(("top", "by"), ("search", "duplicates")),
    "out": (CAPTIONS, "duplicates", "answers"),
}


@click.command()
@click.argument("store")
@click.option("--text", default="captions", show_default=True, metavar="NAME", help="The set of captions to score, as "
              "`onceclip text --captions` makes one.")
@click.option("--query", metavar="SENTENCE", help="Instead of scoring captions, find what is nearest to a sentence.")
@click.option("--image", type=LocalPath(dir_okay=False), metavar="FILE", help="Instead, find what is nearest to an "
              "image.")
@click.option("--duplicates", type=click.FloatRange(0, 1, min_open=True), metavar="COSINE", help="Instead, list pairs "
              "that are at least as near as this, such as 0.98.")
@click.option("--answers", type=LocalPath(path_type=Path, dir_okay=False), metavar="FILE.json", help="Instead, score "
              "questions about items: a list of {\"path\", \"question\", \"answers\": [...], \"right\": 0}.")
@click.option("--top", type=click.IntRange(1), default=20, show_default=True, help="Of --query and --image: how many; "
              "of --duplicates: how many of the nearest pairs are printed.")
@click.option("--by", type=click.Choice(["key", "group"]), help="Find images (and single frames), or groups such as "
              "videos.  [default: key; captions say themselves what they are of]")
@click.option("--split", type=click.Choice(["train", "val", "test", "all"]), help="[default: all; of captions test, "
              "where they belong to it]")
@click.option("--pooling", default="mean", show_default=True, metavar="NAME", help="What the frames of a video become: "
              "mean (CLIP4Clip), raw-mean, fitclip, hitchhiker[:TEMPERATURE], max.")
@click.option("--rerank", metavar="max[:WEIGHT]|comclip", help="Add the best frame's cosine, times 0.5 or WEIGHT "
              "(CLIPRerank); or draw images to those of their stored crops (extract --crops) that --phrases agree with "
              "(ComCLIP).")
@click.option("--phrases", type=LocalPath(path_type=Path, dir_okay=False), metavar="FILE.json", help="Of --rerank "
              "comclip: a list of phrases for every caption, one for each crop: {\"a dog chases a cat\": [\"a dog\", "
              "...], ...}.")
@click.option("--normalize", metavar="qb[:BETA]|dual-softmax[:SCALE]", help="Take from candidates that are near to "
              "every query: QB-Norm against a bank of queries, or dual softmax over all queries. Rows say that this is "
              "transductive.")
@click.option("--bank", type=click.Choice(["train", "val", "test", "all"]), help="Of qb: whose captions and items are "
              "the bank.  [default: train]")
@click.option("--train", metavar="NAME", help="First train on the captions of the train split; val chooses the epoch: "
              "labclip (a map of texts), geodesic (maps of both sides), temporal or contra (a head over frames). Of "
              "--answers: tem-adapter.")
@click.option("--negatives", metavar="NAME", help="Of --train labclip: a set of false captions of the same items.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of --train.")
@click.option("--epochs", type=click.IntRange(0), metavar="N", help="Of --train.  [default: 20]")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), metavar="R", help="Of --train.  "
              "[default: 0.0001]")
@click.option("--save", type=LocalPath(path_type=Path, file_okay=False), metavar="FOLDER", help="Of --train: save "
              "what was trained.")
@click.option("--map", "maps", type=LocalPath(path_type=Path, file_okay=False), metavar="FOLDER", help="Score with "
              "what --save saved, on this or another store of the same encoder.")
@click.option("--out", type=LocalPath(path_type=Path, dir_okay=False), metavar="FILE", help="Write the result row as "
              "JSON; of --duplicates, all pairs as CSV.")
@click.option("--page", type=LocalPath(path_type=Path, dir_okay=False), metavar="FILE.html", help="Write a page with "
              "small pictures: what was found, or the best and worst queries.")
@click.option("--images", metavar="FOLDER", help="Where the store's images are, for pictures.  [default: the store's "
              "path without .zarr, if there]")
@encoder_options(required=False)
@json_option
def retrieve(store: str, text: str, query: str | None, image: str | None, duplicates: float | None,
             answers: Path | None, top: int, by: str | None, split: str | None, pooling: str, rerank: str | None,
             phrases: Path | None, normalize: str | None, bank: str | None, train: str | None, negatives: str | None,
             seed: int, epochs: int | None, learning_rate: float | None, save: Path | None, maps: Path | None,
             out: Path | None, page: Path | None, images: str | None, model: str | None, pretrained: str | None,
             preprocess: str | None, device: str, as_json: bool) -> None:
    """Find images or videos by a text or an image; score captions.

    Without --query, --image or --duplicates, every caption of --text ranks all captioned items of the split, and every
    item all captions: recall at 1, 5 and 10, ranks, mAP and nDCG, with equal scores counted half.

    \b
    Examples:
        onceclip text films.zarr --captions captions.csv
        onceclip retrieve films.zarr --normalize qb --page films.html
        onceclip retrieve pets.zarr --query "a sleeping cat" --top 10
        onceclip retrieve pets.zarr --duplicates 0.98 --out pairs.csv
    """
    from onceclip.pipeline.api import retrieval

    one_way(query=query, image=image, duplicates=duplicates, answers=answers)
    way = ("answers" if answers is not None else "duplicates" if duplicates is not None else
           CAPTIONS if query is None and image is None else "search")
    _require_taken(way, trained=train is not None, page=page is not None)
    encoder = encoder_spec(model, pretrained, preprocess, device) if model else None
    if answers is not None:
        if train not in (None, "tem-adapter"):
            raise click.UsageError(f"--train {train} is not for --answers: there is tem-adapter")
        with percentage("retrieve") as progress:
            row = retrieval.answers(store, answers, split=None if split == "all" else split, train=train is not None,
                                    seed=seed, epochs=epochs, learning_rate=learning_rate, out=out, encoder=encoder,
                                    device=device, progress=progress)
        show(as_json, row, lambda: answer_lines(row))
        return
    part = None if split == "all" and way != CAPTIONS else split
    with percentage("retrieve") as progress:
        if duplicates is not None:
            _list_pairs(retrieval.duplicates(store, duplicates, by=by or "key", split=part, out=out, progress=progress),
                        store, top, out, as_json)
        elif way == "search":
            hits = retrieval.search(store, query, image=image, top=top, by=by or "key", split=part, pooling=pooling,
                                    page=page, images=images, encoder=encoder, device=device, progress=progress)
            values = {"store": store, "query": query, "image": image, "page": str(page) if page else None,
                      "hits": [{"name": hit.name, "score": hit.score} for hit in hits]}
            show(as_json, values, lambda: [f"{hit.score:.4f}\t{hit.name}" for hit in hits])
        else:
            row = retrieval.retrieve(store, text, split=split, pooling=pooling, rerank=rerank, normalize=normalize,
                                     bank=bank, train=train, negatives=negatives, seed=seed, epochs=epochs,
                                     learning_rate=learning_rate, phrases=phrases, save=save, maps=maps, out=out,
                                     page=page, images=images, encoder=encoder, device=device, progress=progress)
            show(as_json, row, lambda: retrieval_lines(row, page))


def _require_taken(way: str, trained: bool, page: bool) -> None:
    """Raise UsageError for an option on the command line that would do nothing. way: what is done, of `_WAYS`."""
    context = click.get_current_context()
    for option in context.command.params:
        name = str(option.name)
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        if way not in _TAKEN_BY.get(name, _WAYS):
            other = " and ".join(_WAYS[each] for each in _TAKEN_BY[name])
            raise click.UsageError(f"{option.opts[0]} is not for {_WAYS[way]}, but for {other}"
                                   + (": use --json or --page" if (way, name) == ("search", "out") else ""))
        if name in ("seed", "epochs", "learning_rate", "negatives", "save") and not trained:
            raise click.UsageError(f"{option.opts[0]} is of what is trained: add --train NAME")
        if name == "images" and not page:
            raise click.UsageError("--images is where a page has its pictures from: add --page FILE.html")


def retrieval_lines(row: Mapping[str, Any], page: Path | None = None) -> list[str]:
    """What captions and items reached, as a table."""
    sizes = row["captions_per_item"]
    what = "images" if row["by"] == "key" else f"groups of {row['rows']:,} rows"
    made = ", ".join([f"pooling {row['pooling']}", *([f"re-ranked by {row['rerank']}"] if row["rerank"] else []),
                      *([f"trained by {row['trained']['recipe']} (epoch {row['trained']['epoch']} of "
                         f"{row['trained']['epochs']}, chosen by {row['trained']['chosen_by']})"]
                        if "trained" in row else []),
                      *([f"normalized by {row['normalize']} (transductive)"] if row["normalize"] else [])])
    head = ["", "queries", *_FIGURES.values()]
    lines = [head, *([title, f"{row[name]['queries']:,}", *(_figure(figure, row[name][figure]) for figure in _FIGURES)]
                     for name, title in (("text_to_item", "text to item"), ("item_to_text", "item to text")))]
    width = [max(map(len, column)) for column in zip(*lines, strict=True)]
    low, high = (percent(each) for each in row["text_to_item"]["r1_interval"])
    back_low, back_high = (percent(each) for each in row["item_to_text"]["r1_interval"])
    return [
        f"{row['store']}, {row['split']} split, text {row['text']!r}: {counted(row['captions'], 'caption')} of "
        f"{row['items']:,} {what} ({sizes['least']} to {sizes['most']} each); {made}",
        *("  ".join(cell.rjust(size) if number else cell.ljust(size)
                    for number, (cell, size) in enumerate(zip(line, width, strict=True))) for line in lines),
        f"R@1, 95 % interval over items: {low} to {high}; item to text {back_low} to {back_high}"
        f"{few_words(row['items'])}",
        *(f"left out: {number:,} {which}" for which, number in row["left_out"].items()),
        *([f"{page}: best and worst queries, {counted(row['pictures'], 'picture')}"] if page else
          [f"Next: onceclip retrieve {quote(row['store'])} --text {quote(row['text'])} --page queries.html"]),
    ]


def answer_lines(row: Mapping[str, Any]) -> list[str]:
    """How often the right answer scored highest."""
    low, high = (percent(each) for each in row["accuracy_interval"])
    return [f"{row['store']}, {row['split']} split: {counted(row['questions'], 'question')} about "
            f"{counted(row['items'], 'item')}" + (", trained by tem-adapter" if "trained" in row else ""),
            f"accuracy {percent(row['accuracy'])} (95 % interval over items {low} to {high}), chance "
            f"{percent(row['chance'])}{few_words(row['items'])}"]


def _figure(name: str, value: float) -> str:
    return f"{value:,.1f}" if name.endswith("rank") else percent(value)


def _list_pairs(pairs: Any, store: str, top: int, out: Path | None, as_json: bool) -> None:
    """Go through all pairs, count them, and print the nearest."""
    number = same = 0
    nearest: list[tuple[float, int, Any]] = []
    for pair in pairs:
        number, same = number + 1, same + pair.same
        entry = (pair.score, -number, pair)
        if len(nearest) < top:
            heapq.heappush(nearest, entry)
        else:
            heapq.heappushpop(nearest, entry)
    found = [pair for _, _, pair in sorted(nearest, reverse=True)]
    values = {"store": store, "pairs": number, "same_file": same, "out": str(out) if out else None,
              "nearest": [{"first": each.first, "second": each.second, "score": each.score, "same": each.same}
                          for each in found]}
    more = f"; the nearest {len(found):,}" if number > len(found) else ""
    show(as_json, values, lambda: [
        f"{store}: {counted(number, 'pair')}, {same:,} of equal files{more}{f'; all in {out}' if out else ''}",
        *(f"{each.score:.4f}\t{each.first}\t{each.second}{'  (equal files)' if each.same else ''}" for each in found)])
