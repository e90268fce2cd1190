"""Options that say which processes do the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from onceclip.pipeline.workers import Workers

scheduler_option = click.option(
    "--scheduler", metavar="ADDRESS|FILE|dask", help="Have the workers of a dask scheduler do it: its address, the "
    "file that it wrote, or dask for the one that DASK_SCHEDULER_ADDRESS names (docs/clusters.md).")


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

        with connected(scheduler, modules) as cluster:
            yield cluster
    elif local_workers is not None:
        from onceclip.pipeline.cluster.machine import cores, visible_gpus
        from onceclip.pipeline.cluster.scheduler import local

        gpus = visible_gpus()
        with local(local_workers or len(gpus) or cores(), gpus, modules) as cluster:
            yield cluster
    else:
        yield None


def one_way(**given: Any) -> None:
    """Raise UsageError if several of some options are given; names are those of the parameters."""
    named = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None and value is not False]
    if len(named) > 1:
        raise click.UsageError(f"{' and '.join(named)} do not go together: give one of them")
