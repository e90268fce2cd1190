"""`onceclip incremental`: classes that arrive in sessions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from onceclip.pipeline.commands.configuration import complete_methods
from onceclip.pipeline.commands.inference import settings_in
from onceclip.pipeline.commands.options import (
    KEEPS_NOTHING,
    import_option,
    json_option,
    percentage,
    require_there,
    show,
)
from onceclip.pipeline.commands.parameter_types import SHOTS, LocalPath, Names, Numbers
from onceclip.pipeline.words import counted, percent


@click.command()
@click.argument("store")
@click.option("--method", "methods", type=Names(), default="zero-shot,gda,ranpac", show_default=True,
              metavar="A,B,...", shell_complete=complete_methods,
              help="Names of methods, or MODULE:CLASS for ones of your own.")
@click.option("--sessions", type=click.IntRange(1), default=10, show_default=True, help="Sessions that the classes "
              "arrive in, of equally many.")
@click.option("--orders", type=Numbers(), default="1-3", show_default=True, help="Seeds of the orders of classes.")
@click.option("--shots", type=SHOTS, default="all", show_default=True, help="Labelled training images per class.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the draw and of the training.")
@click.option("--set", "values", multiple=True, metavar="NAME=VALUE", callback=settings_in,
              help="Set a hyperparameter of all methods that have it, or METHOD.NAME of one (repeatable).")
@click.option("--text", default="default", show_default=True, metavar="NAME", help="Text set to use.")
@click.option("--joint", is_flag=True, help="Fit on the images of all sessions so far: what no method of sessions may "
              "do, and what it is compared with.")
@click.option("--out", type=LocalPath(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Keep rows in FOLDER/incremental.jsonl, where runs that have a row are not repeated, and draw all "
              "rows there in FOLDER/incremental.html.")
@import_option
@json_option
def incremental(store: str, methods: list[str], shots: int, values: dict[str, str], out: Path | None,
                modules: tuple[str, ...], as_json: bool, **asked: Any) -> None:
    """Score methods on classes that arrive in sessions.

    Each is scored on all classes seen, without the images of earlier sessions.

    \b
    Example:
        onceclip incremental pets.zarr --method zero-shot,gda,ranpac --sessions 2 --orders 1-3 --out arriving
    """
    require_there(stores=[store])
    click.get_current_context().meta[KEEPS_NOTHING] = out is None
    from onceclip.adapters.plugin import import_module
    from onceclip.pipeline.api.runs import incremental as run
    from onceclip.pipeline.runs.specs import values_of_each

    for module in modules:
        import_module(module)
    rows = []
    own = values_of_each(methods, values, "--set") if len(methods) > 1 else [values]
    for name, given in zip(methods, own, strict=True):
        with percentage(f"incremental {name}") as progress:
            rows += run(store, name, shots=shots or None, values=given, out=out, progress=progress, **asked)
    page = None
    if out:
        from onceclip.pipeline.reporting.pages import write_incremental_report

        page = write_incremental_report(out)
    show(as_json, {"rows": rows, "report": None if page is None else str(page)}, lambda: incremental_lines(rows, page))


def incremental_lines(rows: Sequence[Mapping[str, Any]], page: Path | None) -> Iterator[str]:
    """What each method reached, the mean over the orders."""
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        lost = [row["forgetting"] for row in mine if row["forgetting"] is not None]
        yield (f"{name}: {counted(len(mine[0]['sessions']), 'session')}, {counted(len(mine), 'order')}: "
               f"{percent(fmean(row['average_incremental_accuracy'] for row in mine))} on average, "
               f"{percent(fmean(row['accuracy'] for row in mine))} at the end, "
               f"forgetting {percent(fmean(lost)) if lost else '-'}, {max(row['bytes_kept'] for row in mine):,} bytes "
               f"kept{', earlier images read again' if mine[0]['reads_old_rows'] else ''}")
    if page:
        yield f"Curves: {page}"
