"""`onceclip report`: a page of results, or of an adapter."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

import click

from onceclip.pipeline.commands.options import import_option, join_option, json_option, require_there, show
from onceclip.pipeline.commands.parameter_types import LocalPath
from onceclip.pipeline.words import counted, percent


@click.command()
@click.argument("results", nargs=-1, required=True, metavar="(RESULTS... | ADAPTER STORE)")
@click.option("--out", type=LocalPath(path_type=Path, dir_okay=False), required=True, metavar="FILE.html",
              help="The page; it needs no other file and no network.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Of an adapter's page: what to score.  "
              "[default: test]")
@click.option("--images", metavar="FOLDER", help="Of an adapter's page: where the store's images are (whatever "
              "`extract` takes), for pictures of mistakes.  [default: the store's path without .zarr, if there]")
@join_option
@import_option
@json_option
def report(results: tuple[str, ...], out: Path, as_json: bool, **of_adapter: Any) -> None:
    """Write a page of results, or of an adapter and its mistakes.

    Results: learning curves, tables, differences to zero-shot, chosen hyperparameters, classes, calibration, cost and
    provenance. An adapter: scores, classes, confusions, and the mistakes that it is most sure of.

    \b
    Example:
        onceclip report results --out results.html
        onceclip report pets-adapter pets.zarr --out mistakes.html
    """
    from onceclip.adapters.saving import CONFIG, file_of
    from onceclip.pipeline.files import RESULTS
    from onceclip.stores.location import local_copy

    first, *others = results
    with local_copy(first) as folder:
        store = (others[0] if len(others) == 1 and file_of(folder, CONFIG).is_file()
                 and not (Path(others[0]) / RESULTS).is_file() else None)
    require_there(stores=[store])
    from onceclip.pipeline.api.adapters import report as write

    found = write(first if store else results, store, out=out, **of_adapter)
    for adapter in () if store else (each for each in results if file_of(Path(each), CONFIG).is_file()):
        click.echo(f"Note: {adapter} is an adapter, and without a store the page has only its result row: classes, "
                   f"confusions and mistakes take `onceclip report {quote(adapter)} STORE --out {quote(str(out))}`",
                   err=True)
    what = (f"{counted(found['rows'], 'run')}, {', '.join(found['settings'])}" if "settings" in found else
            f"{percent(found['accuracy'])} right, {counted(len(found['mistakes']), 'mistake')} shown, "
            f"{found['pictures']} with a picture")
    show(as_json, found, lambda: [f"{out}: {what}"])
