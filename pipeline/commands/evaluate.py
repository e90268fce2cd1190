"""`onceclip evaluate`: a saved adapter scored on one store or several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import click

from onceclip.pipeline.commands.inference import inference_lines, inference_options, label_of
from onceclip.pipeline.commands.options import (
    aligned,
    coverage_option,
    import_option,
    join_option,
    json_option,
    percentage,
    require_there,
    show,
)
from onceclip.pipeline.commands.parameter_types import LocalPath, names_in
from onceclip.pipeline.words import few_words, percent

CONFUSIONS = 10  # wrong pairs that people are shown
_COLUMNS = {"accuracy": "top-1", "top5": "top-5", "macro_recall": "macro recall", "nll": "NLL", "ece": "ECE"}
_NATS = ("nll", "ece")


@click.command()
@click.argument("adapter")
@click.argument("stores", nargs=-1, required=True, metavar="STORE...")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True,
              help="The images that are scored.")
@click.option("--text", metavar="NAME", help="Score among the classes of a text set of the store, of a method that "
              "transfers to other classes.")
@click.option("--classes", default="all", show_default=True, metavar="all|base|new|A,B,...",
              help="Score only images of these classes: the first half of the store's classes, the other half, or "
              "names.")
@click.option("--only-its-classes", is_flag=True, help="Score among the classes whose images are scored, not among all "
              "that the adapter knows.")
@coverage_option
@click.option("--against", metavar="ADAPTER",
              help="Compare with another adapter on the same images.")
@click.option("--multi-label", type=LocalPath(path_type=Path, dir_okay=False), metavar="FILE.csv",
              help="Score images of several classes each by mean average precision: CSV with the columns key,label, a "
              "line for every class of an image.")
@click.option("--per-class", is_flag=True, help="Show every class, and the most frequent confusions.")
@click.option("--confusion", type=LocalPath(path_type=Path, dir_okay=False), metavar="FILE.csv",
              help="Write the whole confusion matrix.")
@inference_options("Read the images by a strategy, such as stata; `onceclip methods` lists them.")
@click.option("--orders", metavar="A-B,...", help="Seeds of the orders in which a stream is read, such as 1-5.  "
              "[default: 1-3]")
@click.option("--masks", metavar="FOLDER|FILE.csv", help="Of a strategy that says where in an image something is "
              "abnormal: also score its patches by masks, named as the images are, or in columns path and mask.")
@click.option("--save", type=LocalPath(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Save the adapter that the strategy leaves behind.")
@click.option("--overwrite", is_flag=True, help="Replace an adapter in the folder of --save.")
@join_option
@import_option
@json_option
def evaluate(adapter: str, stores: tuple[str, ...], classes: str, per_class: bool, as_json: bool, **asked: Any) -> None:
    """Score a saved adapter on a split of a store, or of several.

    The same encoder must have made all; classes are joined by name. Several stores give a table of what the adapter
    keeps of its scores on the first of them. With --inference the adapter reads the images by a strategy that sees them
    all together, or in batches (docs/inference.md), their stored views or patches, or a stream of them
    (docs/test-time.md); its scores alone stand beside.

    \b
    Example:
        onceclip evaluate pets-adapter pets.zarr --against pets-zero-shot
        onceclip evaluate pets-adapter pets.zarr pets-drawings.zarr pets-at-night.zarr
        onceclip evaluate pets-adapter pets.zarr --inference stata --batches 100 --effective-classes 1-3
        onceclip evaluate pets-adapter pets.zarr --inference tda --orders 1-5
    """
    require_there([adapter, asked["against"]], stores)

    from onceclip.pipeline.api.adapters import evaluate as score
    from onceclip.pipeline.tasks.draws import CHOICES

    found = score(adapter, stores, classes=classes if classes in CHOICES else names_in(classes),
                  progress=lambda path: percentage(f"evaluate {path}"), **asked)
    values, save = {"adapter": str(adapter), **found}, asked["save"]
    # A page has the adapter alone, on all classes that it knows.
    paged = classes == CHOICES[0] and not any(asked[name] for name in ("text", "only_its_classes", "inference"))
    options = [*(f"--join {quote(each)}" for each in asked["join"]), *_imports(adapter, asked["modules"]),
               *([f"--split {asked['split']}"] if asked["split"] != "test" else [])]
    show(as_json, values, lambda: [
        *evaluation_lines(values, per_class, options if paged else None),
        *([f"Saved the adapter that {asked['inference']} left behind in {save}."] if save else [])])


def _imports(adapter: str, modules: Sequence[str]) -> list[str]:
    """The options by which the heads of an adapter are imported. modules: those that were imported for it."""
    from onceclip.adapters.saving import modules_outside, read_configuration
    from onceclip.stores.location import local_copy

    if not modules:
        return []
    with local_copy(adapter) as folder:
        return [f"--import {each}" for each in modules_outside(read_configuration(folder))]


def evaluation_lines(found: Mapping[str, Any], per_class: bool, paged: Sequence[str] | None = ()) -> Iterator[str]:
    """What an adapter reached on one store or on several, and against another adapter.

    paged: options of the command that writes the page of its mistakes; None where that would be of other scores.
    """
    if "map" in found:
        yield from _multi_label_lines(found, per_class)
    elif "stores" in found:
        stores = found["stores"]
        yield f"{found['adapter']} ({label_of(stores[0])}), {stores[0]['split']} split, in per cent but NLL and ECE"
        yield from _shift_lines(stores, found["mean_of_others"])
        for each in stores:
            if per_class or any(name in each for name in ("against", "inference", "sets")):
                yield f"{each['store']}:"
                yield from _further_lines(each, per_class)
    else:
        yield from _store_lines(found)
        yield from _further_lines(found, per_class)
        if paged is not None:
            yield " ".join(["Next: onceclip report", quote(found["adapter"]), quote(found["store"]), *paged,
                            "--out mistakes.html"])


def _multi_label_lines(scores: Mapping[str, Any], per_class: bool) -> Iterator[str]:
    yield (f"{scores['adapter']} ({label_of(scores)}) on {scores['store']}, {scores['split'] or 'no'} split: "
           f"{scores['n']:,} images, {scores['labels_per_image']:.2f} classes each; {scores['classes']} of "
           f"{scores['among']} classes have some")
    yield f"  mean average precision {percent(scores['map'])}{few_words(scores['n'])}"
    if per_class:
        yield from aligned([("  class", "images", "average precision"), *(
            (f"  {each['class']}", f"{each['n']:,}", percent(each["average_precision"]))
            for each in scores["per_class"])])


def _store_lines(scores: Mapping[str, Any]) -> Iterator[str]:
    low, high = (percent(each) for each in scores["interval"])
    groups = f" in {scores['n_groups']:,} groups" if scores["n_groups"] else ""
    among = f", scored among {scores['among']}" if scores["among"] != scores["classes"] else ""
    nearly = f"top-5 {percent(scores['top5'])}, " if scores["top5"] is not None else ""
    calibrated = "" if scores["temperature"] is None else (
        f"; with temperature {scores['temperature']:.3g}: NLL {scores['nll_calibrated']:.4f}, ECE "
        f"{scores['ece_calibrated']:.4f}")
    yield (f"{scores['adapter']} ({label_of(scores)}) on {scores['store']}, {scores['split']} split: {scores['n']:,} "
           f"images{groups} of {scores['classes']} classes{among}")
    yield (f"  accuracy {percent(scores['accuracy'])} (95 % interval {low} to {high}), {nearly}macro recall "
           f"{percent(scores['macro_recall'])}{few_words(scores['n'])}")
    yield f"  NLL {scores['nll']:.4f}, Brier {scores['brier']:.4f}, ECE {scores['ece']:.4f}{calibrated}"


def _further_lines(scores: Mapping[str, Any], per_class: bool) -> Iterator[str]:
    """What was asked for beside the scores."""
    yield from inference_lines(scores)
    yield from set_lines(scores)
    if "against" in scores:
        found = scores["against"]
        low, high = (f"{100 * each:+.2f}" for each in found["difference_interval"])
        yield (f"  against {found['adapter']}: {100 * found['difference']:+.2f} points (95 % interval {low} to "
               f"{high}), McNemar's exact p {found['p']:.3g}")
        yield (f"  both right {found['both']:,}, only this {found['only_this']:,}, only the other "
               f"{found['only_other']:,}, neither {found['neither']:,}")
    if per_class:
        yield from aligned([("  class", "images", "right", "recall", "precision"), *(
            (f"  {each['class']}", f"{each['n']:,}", f"{each['right']:,}", percent(each["recall"]),
             percent(each["precision"])) for each in scores["per_class"])])
        for true, predicted, number in scores["confusions"][:CONFUSIONS]:
            yield f"  {true} taken for {predicted}: {number:,}"


def set_lines(scores: Mapping[str, Any]) -> Iterator[str]:
    """What was counted of prediction sets."""
    for each in scores.get("sets", ()):
        few = "" if each["threshold"] is not None else "; too few rows calibrated it to promise less than all classes"
        yield (f"  sets of {percent(each['coverage_asked'])} ({each['kind']}, on {scores['calibrated_on']} rows): "
               f"{percent(each['coverage'])} hold the class, {each['size']:.2f} classes, {percent(each['single'])} of "
               f"one{few}")


def _shift_lines(stores: Sequence[Mapping[str, Any]], mean: Mapping[str, Any]) -> list[str]:
    """A table with a line per store, and the mean of all but the first."""
    return aligned([["", "images", "classes", "top-1", "interval", *list(_COLUMNS.values())[1:], "difference"],
                    *([each["store"], f"{each['n']:,}", _among(each), *_cells(each)] for each in stores),
                    *([[f"mean of the other {len(stores) - 1}", "", "", *_cells(mean)]] if len(stores) > 2 else [])])


def _among(scores: Mapping[str, Any]) -> str:
    return str(scores["classes"]) + (f" of {scores['among']}" if scores["among"] != scores["classes"] else "")


def _cells(scores: Mapping[str, Any]) -> list[str]:
    first, *others = (_number(scores[name], name) for name in _COLUMNS)
    between = "{:.1f} to {:.1f}".format(*(100 * each for each in scores["interval"])) if "interval" in scores else ""
    return [first, between, *others, f"{100 * scores['difference']:+.1f}" if "difference" in scores else ""]


def _number(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if name in _NATS else f"{100 * value:.1f}"
