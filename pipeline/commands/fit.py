"""`onceclip fit`: one run on a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from shlex import quote
from typing import Any

import click
from click.core import ParameterSource

from onceclip.pipeline.commands.configuration import complete_methods
from onceclip.pipeline.commands.evaluate import set_lines
from onceclip.pipeline.commands.inference import label_of, settings_in
from onceclip.pipeline.commands.options import (
    compile_option,
    coverage_option,
    draw_options,
    import_option,
    join_option,
    json_option,
    percentage,
    say_at_once,
    show,
    support_options,
    training_device_option,
)
from onceclip.pipeline.commands.parameter_types import SHOTS, LocalPath
from onceclip.pipeline.words import counted, few_words, percent, shots_of

_SPLITS = {"val": "train and val", "all": "train, val and test"}


@click.command()
@click.argument("store", required=False)
@click.option("--method", metavar="M", shell_complete=complete_methods,
              help="Name of a method; `onceclip methods` lists them. MODULE:CLASS is one of your own.  [default: the "
              "weighted average of several]")
@click.option("--shots", type=SHOTS, default="all", show_default=True, help="Labelled training images per class.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the draw and of the training.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", callback=settings_in,
              help="Set a hyperparameter (repeatable).")
@click.option("--text", default="default", show_default=True, metavar="NAME", help="Text set to use.")
@click.option("--class-weights", type=click.Choice(["unit-mean", "raw-mean", "score-mean"]), default="unit-mean",
              show_default=True, help="How a class vector is made of its prompts: the mean of unit vectors scaled to "
              "unit length (CLIP, Tip-Adapter), the mean of raw ones (TaskRes, CLAP), or unscaled, so that scores are "
              "averaged (DCLIP).")
@click.option("--classes", type=click.Choice(["all", "base"]), default="all", show_default=True,
              help="base: fit the first half of the classes alone, and score the other half too where the method "
              "serves other classes.")
@click.option("--select", type=click.Choice(["fixed", "val", "val-full", "loo"]),
              help="How hyperparameters are chosen: not at all, on min(shots, 4) validation images per class, on the "
              "whole val split, or by leave-one-image-out.  [default: val if the store has validation images, else loo "
              "where the method can and every class has 4, else fixed]")
@draw_options
@click.option("--search", default="grid", show_default=True, metavar="S",
              help="What a selection tries: grid, random:N, halving[:N], halves[:N] or optuna:N.")
@click.option("--refit", type=click.Choice(["none", "val", "all"]), default="none", show_default=True,
              help="Fit once more with what was chosen, on all labelled images of train and val, or of test too (all): "
              "the best adapter to use, and no test accuracy.")
@click.option("--stream", is_flag=True, help="Read training rows anew in every epoch: for stores that do not fit "
              "into memory.")
@click.option("--narrow", is_flag=True, help="Search with products in bfloat16; the winner is trained again as usual.")
@support_options
@join_option
@click.option("--inputs", multiple=True, metavar="OUTPUT", help="Fit on this output in place of the embedding, such as "
              "dino/embedding, with a method that compares with no text (repeatable).")
@compile_option
@training_device_option
@click.option("--curves", is_flag=True, help="With --out: keep training and validation loss of every epoch beside the "
              "row; `onceclip report` draws them.")
@coverage_option
@click.option("--from-row", metavar="FILE:N",
              help="Carry out again the run of the N-th row of a results folder, and compare.")
@click.option("--out", type=LocalPath(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Save the adapter and its result row.")
@click.option("--overwrite", is_flag=True, help="Replace an adapter that --out holds already.")
@import_option
@json_option
def fit(store: str | None, method: str | None, shots: int, seed: int, settings: dict[str, str], compile: str,
        device: str, curves: bool, coverage: float | None, from_row: str | None, out: Path | None, overwrite: bool,
        modules: tuple[str, ...], as_json: bool, **of_a_run: Any) -> None:
    """Fit a classifier on a store and score it.

    Without --method, several methods are fitted, each with hyperparameters that validation images choose (or training
    images held out, where there are none), and averaged by what they reach there. Hyperparameters given by --set are
    never searched. Test images are not reachable while fitting.

    \b
    Example:
        onceclip fit pets.zarr --out pets-adapter
        onceclip fit pets.zarr --method lp++ --shots 16
        onceclip fit --from-row results:17
    """
    if curves and not out:
        raise click.UsageError("--curves keeps them beside the adapter: add --out FOLDER")
    if not store and not from_row:
        raise click.UsageError("give STORE, or --from-row")
    from onceclip.pipeline.api.arguments import free_folder
    from onceclip.stores import open_store

    if out:
        free_folder(out, overwrite)
    opened = open_store(store) if store else None
    say_at_once(f"loading {store or from_row} ...")
    from onceclip.adapters.heads.packing import plugin_heads
    from onceclip.adapters.plugin import import_module
    from onceclip.adapters.selection.automatic import AUTOMATIC
    from onceclip.pipeline.api.runs import fit as run
    from onceclip.pipeline.api.runs import spec_for
    from onceclip.pipeline.runs.replay import compare, compiling_of, device_of, read_row, spec_of

    row = read_row(from_row) if from_row else None
    listed = bool(row and row["asked"].get("draws"))  # by a file that may have moved
    if row and (given := [name for name in _given() if name != "--draws" or not listed]):
        raise click.UsageError(f"--from-row says itself what is run: leave out {', '.join(given)}")
    opened = opened or open_store(str((row or {}).get("store")))
    for module in modules:
        import_module(module)
    spec = spec_of(row, opened, of_a_run["draws"]) if row else spec_for(
        method or AUTOMATIC, (shots or "all") if _chosen("shots") else None, seed if _chosen("seed") else None,
        settings, **of_a_run)
    if row and not _chosen("device"):
        device = device_of(row)
    how = compiling_of(row) if row and not _chosen("compile") else compile
    with percentage(f"fit {spec.method}") as progress:
        fitted = run(opened, spec, device=device, compile=how, out=out,
                     overwrite=overwrite, curves=curves, coverage=coverage, progress=progress)
    if row:
        click.echo(f"Replay: {compare(row, fitted)}", err=True)
    for remark in fitted.remarks:
        click.echo(f"Note: {remark}", err=True)
    grouped = bool((opened.column("group")[opened.rows("test")] != "").any())
    outside = [each.__module__ for each in plugin_heads(fitted.classifier.head)]
    show(as_json, fitted.row, lambda: fit_lines(fitted.row, out, grouped, outside))


def _given() -> list[str]:
    """The options on the command line that say what is run."""
    from onceclip.pipeline.runs.run import RunSpec

    context, of_a_run = click.get_current_context(), {"settings", *(each.name for each in fields(RunSpec))}
    return [parameter.opts[0] for parameter in context.command.params if parameter.name in of_a_run
            and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE]


def _chosen(name: str) -> bool:
    """Whether a user has chosen an option's value, on the command line or elsewhere."""
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def fit_lines(row: Mapping[str, Any], out: Path | None, grouped: bool = False,
              modules: Sequence[str] = ()) -> Iterator[str]:
    """What a run reached and with which hyperparameters.

    grouped: whether test images belong together in groups. modules: of a user, that the adapter is loaded with.
    """
    fitted_on = f", then on all {row['n_refit']:,} of {_SPLITS[row['refit']]}" if "n_refit" in row else ""
    yield (f"{label_of(row)}, {shots_of(row['shots'])}, seed {row['seed']}: "
           f"{counted(row['n_support'], 'training image')} of {counted(row['classes'], 'class', 'classes')}"
           f"{fitted_on}, {row['seconds']:.2f} s")
    found = row.get("support_source", {})
    if "source" in found:
        where = "a bank" if found["bank"] else "the training images, labels unread"
        yield (f"  support          {found['source']}: {counted(found['rows'], 'row')} of {found['pool']:,} images of "
               f"{where}")
    yield from _accuracies(row, grouped)
    yield from set_lines(row)
    if row.get("sets") == []:
        yield (f"  sets             none: {row['method']} has no scores to make them with; validation images give "
               "some, or four training images of each class and a method that leaves one out")
    yield from _reached(row) if "reached" in row else _chosen_values(row)
    if out is None:
        yield "Not saved: add --out FOLDER to keep the adapter."
        return
    following = [f"predict {quote(str(out))} IMAGES..."]
    if row["n_test"]:
        following = [f"evaluate {quote(str(out))} {quote(str(row['store']))}",
                     *(f"--join {quote(each)}" for each in row.get("asked", {}).get("join", ())),
                     *([f"--classes {row['class_set']}"] if "class_set" in row else [])]
    yield " ".join([f"Saved in {out}. Next: onceclip", *following,
                    *(f"--import {each}" for each in dict.fromkeys(modules))])


