"""`onceclip report`: results, or one saved adapter, as an HTML page."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import click

from onceclip.pipeline.commands.options import LocalPath, import_option, json_option, show


@click.command()
@click.argument("results", nargs=-1, required=True, metavar="(RESULTS... | ADAPTER STORE)")
@click.option("--out", type=LocalPath(path_type=Path, dir_okay=False), required=True, metavar="FILE.html",
              help="The page; it needs no other file and no network.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Of an adapter's page: what to score.  "
              "[default: test]")
@click.option("--images", metavar="FOLDER", help="Of an adapter's page: where the store's images are (whatever "
              "`extract` takes), for pictures of mistakes.  [default: the store's path without .zarr, if there]")
@import_option
@json_option
def report(results: tuple[str, ...], out: Path, split: str | None, images: str | None, modules: tuple[str, ...],
           as_json: bool) -> None:
    """Write one HTML page of results folders, or of one saved adapter on a store.

    Results: learning curves, tables, differences to zero-shot, chosen hyperparameters, classes, calibration, cost and
    provenance. An adapter: scores, classes, confusions, and the mistakes that it is most sure of.

    \b
    Example:
        onceclip report results --out results.html
        onceclip report pets-adapter pets.zarr --out mistakes.html
    """
    from onceclip.adapters.classifier import CONFIG
    from onceclip.pipeline.reporting import write_adapter_report, write_results_report
    from onceclip.pipeline.runs.results import NAME
    from onceclip.pipeline.words import counted

    first, *others = map(Path, results)
    if (first / CONFIG).is_file() and len(others) == 1 and not (others[0] / NAME).is_file():
        found = write_adapter_report(first, results[1], out, split or "test", images, modules)
        show(as_json, found, lambda: [f"{out}: {100 * found['accuracy']:.2f} % right, {len(found['mistakes'])} "
                                      f"mistakes shown, {found['pictures']} with a picture"])
        return
    if split or images:
        raise click.UsageError("--split and --images are for the page of an adapter: give ADAPTER STORE")
    found = write_results_report([first, *others], out)
    for adapter in (each for each in (first, *others) if (each / CONFIG).is_file()):
        click.echo(f"Note: {adapter} is an adapter, and without a store the page has only its result row: classes, "
                   f"confusions and mistakes take `onceclip report {quote(str(adapter))} STORE --out "
                   f"{quote(str(out))}`", err=True)
    show(as_json, found, lambda: [f"{out}: {counted(found['rows'], 'run')}, {', '.join(found['settings'])}"])
