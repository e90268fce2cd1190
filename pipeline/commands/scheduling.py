"""Options that say which processes do the work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from onceclip.pipeline.workers import Workers

scheduler_option = click.option(
    "--scheduler", metavar="ADDRESS|FILE|dask", help="Have the workers of a dask scheduler do it: its address, the "
    "file that it wrote, or dask for the one that DASK_SCHEDULER_ADDRESS names (docs/clusters.md).")
local_workers_option = click.option(
    "--local-workers", type=click.IntRange(0), metavar="N", help="Share it among N processes of this machine; 0: one "
    "per core, or per GPU.  [default: this process alone]")


class PartOf(click.ParamType):
    """One of several shares of the work."""

    name = "I/N"

    def convert(self, value: Any, param: Any, context: Any) -> Any:
        from onceclip.pipeline.parts import Part

        try:
            return value if isinstance(value, Part) else Part.parse(value)
        except ValueError as error:
            self.fail(str(error), param, context)


part_option = click.option(
    "--part", type=PartOf(), metavar="I/N", help="Do one of N shares, such as 2/8, beside processes that do the "
    "others, as in a job array (docs/clusters.md).")


@contextmanager
def hired(scheduler: str | None, local_workers: int | None = None,
          modules: Sequence[str] = ()) -> Iterator[Workers | None]:
    """The workers that options name; None where they name none. local_workers: 0 for one per GPU, or per core.

    modules: what workers import while this process prepares their tasks.
    Raises WorkerError if the scheduler does not answer.
    """
    if scheduler is not None:
        from onceclip.pipeline.cluster.scheduler import connected
        from onceclip.pipeline.process import load

        with connected(scheduler) as cluster:
            cluster.begin(load, modules)
            yield cluster
    elif local_workers is not None:
        from onceclip.pipeline.cluster.machine import cores, visible_gpus
        from onceclip.pipeline.workers import Processes

        gpus = visible_gpus()
        with Processes(local_workers or len(gpus) or cores(), gpus, modules) as processes:
            yield processes
    else:
        yield None


def one_way(**given: Any) -> None:
    """Raise UsageError if several of some options are given; names are those of the parameters."""
    named = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None and value is not False]
    if len(named) > 1:
        raise click.UsageError(f"{' and '.join(named)} do not go together: give one of them")


def on_a_worker(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option to be carried out as a whole by a worker of a scheduler."""

    @scheduler_option
    @wraps(function)
    def command(scheduler: str | None, **values: Any) -> None:
        if scheduler is None:
            function(**values)
            return
        from onceclip.pipeline.cluster.command import Command, run_command
        from onceclip.pipeline.cluster.scheduler import connected

        task = Command(function.__name__, {**values, "scheduler": None}, os.getcwd())
        with connected(scheduler) as cluster:
            said, = cluster.work(run_command, [task])
        click.echo(said.err, err=True, nl=False)
        click.echo(said.out, nl=False)
        if said.failure:
            raise click.ClickException(said.failure)

    return command
