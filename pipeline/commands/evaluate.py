"""`onceclip evaluate`: a saved adapter scored on one store or several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import click

from onceclip.pipeline.commands.inference import inference_lines, inference_options, label_of
from onceclip.pipeline.commands.options import (
    LocalPath,
    coverage_option,
    import_option,
    join_option,
    json_option,
    names_in,
    percentage,
    show,
)
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
def evaluate(adapter: str, stores: tuple[str, ...], split: str, text: str | None, classes: str,
             only_its_classes: bool, coverage: float | None, against: str | None,
             multi_label: Path | None, per_class: bool,
             confusion: Path | None, inference: str | None, inference_values: dict[str, str],
             batches: dict[str, Any] | None, join: tuple[str, ...], orders: str | None, masks: str | None,
             save: Path | None, overwrite: bool, modules: tuple[str, ...], as_json: bool) -> None:
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
    if confusion and len(stores) > 1:
        raise click.UsageError("--confusion writes the matrix of one store: give one STORE")

    from onceclip.pipeline.api.adapters import evaluate as score
    from onceclip.pipeline.tasks.draws import CHOICES

    found = score(adapter, stores, split, classes=classes if classes in CHOICES else names_in(classes), text=text,
                  only_its_classes=only_its_classes, coverage=coverage, against=against, confusion=confusion,
                  modules=modules, join=join, inference=inference, inference_values=inference_values, batches=batches,
                  orders=orders, masks=masks, save=save, overwrite=overwrite, multi_label=multi_label,
                  progress=lambda path: percentage(f"evaluate {path}"))
    values = {"adapter": str(adapter), **found}
    show(as_json, values, lambda: [*evaluation_lines(values, per_class, joined=join),
                                   *([f"Saved the adapter that {inference} left behind in {save}."] if save else [])])


def evaluation_lines(found: Mapping[str, Any], per_class: bool, joined: Sequence[str] = ()) -> list[str]:
    """What an adapter reached on one store or on several, and against another adapter.

    joined: NAME=STORE of the stores that were joined.
    """
    if "map" in found:
        return list(_multi_label_lines(found, per_class))
    if "stores" not in found:
        return [*_store_lines(found), *inference_lines(found), *set_lines(found), *_against_lines(found),
                *(_class_lines(found) if per_class else []),
                f"Next: onceclip report {quote(found['adapter'])} {quote(found['store'])}"
                f"{''.join(f' --join {quote(each)}' for each in joined)} --out mistakes.html"]
    stores = found["stores"]
    return [f"{found['adapter']} ({label_of(stores[0])}), {stores[0]['split']} split, in per cent but NLL and ECE",
            *_shift_lines(stores, found["mean_of_others"]),
            *(line for each in stores for line in _further_lines(each, per_class))]


def _multi_label_lines(scores: Mapping[str, Any], per_class: bool) -> Iterator[str]:
    yield (f"{scores['adapter']} ({label_of(scores)}) on {scores['store']}, {scores['split'] or 'no'} split: "
           f"{scores['n']:,} images, {scores['labels_per_image']:.2f} classes each; {scores['classes']} of "
           f"{scores['among']} classes have some")
    yield f"  mean average precision {percent(scores['map'])}{few_words(scores['n'])}"
    if per_class:
        width = max(len("class"), *(len(each["class"]) for each in scores["per_class"]))
        yield f"  {'class':<{width}}{'images':>8}{'average precision':>19}"
        for each in scores["per_class"]:
            yield f"  {each['class']:<{width}}{each['n']:>8,}{percent(each['average_precision']):>19}"


def _store_lines(scores: Mapping[str, Any]) -> list[str]:
    low, high = (percent(each) for each in scores["interval"])
    groups = f" in {scores['n_groups']:,} groups" if scores["n_groups"] else ""
    among = f", scored among {scores['among']}" if scores["among"] != scores["classes"] else ""
    nearly = f"top-5 {percent(scores['top5'])}, " if scores["top5"] is not None else ""
    return [
        f"{scores['adapter']} ({label_of(scores)}) on {scores['store']}, {scores['split']} split: {scores['n']:,} "
        f"images{groups} of {scores['classes']} classes{among}",
        f"  accuracy {percent(scores['accuracy'])} (95 % interval {low} to {high}), {nearly}macro recall "
        f"{percent(scores['macro_recall'])}{few_words(scores['n'])}",
        f"  NLL {scores['nll']:.4f}, Brier {scores['brier']:.4f}, ECE {scores['ece']:.4f}{_calibrated(scores)}",
    ]


def set_lines(scores: Mapping[str, Any]) -> Iterator[str]:
    """What was counted of prediction sets."""
    for each in scores.get("sets", ()):
        few = "" if each["threshold"] is not None else "; too few rows calibrated it to promise less than all classes"
        yield (f"  sets of {percent(each['coverage_asked'])} ({each['kind']}, on {scores['calibrated_on']} rows): "
               f"{percent(each['coverage'])} hold the class, {each['size']:.2f} classes, {percent(each['single'])} of "
               f"one{few}")


def _calibrated(scores: Mapping[str, Any]) -> str:
    if scores["temperature"] is None:
        return ""
    return (f"; with temperature {scores['temperature']:.3g}: NLL {scores['nll_calibrated']:.4f}, ECE "
            f"{scores['ece_calibrated']:.4f}")


def _against_lines(scores: Mapping[str, Any]) -> Iterator[str]:
    if "against" in scores:
        found = scores["against"]
        low, high = (f"{100 * each:+.2f}" for each in found["difference_interval"])
        yield (f"  against {found['adapter']}: {100 * found['difference']:+.2f} points (95 % interval {low} to "
               f"{high}), McNemar's exact p {found['p']:.3g}")
        yield (f"  both right {found['both']:,}, only this {found['only_this']:,}, only the other "
               f"{found['only_other']:,}, neither {found['neither']:,}")


def _class_lines(scores: Mapping[str, Any]) -> Iterator[str]:
    width = max(len("class"), *(len(each["class"]) for each in scores["per_class"]))
    yield f"  {'class':<{width}}{'images':>8}{'right':>8}{'recall':>10}{'precision':>11}"
    for each in scores["per_class"]:
        yield (f"  {each['class']:<{width}}{each['n']:>8,}{each['right']:>8,}{percent(each['recall']):>10}"
               f"{percent(each['precision']):>11}")
    for true, predicted, number in scores["confusions"][:CONFUSIONS]:
        yield f"  {true} taken for {predicted}: {number:,}"


def _further_lines(scores: Mapping[str, Any], per_class: bool) -> Iterator[str]:
    if per_class or any(name in scores for name in ("against", "inference", "sets")):
        yield f"{scores['store']}:"
        yield from inference_lines(scores)
        yield from set_lines(scores)
        yield from _against_lines(scores)
        yield from _class_lines(scores) if per_class else ()


def _shift_lines(stores: Sequence[Mapping[str, Any]], mean: Mapping[str, Any]) -> Iterator[str]:
    """A table with a line per store, and the mean of all but the first."""
    rows = [["", "images", "classes", "top-1", "interval", *list(_COLUMNS.values())[1:], "difference"],
            *([each["store"], f"{each['n']:,}", _among(each), *_cells(each)] for each in stores),
            *([[f"mean of the other {len(stores) - 1}", "", "", *_cells(mean)]] if len(stores) > 2 else [])]
    width = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        yield "  ".join([first.ljust(width[0]),
                         *(cell.rjust(wide) for cell, wide in zip(others, width[1:], strict=True))])


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