def _accuracies(row: Mapping[str, Any], grouped: bool) -> Iterator[str]:
    """What a run reached on test images, by the adapter alone too, and on the classes that it was not fitted on."""
    from onceclip.pipeline.evaluation.statistics import count_interval

    found = row.get("inference") or {}
    if row.get("accuracy_before_refit") is not None:
        yield (f"  test accuracy    none, for the test images were fitted on; {percent(row['accuracy_before_refit'])} "
               "before that")
    elif not row["n_test"]:
        yield "  test accuracy    none, for there are no labelled test images"
    else:
        among = counted(row["n_test"], "image")
        # Images of a group are not independent, and scores of batches and orders are means.
        if not (row["accuracy"] is None or grouped or "batches" in found or "orders" in found):
            low, high = count_interval(round(row["accuracy"] * row["n_test"]), row["n_test"])
            among = f"95 % interval {percent(low)} to {percent(high)}, {among}"
        yield (f"  test accuracy    {percent(row['accuracy'])} ({among}), macro recall {percent(row['macro_recall'])}"
               f"{few_words(row['n_test'])}")
        if found:
            yield (f"  by itself        {percent(found['alone']['accuracy'])}; {found['name']} is no part of the "
                   f"adapter: evaluate --inference {found['name']}")
    if "class_set" in row:
        new = (f"not served: what {row['method']} learns belongs to its classes" if row["accuracy_new"] is None else
               f"{percent(row['accuracy_new'])} ({counted(row['n_test_new'], 'image')}), harmonic mean "
               f"{percent(row['harmonic_mean'])}")
        yield f"  {row['classes_new']} new classes   {new}"


