"""`onceclip compare`: tests of differences between the lines of results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from onceclip.pipeline.commands.options import json_option, show
from onceclip.pipeline.commands.parameter_types import Names, ShotList
from onceclip.pipeline.words import counted, shots_of


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
