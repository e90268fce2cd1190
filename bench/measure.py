"""Timing ways of one thing in turn, and the one form in which every bench writes down what came out."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import torch
from click.core import ParameterSource

from bench.goals import GOALS
from bench.machine import these_versions, this_machine
from onceclip import OnceclipError

Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class Row:
    """One figure of one bench.

    bench, figure, parameters: what was measured; the same figure of another file is found by them.
    seconds: every repetition of every way, per unit of work. medians: of them. own: the ways that are this package's.
    ratios: "other / own": how many times as fast as another way an own one is.
    bound: seconds that the machine allows the first own way, where that is known. fraction: of it that is reached.
    goals: by key of GOALS, the value and whether it reaches the goal. values: figures that are no times.
    quick: whether sizes were cut down, so that no figure means anything.
    """

    bench: str
    figure: str
    parameters: dict[str, Any]
    seconds: Seconds
    medians: dict[str, float]
    own: list[str]
    ratios: dict[str, float]
    bound: float | None
    fraction: float | None
    goals: dict[str, dict[str, Any]]
    values: dict[str, Any]
    quick: bool = False
    machine: dict[str, Any] = field(default_factory=this_machine)
    versions: dict[str, str] = field(default_factory=these_versions)

    @property
    def key(self) -> str:
        """What finds this figure in another file."""
        return json.dumps([self.bench, self.figure, self.parameters], sort_keys=True)

    @property
    def processor(self) -> str:
        """The kind of processor or GPU in words, with the instructions that products depend on."""
        name = self.machine["gpu"] or self.machine["cpu"]
        return " with ".join(filter(None, [name, ", ".join(self.machine.get("instructions", ()))]))


def in_turn(ways: Mapping[str, Callable[[], object]], repeats: int = 5, warm: int = 1) -> Seconds:
    """Seconds of each way in every repetition, run A B A B after a warm-up."""
    times: Seconds = {name: [] for name in ways}
    for turn in range(repeats + warm):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if turn >= warm:
                times[name].append(time.perf_counter() - begun)
    return times


def scaled(seconds: Sequence[float], factor: float) -> list[float]:
    """Seconds of so many times the work."""
    return [factor * each for each in seconds]


def ratio(seconds: Mapping[str, Sequence[float]], other: str, own: str) -> float:
    """How many times as fast as another way an own one is, by their medians."""
    return statistics.median(seconds[other]) / statistics.median(seconds[own])


def make_row(figure: str, parameters: Mapping[str, Any], seconds: Mapping[str, Sequence[float]], own: Sequence[str],
             bound: float | None = None, goals: Mapping[str, float] | None = None, **values: Any) -> Row:
    """The row of a figure; medians, ratios and whether goals are reached follow from the rest.

    The bench's name and whether it is quick come from the command that runs.
    """
    context = click.get_current_context()
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    ratios = {f"{other} / {way}": medians[other] / medians[way] for way in own for other in medians if other not in own}
    reached = {key: {"value": value, "wanted": GOALS[key].wanted, "reached": GOALS[key].reached(value)}
               for key, value in (goals or {}).items()}
    return Row(str(context.info_name), figure, dict(parameters), {name: list(each) for name, each in seconds.items()},
               medians, list(own), ratios, bound, bound and bound / medians[own[0]], reached, values,
               context.params["quick"])


def bench(name: str, small: Mapping[str, Any]) -> Callable[[Callable[..., Iterator[Row]]], click.Command]:
    """Make a command of a function that gives rows: they are printed, and appended to a file of JSON lines.

    small: values that `--quick` takes for options that are not given, so that all of it runs in seconds.
    """

    def decorate(function: Callable[..., Iterator[Row]]) -> click.Command:
        def run(quick: bool, out: Path | None, **options: Any) -> None:
            context = click.get_current_context()
            for option, value in small.items() if quick else ():
                if context.get_parameter_source(option) is ParameterSource.DEFAULT:
                    options[option] = value
            threads = torch.get_num_threads()
            if not quick:  # what steps take to compile is measured, so no code is there from another time
                folder = context.with_resource(tempfile.TemporaryDirectory())
                context.with_resource(patch.dict(os.environ, TORCH_HOME=folder))
            try:
                for row in function(**options):
                    show(row)
                    if out is not None:
                        with out.open("a", encoding="ascii") as file:
                            file.write(json.dumps(asdict(row)) + "\n")
            except OnceclipError as error:
                raise click.ClickException(str(error)) from error
            finally:
                torch.set_num_threads(threads)

        run.__doc__ = function.__doc__
        run.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        command = click.command(name, context_settings={"show_default": True})(run)
        command.params += [
            click.Option(["--quick", "quick"], is_flag=True, help="Cut sizes down to see whether everything runs."),
            click.Option(["--out"], type=click.Path(path_type=Path), help="Append the rows here, as JSON lines.")]
        return command

    return decorate


def show(row: Row) -> None:
    """Print a row as a small table."""
    click.echo(f"\n{row.figure}" + (" (quick: figures mean nothing)" if row.quick else ""))
    for name, median in row.medians.items():
        times = [f"{row.ratios[f'{name} / {own}']:.2f}x" for own in row.own if f"{name} / {own}" in row.ratios]
        against = f"   {' '.join(f'{each:>9}' for each in times)}" if times else ""
        low, high = min(row.seconds[name]), max(row.seconds[name])
        click.echo(f"  {name:<34}{in_words(median):>11}  ({in_words(low)} to {in_words(high)}){against}")
    if row.fraction is not None:
        click.echo(f"  of what the machine allows: {row.fraction:.0%}")
    for name, value in row.values.items():
        click.echo(f"  {name.replace('_', ' ')}: {f'{value:.4g}' if isinstance(value, float) else value}")
    for key, goal in row.goals.items() if not row.quick else ():
        click.echo(f"  goal {key}: {goal['value']:.4g}, wanted {goal['wanted']}: "
                   f"{'reached' if goal['reached'] else 'not reached'}")


def in_words(seconds: float) -> str:
    """Seconds in a unit that suits them."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:,.3g} {unit}" if seconds * factor < 1000 else f"{seconds * factor:,.0f} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def read_rows(path: Path) -> list[Row]:
    """Rows of a file; of a figure that was measured several times on one kind of processor the last one."""
    rows = [Row(**json.loads(line)) for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
    return list({(row.key, row.processor): row for row in rows}.values())
