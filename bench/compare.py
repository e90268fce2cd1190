"""Two files of rows beside each other: what became slower."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from bench.measure import Row, in_words, read_rows

SLOWER = 0.2  # of the median


@dataclass(frozen=True)
class Change:
    """How the median of one way of one figure changed. change, spread: shares of the median before.

    spread: between the smallest and the largest repetition, of the file where they differ more.
    """

    name: str
    before: float
    after: float
    spread: float
    own: bool

    @property
    def change(self) -> float:
        """Of the median; more than 0 is slower."""
        return self.after / self.before - 1

    @property
    def slower(self) -> bool:
        """Whether it became slower by more than a fifth, and by more than repetitions differ."""
        return self.change > max(SLOWER, self.spread)


def changes(before: list[Row], after: list[Row]) -> list[Change]:
    """Changes of all ways that both have, joined by bench, figure and parameters."""
    known = {row.key: row for row in before}
    found = []
    for row in after:
        old = known.get(row.key)
        for way in row.medians if old else ():
            if old is not None and way in old.medians:
                spread = max(_spread(each, way) for each in (old, row))
                found.append(Change(f"{row.bench}: {_named(row)}: {way}", old.medians[way], row.medians[way], spread,
                                    way in row.own))
    return found


def _spread(row: Row, way: str) -> float:
    return (max(row.seconds[way]) - min(row.seconds[way])) / row.medians[way]


def _named(row: Row) -> str:
    return row.figure + (f" {json.dumps(row.parameters)}" if row.parameters else "")


@click.command()
@click.argument("first", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("second", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def compare(first: Path, second: Path) -> None:
    """Show how medians changed from one file of rows to another; exit 1 if an own way became over 20 % slower.

    A change counts if it is also larger than what the repetitions of either file differ by. Ways that are not this
    package's are shown, as they tell how the machine changed, and do not count.
    """
    before, after = read_rows(first), read_rows(second)
    found = changes(before, after)
    if not found:
        raise click.ClickException(f"{first} and {second} have no figure in common: run the same bench with the same "
                                   "options for both")
    if before[0].machine != after[0].machine:
        click.echo("the files are of two machines: only ratios can be compared", err=True)
    click.echo("   change   spread      before       after")
    for each in found:
        mark = "  SLOWER" if each.slower and each.own else ""
        click.echo(f"{each.change:+9.1%}{each.spread:9.1%}{in_words(each.before):>12}{in_words(each.after):>12}  "
                   f"{each.name}{mark}")
    alone = len({row.key for row in before} ^ {row.key for row in after})
    if alone:
        click.echo(f"{alone} figures are in one file only", err=True)
    if any(each.slower and each.own for each in found):
        sys.exit(1)
