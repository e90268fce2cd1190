"""`onceclip sweep`: many runs on one or more stores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from onceclip.pipeline.commands.configuration import complete_methods
from onceclip.pipeline.commands.inference import inference_options
from onceclip.pipeline.commands.options import (
    compile_option,
    coverage_option,
    draw_options,
    join_option,
    json_option,
    one_way,
    part_option,
    require_there,
    scheduler_option,
    show,
    support_options,
    training_device_option,
    workers_of,
)
from onceclip.pipeline.commands.parameter_types import LocalPath, Names, Numbers, ShotList, names_in, pair_in
from onceclip.pipeline.words import counted

if TYPE_CHECKING:
    from onceclip.pipeline.evaluation.statistics import Mean
    from onceclip.pipeline.runs.summary import Key, Table
    from onceclip.pipeline.runs.sweep import Plan
    from onceclip.pipeline.workers import Part


@click.command()
@click.argument("stores", nargs=-1, required=True, metavar="STORE...")
@click.option("--methods", type=Names(), metavar="A,B,...", shell_complete=complete_methods,
              help="Names, MODULE:CLASS for methods of your own, or all; A+B for an ensemble, RULE:A+B for one by a "
              "rule, NAME/A for a joined store's (`onceclip methods A+B` explains them).  [default: six of them]")
@click.option("--shots", type=ShotList(), default="1,2,4,8,16", show_default=True,
              help="Labelled training images per class, each of these numbers.")
@click.option("--seeds", type=Numbers(), default="1-5", show_default=True,
              help="Of the draws and of the training.")
@click.option("--grid", "grids", multiple=True, metavar="NAME=V1,V2|own",
              help="A run for each value of a hyperparameter, METHOD.NAME=... for one method's; own: for each of the "
              "methods' search values (repeatable).")
@click.option("--class-weights", type=Names(), default="unit-mean", show_default=True, metavar="A,B,...",
              help="How class vectors are made of prompts, as of fit: unit-mean, raw-mean, score-mean; all runs with "
              "each.")
@click.option("--classes", type=click.Choice(["all", "base"]), default="all", show_default=True,
              help="base: fit the first half of the classes alone; tables of base and new classes and of their "
              "harmonic mean.")
@click.option("--select", type=click.Choice(["fixed", "val", "val-full", "loo"]), help="How each run chooses its "
              "hyperparameters; with --grid each is fixed and scored on validation rows.  "
              "[default: as for fit; fixed with --grid]")
@draw_options
@click.option("--search", default="grid", show_default=True, metavar="S",
              help="What a selection tries: grid, random:N, halving[:N], halves[:N] or optuna:N.")
@click.option("--stream", is_flag=True, help="Read training rows anew in every epoch: for stores that do not fit "
              "into memory.")
@click.option("--narrow", is_flag=True, help="Search with products in bfloat16; winners are trained again as usual.")
@support_options
@join_option
@inference_options("Also read test images by these strategies, with every classifier; none is each image by itself: "
                   "none,stata.")
@compile_option
@training_device_option
@click.option("--text", default="default", show_default=True, metavar="NAME", help="Text set to use.")
@click.option("--local-workers", type=click.IntRange(0), default=0, metavar="N", help="Processes of one thread each.  "
              "[default: one per core for 100 runs or more]")
@scheduler_option
@part_option
@click.option("--curves", is_flag=True, help="Keep training and validation loss of every epoch in FOLDER/curves.jsonl; "
              "`onceclip report` draws them.")
@click.option("--keep-predictions", is_flag=True, help="Keep what each run takes every test image for in "
              "FOLDER/predictions.zarr; `onceclip compare` tests with them.")
@coverage_option
@click.option("--log", "logs", multiple=True, metavar="KIND:PLACE", help="Make a run of each row in a tracker that "
              "lacks it: mlflow:URI, or wandb-offline:DIR for `wandb sync` (repeatable).")
@click.option("--retry-failed", is_flag=True, help="Repeat runs whose row has an error, such as a training that "
              "diverged.")
@click.option("--dry-run", is_flag=True, help="Print the plan and run nothing.")
@click.option("--out", type=LocalPath(path_type=Path, file_okay=False), required=True, metavar="FOLDER",
              help="Results folder; runs that have a row in it are not repeated.")
@json_option
def sweep(stores: tuple[str, ...], methods: list[str] | None, shots: list[int | None], seeds: list[int],
          grids: tuple[str, ...], select: str | None, inference: str | None, compile: str, device: str,
          local_workers: int, scheduler: str | None, part: Part | None, curves: bool, keep_predictions: bool,
          coverage: float | None, logs: tuple[str, ...], retry_failed: bool, dry_run: bool, out: Path, as_json: bool,
          **of_a_run: Any) -> None:
    """Make many runs: methods x numbers of shots x seeds.

    Each run appends a row to FOLDER/results.jsonl as it ends. Stop it whenever you like: the same command goes on with
    what is missing. At the end comes a table of means over seeds with 95 % intervals, and of differences to zero-shot.

    \b
    Example:
        onceclip sweep pets.zarr --methods zero-shot,tip-adapter,gda --shots 1,4,16 --seeds 1-10 --out results
    """
    one_way(scheduler=scheduler, local_workers=local_workers or None)
    one_way(scheduler=scheduler, part=part)
    require_there(stores=stores)
    workforce = nullcontext() if dry_run else workers_of(scheduler, local_workers if local_workers > 1 else None,
                                                         ("onceclip.pipeline.runs.sweep",))
    workers = click.get_current_context().with_resource(workforce)  # before this process imports what they import too

    from onceclip.pipeline.api.runs import SWEPT, every_method, specs_of
    from onceclip.pipeline.api.runs import sweep as run
    from onceclip.pipeline.runs.keep import Keep
    from onceclip.pipeline.runs.specs import OWN
    from onceclip.pipeline.runs.summary import as_values, tables
    from onceclip.pipeline.runs.sweep import done_of, known, make_plan, require_result
    from onceclip.pipeline.workers.devices import training_device
    from onceclip.stores import open_store

    if scheduler is None:
        training_device(device)
    names = SWEPT if methods is None else every_method(of_a_run["bank"]) if methods == ["all"] else methods
    axes = [pair_in(grid, "NAME=VALUE,VALUE,... or own", "--grid") for grid in grids if grid != OWN]
    given = click.get_current_context().get_parameter_source("shots") is not ParameterSource.DEFAULT
    specs = specs_of(names, [0] if of_a_run["support"] and not given else shots, seeds,
                     [(name, names_in(values)) for name, values in axes], OWN in grids,
                     select=select or ("fixed" if grids else None), validated=bool(grids),
                     inference=names_in(inference or "none"), **of_a_run)
    opened = [open_store(store) for store in stores]
    if dry_run:
        done = done_of(out, known(out), retry_failed, Keep(curves, keep_predictions, coverage))
        plan = make_plan(opened, specs, done, device=device)
        values = {"runs": len(plan.runs), "todo": plan.todo, "groups": len(plan.groups)}
        show(as_json, values, lambda: [
            f"{counted(len(plan.runs), 'run')}, {plan.todo:,} to be done in {counted(len(plan.groups), 'group')}",
            *plan_lines(plan)])
        return
    rows = run(opened, specs, out, local_workers=local_workers, workers=workers, part=part, compile=compile,
               retry_failed=retry_failed, device=device, curves=curves, keep_predictions=keep_predictions,
               coverage=coverage, log=logs, progress=True)
    made = tables(rows)
    show(as_json, {"results": str(out), "tables": [as_values(table) for table in made]},
         lambda: [*(line for table in made for line in (*table_lines(table), "")),
                  f"Next: onceclip report {quote(str(out))} --out results.html"])
    require_result(rows)


def plan_lines(plan: Plan) -> Iterator[str]:
    """What the groups of a plan share, one line per method."""
    from onceclip.pipeline.runs.automatic import run_method

    for name in dict.fromkeys(group.specs[0].method for group in plan.groups):
        groups = [group for group in plan.groups if group.specs[0].method == name]
        runs, method = sum(len(group.specs) for group in groups), run_method(name)
        how = ("prepared once and scored in one pass" if not method.trained else
               "drawn once, solved run by run and scored in one pass" if method.solver == "lbfgs" else
               "drawn once, trained in stacks where that is faster, and scored in one pass")
        yield f"{name}: {counted(runs, 'run')} in {counted(len(groups), 'group')}; a group is {how}"


def table_lines(table: Table) -> list[str]:
    """A table as text: accuracies, then differences to zero-shot, in per cent."""
    from onceclip.pipeline.runs.summary import BASELINE, remarks_on

    runs = max((mean.runs for mean in table.accuracy.values()), default=0)
    parts = [f"{table.title}: test accuracy in per cent, mean ± 95 % interval of up to {counted(runs, 'seed')}",
             *accuracy_lines(table)]
    if table.to_baseline:
        parts += ["", f"difference to {BASELINE} on the same seeds", *_grid(table, table.to_baseline, signed=True)]
    if len(table.names) > 2:
        parts += ["", "difference to the best of the column", *_grid(table, table.to_best, signed=True)]
    for remark in remarks_on(table):
        parts += ["", remark]
    if table.failed:
        parts += ["", "left out, for they have no result:"]
        for reason, numbers in table.reasons.items():
            runs_of = ", ".join(f"{name} ({counted(number, 'run')})" for name, number in numbers.items())
            parts.append(f"  {runs_of}: {reason}")
    return parts


def accuracy_lines(table: Table) -> list[str]:
    """The accuracies of a table as text, in per cent: a line per name, a column per number of shots."""
    return _grid(table, table.accuracy, signed=False)


def _grid(table: Table, cells: Mapping[Key, Mean], signed: bool) -> list[str]:
    width = max(map(len, ("shots", *table.names)))
    names = [name for name in table.names if any((name, number) in cells for number in table.shots)]
    return [f"{'shots':<{width}}" + "".join(f"{number!s:>14}" for number in table.shots),
            *(f"{name:<{width}}" + "".join(f"{_cell(cells.get((name, number)), signed):>14}" for number in table.shots)
              for name in names)]


def _cell(mean: Mean | None, signed: bool) -> str:
    if mean is None:
        return "-"
    half = "" if mean.half_width is None else f" ± {100 * mean.half_width:.1f}"
    return f"{100 * mean.value:{'+' if signed else ''}.1f}{half}"