def _chosen_values(row: Mapping[str, Any]) -> Iterator[str]:
    values = ", ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                       for name, value in row["hyperparameters"].items())
    chosen = "" if row["accuracy_val"] is None else f", {percent(row['accuracy_val'])} on the rows that chose them"
    yield f"  hyperparameters  {values or 'none'} ({row['select']}{chosen})"


def _reached(row: Mapping[str, Any]) -> Iterator[str]:
    """What each method of an average reached on the rows that weighed them, and by how much the average is ahead."""
    *methods, average = row["reached"]
    if not methods:
        yield f"  {average['method']} alone, for there are no labelled images to compare methods on"
    elif average["accuracy"] is None:
        yield (f"  {', '.join(each['method'] for each in methods)} weighed alike, for there are no labelled images to "
               "compare them on")
    else:
        where = {"held-out": "training images held out"}.get(row["select"], "validation images")
        for each in methods:
            yield f"  {each['method']:<16} {percent(each['accuracy']):>8} of {where}, weight {each['weight']:.2f}"
        best = max(methods, key=lambda each: each["accuracy"])
        others = {each["method"]: 100 * (average["accuracy"] - each["accuracy"]) for each in methods
                  if each["method"] in (best["method"], "zero-shot")}
        yield (f"  {'their average':<16} {percent(average['accuracy']):>8}, "
               + " and ".join(f"{points:+.2f} points to {name}" for name, points in others.items()))
