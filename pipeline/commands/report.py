"""`onceclip report`: results, or one saved adapter, as an HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import click

from onceclip.pipeline.commands.options import LocalPath, import_option, join_option, json_option, show
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
def report(results: tuple[str, ...], out: Path, split: str | None, images: str | None, join: tuple[str, ...],
           modules: tuple[str, ...], as_json: bool) -> None:
    """Write a page of results, or of an adapter and its mistakes.

    Results: learning curves, tables, differences to zero-shot, chosen hyperparameters, classes, calibration, cost and
    provenance. An adapter: scores, classes, confusions, and the mistakes that it is most sure of.

    \b
    Example:
        onceclip report results --out results.html
        onceclip report pets-adapter pets.zarr --out mistakes.html
    """
    from onceclip.adapters.saving import CONFIG, file_of
    from onceclip.pipeline.api.adapters import report as write
    from onceclip.pipeline.runs.results import NAME
    from onceclip.stores.location import local_copy

    first, *others = results
    with local_copy(first) as folder:
        store = (others[0] if len(others) == 1 and file_of(folder, CONFIG).is_file()
                 and not (Path(others[0]) / NAME).is_file() else None)
        found = write(folder if store else [folder, *others], store, out=out, split=split, images=images,
                      modules=modules, join=join)
    for adapter in () if store else (each for each in results if file_of(Path(each), CONFIG).is_file()):
        click.echo(f"Note: {adapter} is an adapter, and without a store the page has only its result row: classes, "
                   f"confusions and mistakes take `onceclip report {quote(adapter)} STORE --out {quote(str(out))}`",
                   err=True)
    show(as_json, found, lambda: report_lines(out, found))


def report_lines(out: Path, found: Mapping[str, Any]) -> list[str]:
    """What the page of an adapter or of results holds."""
    if "settings" in found:
        return [f"{out}: {counted(found['rows'], 'run')}, {', '.join(found['settings'])}"]
    return [f"{out}: {percent(found['accuracy'])} right, {counted(len(found['mistakes']), 'mistake')} shown, "
            f"{found['pictures']} with a picture"]
