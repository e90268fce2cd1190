"""The options that name a strategy of inference, and its words."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from onceclip.pipeline.commands.configuration import complete_inferences
from onceclip.pipeline.commands.options import Decorator, gathered, together
from onceclip.pipeline.words import counted, listing, percent

SEEN = {"set": "all of them together", "views": "each image's views", "patches": "each image's patches",
        "stream": "one after the other, remembering"}
PRIORS = {"uniform": "that all classes are equally frequent", "none": "nothing of how frequent classes are",
          "given": "the frequencies of classes that were given",
          "estimated": "the frequencies of classes that it estimates"}
_ORDERS = 10  # whose accuracies people are shown


class Range(click.ParamType):
    """A number, or two with a dash: 1-4."""

    name = "A-B"

    def convert(self, value: Any, param: Any, context: Any) -> tuple[int, int]:
        try:
            ends = [int(end) for end in value.split("-")] if isinstance(value, str) else list(value)
            low, high = ends if len(ends) > 1 else ends * 2
        except ValueError:
            self.fail(f"{value!r} is no range such as 1-4", param, context)
        return low, high


def settings_in(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """Hyperparameters by name from an option with NAME=VALUE, where VALUE may be empty; the last of a name counts."""
    found = {}
    for text in given:
        name, mark, value = text.partition("=")
        if not mark or not name:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE")
        strategy, dot, hyperparameter = name.strip().rpartition(".")  # a strategy's name may have dashes
        found[strategy + dot + hyperparameter.replace("-", "_")] = value.strip()
    return found


def _with_files(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    return {name: shares_in(value) if value.lower().endswith(".csv") else value
            for name, value in settings_in(context, parameter, given).items()}


def shares_in(place: str) -> str:
    """The numbers by name in a CSV file of two columns, with or without a heading, as JSON: what `prior` takes.

    Raises BadParameter for a file that is something else.
    """
    from onceclip.pipeline.errors import SourceError
    from onceclip.pipeline.files import read_text

    values: dict[str, float] = {}
    try:
        lines = csv.reader(read_text(place).splitlines())
        for line in lines:
            cells = [cell.strip() for cell in line]
            if cells and (values or [cell.lower() for cell in cells] != ["class", "share"]):
                values[cells[0]] = _share_in(cells, values)
    except SourceError as error:
        raise click.BadParameter(str(error), param_hint="--inference-set") from error
    except (ValueError, csv.Error) as error:
        what = error if isinstance(error, ValueError) else "is no CSV"
        raise click.BadParameter(f"{place}: line {lines.line_num} {what}: give lines CLASS,SHARE",
                                 param_hint="--inference-set") from error
    return json.dumps(values)


def _share_in(cells: Sequence[str], known: Mapping[str, float]) -> float:
    """The share in a line of a file. Raises ValueError with what is wrong with the line."""
    if len(cells) != 2:
        raise ValueError(f"has {counted(len(cells), 'cell')}, not a class and its share")
    if cells[0] in known:
        raise ValueError(f"has {cells[0]!r}, which is named twice")
    try:
        return float(cells[1])
    except ValueError:
        raise ValueError(f"has {cells[1]!r}, which is no number") from None


def batches_of(batches: int | None, batch_size: int | None, effective_classes: tuple[int, int] | None,
               balanced: bool, dirichlet: float | None, inference_seed: int | None) -> dict[str, Any] | None:
    """The fields of Batches that options ask for; None without batches.

    Raises UsageError for an option that goes with others alone.
    """
    if batches is None and (effective_classes is not None or balanced):
        option = "--balanced" if balanced else "--effective-classes"
        raise click.UsageError(f"{option} is for drawn batches: add --batches N")
    given = {"number": batches, "size": batch_size, "classes": effective_classes, "dirichlet": dirichlet,
             "balanced": balanced or None}
    if all(value is None for value in given.values()):
        if inference_seed is not None:
            raise click.UsageError("--inference-seed is for batches: add --batches, --batch-size or --dirichlet")
        return None
    return {name: value for name, value in {**given, "seed": inference_seed}.items() if value is not None}


def inference_option(help: str) -> Decorator:
    """`--inference` with its hyperparameters."""
    return together(
        click.option("--inference", metavar="NAME|MODULE:CLASS", shell_complete=complete_inferences, help=help),
        click.option("--inference-set", "inference_values", multiple=True, metavar="NAME=VALUE", callback=_with_files,
                     help="A hyperparameter of the strategy (repeatable)."))


def inference_options(help: str) -> Decorator:
    """`--inference`, and how images are dealt out to it in batches: `batches`, the fields of Batches or None."""
    return together(inference_option(help), gathered(
        "batches",
        click.option("--batches", type=click.IntRange(1), metavar="N",
                     help="Draw N batches of few classes each; the strategy sees one at a time."),
        click.option("--batch-size", type=click.IntRange(1), metavar="N",
                     help="Images of a batch at most; alone, every image is in one batch.  [default: 64]"),
        click.option("--effective-classes", type=Range(), metavar="A-B",
                     help="Classes that a batch of --batches has.  [default: 1-4]"),
        click.option("--balanced", is_flag=True, help="Draw as many images of each class of a batch."),
        click.option("--dirichlet", type=click.FloatRange(0, min_open=True), metavar="GAMMA",
                     help="Deal all images out in a stream of batches whose classes come in turn, the more so the "
                     "smaller GAMMA is."),
        click.option("--inference-seed", type=click.IntRange(0), metavar="N",
                     help="Seed of the batches.  [default: 1]"),
        make=batches_of))


def label_of(scores: Mapping[str, Any]) -> str:
    """The method and, where there are some, the strategies: "gda + stata"."""
    names: list[str] = []
    record = scores.get("inference") or scores.get("left_by")
    while record:
        names.insert(0, record["name"])
        record = record.get("on")
    return " + ".join([str(scores["method"]), *names])


def inference_lines(scores: Mapping[str, Any]) -> Iterator[str]:
    """What a strategy changed, and what it saw, fitted and assumed."""
    left, found = scores.get("left_by"), scores.get("inference")
    query = left.get("query", {}) if left else {}
    if left and left["fitted_on"] == "query" and (query.get("store"), query.get("split")) == (
            scores["store_fingerprint"], scores["split"]):
        yield f"  {left['name']} was fitted on these very images, labels unread: these numbers are transductive"
    if not found:
        return
    alone, batches = found["alone"], found.get("batches")
    low, high = (percent(each) for each in alone["interval"])
    name = label_of({**scores, "inference": None})
    yield f"  {name} alone: {percent(alone['accuracy'])} (95 % interval {low} to {high})"
    difference = found["difference"]
    value = difference["mean" if batches else "difference"]
    low, high = (f"{100 * each:+.2f}" for each in difference["interval" if batches else "difference_interval"])
    yield (f"  difference {100 * value:+.2f} points (95 % interval {low} to {high})"
           + ("" if batches else f", McNemar's exact p {difference['p']:.3g}"))
    if "auroc" in scores:
        yield (f"  abnormal images told from normal ones: AUROC {percent(scores['auroc'])} (alone "
               f"{percent(alone['auroc'])}), average precision {percent(scores['average_precision'])} (alone "
               f"{percent(alone['average_precision'])})")
    if "masks" in scores:
        masks = scores["masks"]
        sizes = listing([f"{number:,} of {size} pixels" for size, number in masks["sizes"].items()], 4)
        outside = f", {masks['outside_of_the_crop']:,} outside of the crop" if masks["outside_of_the_crop"] else ""
        patches = "{} x {}".format(*masks["patches"])
        yield (f"  abnormal pixels: AUROC {percent(scores['pixel_auroc'])}, PRO {percent(scores['pro'])} (a pixel "
               f"scores as its patch, of {patches}; {counted(masks['n'], 'mask')}{outside}; "
               f"resized and cropped as images of their sizes are: {sizes})")
    values = ", ".join(f"{name}={_short(value)}" for name, value in found["hyperparameters"].items() if value != "")
    yield f"  {found['name']}{f' ({values})' if values else ''} sees {_seen(found)}"
    yield (f"  {_fitted(found)}; assumes {PRIORS[found['prior']]}; "
           + ("transductive: an image's class depends on the others" if found["transductive"] else
              "inductive: every image is read by itself"))


def _short(value: Any) -> str:
    return text if len(text := str(value)) < 60 else f"{text[:56]} ..."


def _seen(found: Mapping[str, Any]) -> str:
    batches = found.get("batches")
    if "orders" in found:
        spread = "" if found["spread"] is None else f", spread {percent(found['spread'])}"
        each = ", ".join(f"{percent(order['accuracy'])} ({order['seed']})" for order in found["orders"][:_ORDERS])
        more = f" and {len(found['orders']) - _ORDERS} more" if len(found["orders"]) > _ORDERS else ""
        return f"{SEEN['stream']}, in {counted(len(found['orders']), 'order')} (seed): {each}{more}{spread}"
    if not batches:
        output = found["query"].get("output")
        number = f", {output['number']} of each" if output else ""
        kind = f" of the kind {output['tokens']}" if output and "tokens" in output else ""
        alone = found["sees"] == "set" and not found["transductive"]
        return "every image by itself" if alone else f"{SEEN[found['sees']]}{kind}{number}"
    size = f"{counted(batches['dealt'], 'batch', 'batches')} of up to {counted(batches['size'], 'image')}"
    if batches["number"]:
        low, high = batches["classes"]
        size += f" of {low} to {high} classes" + (", balanced" if batches.get("balanced") else "")
    elif batches["dirichlet"]:
        size += f" of a Dirichlet stream ({batches['dirichlet']:g})"
    return (f"{size}, seed {batches['seed']}: accuracies are means over batches, spread {percent(found['spread'])}, "
            f"alone {percent(found['alone']['spread'])}")


def _fitted(found: Mapping[str, Any]) -> str:
    if found["fitted_on"] == "train":
        which = f" of the class {found['fit']['class']}" if "class" in found["fit"] else ", labels unread"
        which += ", which are among these" if (found["fit"]["store"], "train") == (
            found["query"]["store"], found["query"]["split"]) else ""
        return f"fitted on {counted(found['fit']['n'], 'train image')}{which}"
    return "fitted on these images, labels unread" if found["fitted_on"] == "query" else "fits nothing"
