"""`onceclip retrieve`: captions and images or videos rank each other; a query finds the nearest; near-duplicates."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from onceclip.pipeline.commands.options import (
    aligned,
    encoder_options,
    json_option,
    one_way,
    percentage,
    require_there,
    show,
)
from onceclip.pipeline.commands.parameter_types import LocalPath
from onceclip.pipeline.words import counted, few_words, percent

if TYPE_CHECKING:
    from onceclip.pipeline.encoders import EncoderSpec
    from onceclip.pipeline.retrieval.search import Pair

_FIGURES = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "median_rank": "median rank", "mean_rank": "mean rank",
            "map": "mAP", "ndcg": "nDCG"}
CAPTIONS = "captions"
_WAYS = {CAPTIONS: "scoring captions", "search": "--query and --image", "duplicates": "--duplicates",
         "answers": "--answers"}
_OF_ENCODER = ("model", "pretrained", "preprocess", "device")
# Options that not all of them take.
_TAKEN_BY = {
    **dict.fromkeys(("text", "rerank", "phrases", "normalize", "bank", "negatives", "save"), (CAPTIONS,)),
    **dict.fromkeys(("train", "seed", "epochs", "learning_rate"), (CAPTIONS, "answers")),
    **dict.fromkeys(("pooling", "page", "images", "maps"), (CAPTIONS, "search")),
    **dict.fromkeys(("top", "by"), ("search", "duplicates")),
    **dict.fromkeys(_OF_ENCODER, (CAPTIONS, "search", "answers")),
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
@click.option("--split", type=click.Choice(["train", "val", "test", "all"]), help="Only images of this split.  "
              "[default: all; test for captions, where it has some]")
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
@click.option("--map", "maps", type=LocalPath(path_type=Path, file_okay=False), metavar="FOLDER", help="Score or "
              "search with what --save saved, on this or another store of the same encoder.")
@click.option("--out", type=LocalPath(path_type=Path, dir_okay=False), metavar="FILE", help="Write the result row as "
              "JSON; of --duplicates, all pairs as CSV.")
@click.option("--page", type=LocalPath(path_type=Path, dir_okay=False), metavar="FILE.html", help="Write a page with "
              "small pictures: what was found, or the best and worst queries.")
@click.option("--images", metavar="FOLDER", help="Where the store's images are, for pictures.  [default: the store's "
              "path without .zarr, if there]")
@encoder_options(required=False)
@json_option
def retrieve(store: str, query: str | None, image: str | None, duplicates: float | None, answers: Path | None,
             top: int, by: str | None, split: str | None, out: Path | None, page: Path | None, train: str | None,
             encoder: EncoderSpec | None, device: str, as_json: bool, **asked: Any) -> None:
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
    one_way(query=query, image=image, duplicates=duplicates, answers=answers)
    way = ("answers" if answers is not None else "duplicates" if duplicates is not None else
           CAPTIONS if query is None and image is None else "search")
    _require_taken(way, trained=train is not None, page=page is not None, phrases=asked["phrases"] is not None)
    if answers is not None and train not in (None, "tem-adapter"):
        raise click.UsageError(f"--train {train} is not for --answers: there is tem-adapter")
    if page is None:
        asked["images"] = None  # a configuration file may say where they are for all pages
    require_there(stores=[store])
    from onceclip.pipeline.api import retrieval

    lines: Iterable[str]
    with percentage("retrieve") as progress:
        of_encoder: dict[str, Any] = {"encoder": encoder, "device": device, "progress": progress}
        if answers is not None:
            of_training = {name: asked[name] for name in ("seed", "epochs", "learning_rate")}
            values = retrieval.answers(store, answers, split=split, train=train is not None, out=out, **of_training,
                                       **of_encoder)
            lines = answer_lines(values)
        elif duplicates is not None:
            pairs = retrieval.duplicates(store, duplicates, by=by or "key", split=split, out=out, progress=progress)
            values = {"store": store, "out": str(out) if out else None, **_nearest(pairs, top)}
            lines = pair_lines(values)
        elif way == "search":
            of_search = {name: asked[name] for name in ("pooling", "images", "maps")}
            hits = retrieval.search(store, query, image=image, top=top, by=by or "key", split=split, page=page,
                                    **of_search, **of_encoder)
            values = {"store": store, "query": query, "image": image, "page": str(page) if page else None,
                      "hits": [{"name": hit.name, "score": hit.score} for hit in hits]}
            lines = (f"{hit.score:.4f}\t{hit.name}" for hit in hits)
        else:
            values = retrieval.retrieve(store, split=split, train=train, out=out, page=page, **asked, **of_encoder)
            lines = retrieval_lines(values, page)
    show(as_json, values, lambda: lines)


def _require_taken(way: str, trained: bool, page: bool, phrases: bool) -> None:
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
        if name in _OF_ENCODER and way == CAPTIONS and not phrases:
            raise click.UsageError(f"{option.opts[0]} is of the encoder, which embeds --phrases alone: captions are in "
                                   "the store")


def retrieval_lines(row: Mapping[str, Any], page: Path | None = None) -> Iterator[str]:
    """What captions and items reached, as a table."""
    sizes, trained = row["captions_per_item"], row.get("trained")
    what = "images" if row["by"] == "key" else f"groups of {row['rows']:,} rows"
    made = f"pooling {row['pooling']}"
    if row["rerank"]:
        made += f", re-ranked by {row['rerank']}"
    if trained:
        made += (f", trained by {trained['recipe']} (epoch {trained['epoch']} of {trained['epochs']}, chosen by "
                 f"{trained['chosen_by']})")
    if row["normalize"]:
        made += f", normalized by {row['normalize']} (transductive)"
    yield (f"{row['store']}, {row['split']} split, text {row['text']!r}: {counted(row['captions'], 'caption')} of "
           f"{row['items']:,} {what} ({sizes['least']} to {sizes['most']} each); {made}")
    directions = {"text to item": row["text_to_item"], "item to text": row["item_to_text"]}
    yield from aligned([["", "queries", *_FIGURES.values()], *(
        [title, f"{found['queries']:,}", *(f"{found[name]:,.1f}" if name.endswith("rank") else percent(found[name])
                                           for name in _FIGURES)] for title, found in directions.items())])
    (low, high), (back_low, back_high) = (map(percent, found["r1_interval"]) for found in directions.values())
    yield (f"R@1, 95 % interval over items: {low} to {high}; item to text {back_low} to {back_high}"
           f"{few_words(row['items'])}")
    yield from (f"left out: {number:,} {which}" for which, number in row["left_out"].items())
    yield (f"{page}: best and worst queries, {counted(row['pictures'], 'picture')}" if page else
           f"Next: onceclip retrieve {quote(row['store'])} --text {quote(row['text'])} --page queries.html")


def answer_lines(row: Mapping[str, Any]) -> Iterator[str]:
    """How often the right answer scored highest."""
    low, high = (percent(each) for each in row["accuracy_interval"])
    yield (f"{row['store']}, {row['split']} split: {counted(row['questions'], 'question')} about "
           f"{counted(row['items'], 'item')}{', trained by tem-adapter' if 'trained' in row else ''}")
    yield (f"accuracy {percent(row['accuracy'])} (95 % interval over items {low} to {high}), chance "
           f"{percent(row['chance'])}{few_words(row['items'])}")


def _nearest(pairs: Iterable[Pair], top: int) -> dict[str, Any]:
    """Go through all pairs, count them, and keep the nearest."""
    number = same = 0
    nearest: list[tuple[float, int, Pair]] = []
    for pair in pairs:
        number, same = number + 1, same + pair.same
        entry = (pair.score, -number, pair)
        if len(nearest) < top:
            heapq.heappush(nearest, entry)
        else:
            heapq.heappushpop(nearest, entry)
    return {"pairs": number, "same_file": same,
            "nearest": [asdict(pair) for _, _, pair in sorted(nearest, reverse=True)]}


def pair_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """How many pairs there are, and the nearest."""
    out, nearest = found["out"], found["nearest"]
    more = f"; the nearest {len(nearest):,}" if found["pairs"] > len(nearest) else ""
    yield (f"{found['store']}: {counted(found['pairs'], 'pair')}, {found['same_file']:,} of equal files{more}"
           f"{f'; all in {out}' if out else ''}")
    yield from (f"{each['score']:.4f}\t{each['first']}\t{each['second']}{'  (equal files)' if each['same'] else ''}"
                for each in nearest)
