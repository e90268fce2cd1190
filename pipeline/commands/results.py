"""`onceclip report`, `table` and `compare`: results as a page, as the table of a paper, and tested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import click

from onceclip.pipeline.commands.options import import_option, join_option, json_option, require_there, show
from onceclip.pipeline.commands.parameter_types import LocalPath, Names, ShotList
from onceclip.pipeline.words import counted, percent, shots_of


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

        found = write(folder if store else [folder, *others], store, out=out, **of_adapter)
    for adapter in () if store else (each for each in results if file_of(Path(each), CONFIG).is_file()):
        click.echo(f"Note: {adapter} is an adapter, and without a store the page has only its result row: classes, "
                   f"confusions and mistakes take `onceclip report {quote(adapter)} STORE --out {quote(str(out))}`",
                   err=True)
    what = (f"{counted(found['rows'], 'run')}, {', '.join(found['settings'])}" if "settings" in found else
            f"{percent(found['accuracy'])} right, {counted(len(found['mistakes']), 'mistake')} shown, "
            f"{found['pictures']} with a picture")
    show(as_json, found, lambda: [f"{out}: {what}"])


@click.command()
@click.argument("results", nargs=-1, required=True, metavar="RESULTS...")
@click.option("--format", "form", type=click.Choice(["markdown", "latex", "csv", "html"]), default="markdown",
              show_default=True, help="csv has plain numbers, fractions of one, without marks.")
@click.option("--score", type=Names(), default="accuracy", show_default=True, metavar="NAME,...",
              help="accuracy, accuracy_new, harmonic_mean, top5, macro_recall, nll, brier or ece; several are columns.")
@click.option("--columns", type=click.Choice(["stores", "shots", "scores"]), help="Each store and their mean, or shots "
              "or scores as means over stores.  [default: stores if there are several]")
@click.option("--shots", type=ShotList(), help="Only these.")
@click.option("--methods", type=Names(), metavar="A,B,...", help="Only these lines, in this order.")
@click.option("--interval", is_flag=True, help="Add half of the 95 % interval over seeds.")
@click.option("--digits", type=click.IntRange(0, 6), default=1, show_default=True, help="Decimals of per cent.")
@click.option("--out", type=LocalPath(path_type=Path, dir_okay=False), metavar="FILE", help="Write it to a file.")
@json_option
def table(results: tuple[str, ...], form: str, out: Path | None, as_json: bool, **shown: Any) -> None:
    """Print results as the table of a paper.

    The best of each column is bold, the second underlined. Means are over seeds, and of several stores over the seeds
    that all of them have.

    \b
    Example:
        onceclip table results --format latex --interval
        onceclip table results --columns shots --methods zero-shot,gda
    """
    from onceclip.pipeline.api.tables import table as make
    from onceclip.stores.location import whole_file

    text = make(list(results), form, **shown)
    if out is not None:
        with whole_file(out) as file:
            file.write(f"{text}\n".encode())
    show(as_json, {"format": form, "table": text, "out": out and str(out)},
         lambda: [text if out is None else f"{out}: {counted(len(text.splitlines()), 'line')} of {form}"])


@click.command()
@click.argument("results", nargs=-1, required=True, metavar="RESULTS...")
@click.option("--test", type=click.Choice(["draws", "mcnemar", "bootstrap", "wilcoxon", "friedman"]), default="draws",
              show_default=True, help="draws: paired t over seeds. mcnemar: over images, each seed. bootstrap: over "
              "draws and images together. wilcoxon, friedman (with Nemenyi): over stores.")
@click.option("--baseline", metavar="LINE", help="What the others are compared with.  [default: zero-shot]")
@click.option("--score", default="accuracy", show_default=True, metavar="NAME", help="What is compared.")
@click.option("--shots", type=ShotList(), help="Only these.")
@click.option("--methods", type=Names(), metavar="A,B,...", help="Only these lines, and the baseline.")
@click.option("--by-encoder", is_flag=True, help="A line per method and encoder, on equal draws of stores of the same "
              "images.")
@json_option
def compare(results: tuple[str, ...], as_json: bool, **asked: Any) -> None:
    """Test whether methods differ, on the same draws.

    All lines of results folders are tested against one of them. p-values of one block are corrected by Holm. mcnemar
    and bootstrap take sweeps with --keep-predictions.

    \b
    Example:
        onceclip compare results
        onceclip compare results --test bootstrap --baseline tip-adapter
    """
    from onceclip.pipeline.api.tables import compare as run

    found = run(list(results), **asked)
    show(as_json, found, lambda: comparison_lines(found))


def comparison_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The blocks of a comparison as text, differences in points."""
    scale, unit = (1, "") if found["score"] in ("nll", "nll_calibrated", "brier") else (100, " points")
    for block in found["blocks"]:
        where = ", ".join([shots_of(block["shots"]), *([block["store"]] if "store" in block else []),
                           *([f"seed {block['seed']}"] if "seed" in block else [])])
        if "ranks" in block:
            yield (f"{where}: Friedman over {counted(block['n'], 'store')}, chi-squared {block['statistic']:.2f}, "
                   f"p {block['p']:.3g}; mean ranks (critical difference {block['critical_difference']:.2f}):")
            for name, rank in sorted(block["ranks"].items(), key=lambda each: each[1]):
                yield f"  {rank:5.2f}  {name}"
            for pair in block["pairs"]:
                yield f"  {' and '.join(pair['methods'])}: Nemenyi's p {pair['p']:.3g}"
            continue
        yield f"{where}: {found['score']} against {found['baseline']} ({found['test']})"
        width = max(len(each["method"]) for each in block["comparisons"])
        for each in block["comparisons"]:
            interval = each["interval"]
            ends = "" if interval is None else (f" (95 % interval {scale * interval[0]:+.2f} to "
                                                f"{scale * interval[1]:+.2f})")
            p = "" if each["p"] is None else f", p {each['p']:.3g}, by Holm {each['p_holm']:.3g}"
            yield f"  {each['method']:<{width}}  {scale * each['difference']:+.2f}{unit}{ends}{p}, n={each['n']}"
