"""Retrieval: captions and images or videos of a store rank each other, and a person's query finds the nearest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onceclip.pipeline.api.arguments import (
    free_folder,
    one_of,
    opened,
    optional,
    output_of,
    path_of,
    place_of,
    refuse,
    spec_of,
    split_of,
    whole,
)
from onceclip.pipeline.errors import ArgumentError
from onceclip.pipeline.files import csv_file
from onceclip.pipeline.words import csv_cell
from onceclip.stores import Store
from onceclip.stores.location import whole_file

if TYPE_CHECKING:
    from onceclip.pipeline.encoders import EncoderSpec
    from onceclip.pipeline.retrieval.comclip import Phrases
    from onceclip.pipeline.retrieval.search import Hit, Pair

Progress = Callable[[float], None]
_NO_PAGE = "images is where a page has its pictures from: give page"


def _silent(fraction: float) -> None:
    """Watch nothing; that of the adapters would import torch."""


def retrieve(store: str | Path | Store, text: str = "captions", *, split: str | None = None, pooling: str = "mean",
             rerank: str | None = None, normalize: str | None = None, bank: str | None = None,
             train: str | None = None, negatives: str | None = None, seed: int = 1, epochs: int | None = None,
             learning_rate: float | None = None, phrases: str | Path | None = None,
             save: str | Path | None = None, maps: str | Path | None = None, out: str | Path | None = None,
             page: str | Path | None = None, images: str | None = None, encoder: str | EncoderSpec | None = None,
             device: str = "auto", progress: Progress = _silent) -> dict[str, Any]:
    """Score how well the captions of a text set and their images or videos find each other, in both directions.

    text: a set that `add_text(..., captions=FILE)` made. split: "train", "val", "test" or "all"; None for test where
        captions belong to it, or else all. pooling: what a video's frames become, "mean", "raw-mean", "fitclip",
        "hitchhiker[:TEMPERATURE]" or "max". rerank: "max[:WEIGHT]" adds the best frame's score; "comclip" draws images
        to those of their stored crops that `phrases` agree with, a JSON file of lists by caption, which the store's
        encoder embeds; encoder: where it is, if the store cannot say. normalize: "qb[:BETA]" or
        "dual-softmax[:SCALE]"; bank: the split whose queries QB-Norm takes. train: what is trained on the train split's
        captions first, "labclip", "geodesic", "temporal" or "contra", from `seed`; negatives: a set of false captions
        of the same items, for labclip; epochs, learning_rate: None for the recipe's. save: a folder for what was
        trained; maps: one that was saved, to be used again on a store of the same encoder. out: a JSON file of the row.
        page: an HTML page of the best and worst queries; images: the source of the store's images, for its pictures.
    Gives the result row: recall at 1, 5 and 10 with bootstrap intervals over items, ranks, mAP and nDCG by direction.
    Raises RetrievalError if there is nothing to rank, StoreIncomplete if there is no such text set.

    Example:
        >>> import json
        >>> lines = {str(key): [f"a photo of a {key.split('/')[0]}"] for key in store.column("key")}
        >>> _ = Path("captions.json").write_text(json.dumps(lines))
        >>> done = onceclip.add_text("pets.zarr", "captions", captions="captions.json", overwrite=True)
        >>> row = onceclip.retrieve("pets.zarr", split="test")
        >>> row["items"], row["text_to_item"]["queries"]
        (48, 48)
    """
    from onceclip.pipeline.reporting.retrieval_pages import write_retrieval_page
    from onceclip.pipeline.retrieval.evaluation import evaluate, ranked_split, require_unseen
    from onceclip.pipeline.retrieval.training import load_maps, save_maps
    from onceclip.pipeline.retrieval.training import train as fit

    target = opened(store)
    for name, value in (("text", text), ("pooling", pooling)):
        if not isinstance(value, str):
            raise ArgumentError(f"{name} {value!r}: give a name")
    refuse((train is not None and maps is not None, "maps are trained already: give train or maps"),
           (train is None and save is not None, "save is a folder for what is trained: give train"),
           (train is None and any(each is not None for each in (negatives, epochs, learning_rate)),
            "negatives, epochs and learning_rate are for training: give train"),
           (images is not None and page is None, _NO_PAGE))
    folder = None if save is None else free_folder(path_of(save, "save: a folder"), None, "--save")
    trained = None if maps is None else load_maps(path_of(maps, "maps: a folder"), target)
    if train is not None:
        require_unseen(ranked_split(target, target.text(text), split), pooling, target)
        trained = fit(target, target.text(text), text, train, optional(target.text, negatives),
                      whole(seed, "seed", 0), optional(whole, epochs, "epochs", 0), optional(_rate, learning_rate),
                      progress)
        if folder:
            save_maps(folder, trained, target)
    words = None if phrases is None else _phrases(target, path_of(phrases, "phrases: a JSON file"),
                                                  optional(spec_of, encoder, device=device), device)
    ranking = evaluate(target, text, split, pooling, rerank, normalize, bank, trained, words, progress)
    row = ranking.row
    if out is not None:
        _write_row(output_of(out, "out: a JSON file"), row)
    if page is not None:
        row = {**row, **write_retrieval_page(output_of(page, "page: an .html file"), target, ranking, images)}
    return row


def _phrases(store: Store, path: Path, encoder: EncoderSpec | None, device: str) -> Phrases:
    from torch import from_numpy

    from onceclip.pipeline.encoders.sentences import encode_sentences
    from onceclip.pipeline.prediction.encoding import encoder_for
    from onceclip.pipeline.retrieval.comclip import Phrases, load_phrases

    lines, record = load_phrases(path)
    found = encode_sentences(encoder_for(store, encoder, device), [each for several in lines.values()
                                                                   for each in several], progress=True)
    rows = from_numpy(found.embedding).split([len(several) for several in lines.values()])
    return Phrases(dict(zip(lines, rows, strict=True)), record)


def search(store: str | Path | Store, query: str | None = None, *, image: str | Path | None = None, top: int = 20,
           by: str = "key", split: str | None = None, pooling: str = "mean", page: str | Path | None = None,
           images: str | None = None, maps: str | Path | None = None, encoder: str | EncoderSpec | None = None,
           device: str = "auto", progress: Progress = _silent) -> list[Hit]:
    """Find the images or videos of a store that are nearest to a sentence, or to an image file.

    top: how many. by: "key" for images (and single frames), "group" for videos and other groups. split: "train",
        "val" or "test"; None or "all" for all. pooling: as of `retrieve`, for groups. page: an HTML page of what was
        found. maps: a folder of trained ones, as of `retrieve`, of the query and of the items. encoder: where it is,
        if the store cannot say.
    Gives hits with `name`, `score` (a cosine) and `row`, the nearest first.
    Raises RetrievalError if there is nothing to look for or in, StoreMismatch for another encoder than the store's.

    Example:
        >>> hits = onceclip.search("pets.zarr", "a photo of a fox", top=3)
        >>> len(hits), hits[0].score >= hits[1].score
        (3, True)
    """
    from onceclip.pipeline.prediction.encoding import query_embedding
    from onceclip.pipeline.reporting.retrieval_pages import write_search_page
    from onceclip.pipeline.retrieval.items import BY
    from onceclip.pipeline.retrieval.search import search as run
    from onceclip.pipeline.retrieval.similarity import MEAN, pooling_of
    from onceclip.pipeline.retrieval.training import load_maps

    target, number = opened(store), whole(top, "top", 1)
    kind, pooled, chosen = one_of(by, "by", BY), pooling_of(pooling), _part(split)
    refuse(((query is None) == (image is None), "give a query or an image, and not both"),
           (not isinstance(query, str | None), f"query {query!r}: give a sentence"),
           (maps is not None and pooled != MEAN, "maps make their own vectors: leave the pooling out"),
           (images is not None and page is None, _NO_PAGE))
    trained = None if maps is None else load_maps(path_of(maps, "maps: a folder"), target).maps
    place = optional(place_of, image, "image: the file of one")
    found = query_embedding(target, query, place, optional(spec_of, encoder, device=device), device)
    if trained:
        found = trained.query(found, of_item=image is not None)
    hits = run(target, found, number, kind, chosen, pooled, trained, progress)
    if page is not None:
        write_search_page(output_of(page, "page: an .html file"), target, query or str(place), hits, images)
    return hits


def answers(store: str | Path | Store, questions: str | Path, *, split: str | None = None, train: bool = False,
            seed: int = 1, epochs: int | None = None, learning_rate: float | None = None, out: str | Path | None = None,
            encoder: str | EncoderSpec | None = None, device: str = "auto", progress: Progress = _silent
            ) -> dict[str, Any]:
    """Score how often the right answer of a question about an image or video scores highest.

    questions: a JSON file, [{"path": ..., "question": ..., "answers": [...], "right": 0}, ...]. split: "train", "val"
        or "test"; None or "all" for all. train: train a head over frames on the train split's questions first
        (Tem-adapter), from `seed`. out: a JSON file of the row. encoder: where it is, if the store cannot say.
    Gives the result row: accuracy with its bootstrap interval over items, and what chance reaches.
    Raises RetrievalError if the file or the split has no question that can be scored.
    """
    from torch import from_numpy

    from onceclip.pipeline.encoders.sentences import encode_sentences
    from onceclip.pipeline.prediction.encoding import encoder_for
    from onceclip.pipeline.retrieval.answers import answer, load_questions

    target = opened(store)
    asked, digest = load_questions(path_of(questions, "questions: a JSON file"))
    chosen = _part(split)
    found = encoder_for(target, optional(spec_of, encoder, device=device), device)
    text = encode_sentences(found, [sentence for each in asked for sentence in each.sentences], progress=True)
    row = {**answer(target, asked, from_numpy(text.embedding), chosen, train, whole(seed, "seed", 0),
                    optional(whole, epochs, "epochs", 0), optional(_rate, learning_rate), progress),
           "file": {"name": Path(questions).name, "digest": digest}}
    if out is not None:
        _write_row(output_of(out, "out: a JSON file"), row)
    return row


def _part(split: Any) -> str | None:
    return None if split == "all" else optional(split_of, split)


def _rate(value: Any) -> float:
    if isinstance(value, float | int) and 0 < value < float("inf") and not isinstance(value, bool):
        return value
    raise ArgumentError(f"learning_rate {value!r}: give a number above 0")


def _write_row(path: Path, row: dict[str, Any]) -> None:
    with whole_file(path) as file:
        file.write(json.dumps(row, indent=1, allow_nan=False).encode("ascii") + b"\n")


def duplicates(store: str | Path | Store, threshold: float = 0.98, *, by: str = "key", split: str | None = None,
               out: str | Path | None = None, progress: Progress = _silent) -> Iterator[Pair]:
    """Go through all pairs of images or videos of a store whose embeddings' cosine is at least a threshold.

    by: "key" or "group". split: "train", "val" or "test"; None or "all" for all. out: a CSV file that gets the pairs as
        you go through them, and has its name when you have seen them all.
    Gives pairs with `first`, `second`, `score` and `same`, whether the two files are equal, as they are found.
    Raises RetrievalError for a threshold that is no cosine above 0.

    Example:
        >>> pairs = list(onceclip.duplicates("pets.zarr", 0.999))
        >>> all(pair.score > 0.998 for pair in pairs)
        True
    """
    from onceclip.pipeline.retrieval.items import BY
    from onceclip.pipeline.retrieval.search import duplicates as run

    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise ArgumentError(f"threshold {threshold!r}: give a cosine, such as 0.98")
    found = run(opened(store), threshold, one_of(by, "by", BY), _part(split), progress)
    return found if out is None else _written(output_of(out, "out: a CSV file"), found)


def _written(path: Path, pairs: Iterator[Pair]) -> Iterator[Pair]:
    """Pairs on their way, each written to a CSV file."""
    with csv_file(path) as writer:
        writer.writerow(["first", "second", "cosine", "same_file"])
        for pair in pairs:
            writer.writerow([csv_cell(pair.first), csv_cell(pair.second), f"{pair.score:.6f}", int(pair.same)])
            yield pair
