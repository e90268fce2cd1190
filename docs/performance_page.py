"""Writes the tables of `docs/performance.md` from what the benches measured; no figure there is typed by hand.

`python -m docs.performance_page BENCH.jsonl`, from the checkout: the rows go to `docs/performance.jsonl`, of which the
tables are made. Without a file the tables are made anew. Quick rows are refused.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from bench.__main__ import BENCHES
from bench.goals import GOALS
from bench.measure import Row, in_words, read_rows

FOLDER = Path(__file__).resolve().parent
PAGE, ROWS = FOLDER / "performance.md", FOLDER / "performance.jsonl"
UNKNOWN = "to be measured"


@click.command()
@click.argument("rows", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
def main(rows: Path | None) -> None:
    """Write the tables."""
    if rows is not None:
        if any(row.quick for row in read_rows(rows)):
            raise click.ClickException(f"{rows} has rows of --quick, which mean nothing: run the benches without it")
        shutil.copyfile(rows, ROWS)
    text = page(PAGE.read_text(encoding="utf-8"), kept())
    PAGE.write_text(text, encoding="utf-8")
    behind = ", ".join(unexplained(text, kept()))
    if behind:
        click.echo(f"not reached, and not named under 'Where it is behind': {behind}", err=True)


def kept() -> list[Row]:
    """The rows that the page stands on."""
    return read_rows(ROWS) if ROWS.exists() else []


def page(text: str, rows: Sequence[Row]) -> str:
    """The page with its tables made anew."""
    for name, lines in (("machine", machines(rows)), ("goals", goals(rows)), ("figures", figures(rows))):
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        made = "\n".join([begin, *lines, end])
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: made, text, flags=re.DOTALL)  # noqa: B023
    return text


def machines(rows: Sequence[Row]) -> Iterator[str]:
    """What was measured on."""
    found = {json.dumps([row.machine, row.versions]): row for row in rows}
    for row in found.values():
        at, packages = row.machine, ", ".join(f"{name} {number}" for name, number in row.versions.items())
        yield (f"Machine: {at['cpu']}, {at['cores']} cores, {at['memory_gib']:g} GiB, {at['system']}, "
               f"{'GPU: ' + at['gpu'] if at['gpu'] else 'no GPU'}; {packages}.")
    if not rows:
        yield f"Machine: {UNKNOWN}."


def values(rows: Sequence[Row]) -> dict[str, float]:
    """The value of every goal that was measured; where several rows have one, that which is furthest from it."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for key, reached in row.goals.items():
            found[key].append(reached["value"])
    return {key: (min if GOALS[key].most == float("inf") else max)(each) for key, each in found.items()}


def goals(rows: Sequence[Row]) -> Iterator[str]:
    """A line per goal."""
    yield "| # | goal | wanted | measured | | command |"
    yield "| --- | --- | --- | --- | --- | --- |"
    measured = values(rows)
    for key, goal in GOALS.items():
        value = measured.get(key)
        command = f"`python -m bench {goal.bench}`" if goal.bench else "needs a GPU"
        shown = UNKNOWN if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        state = "" if value is None else "reached" if goal.reached(value) else "**not reached**"
        yield f"| {key} | {goal.text} | {goal.wanted} | {shown} | {state} | {command} |"


def figures(rows: Sequence[Row]) -> Iterator[str]:
    """A table per bench."""
    for name, text in BENCHES.items():
        own = [row for row in rows if row.bench == name]
        if not own:
            continue
        yield f"\n### {name}: {text}\n"
        yield "| figure | medians | of what the machine allows | further |"
        yield "| --- | --- | --- | --- |"
        for row in own:
            at = ", ".join(f"{key} {value}" for key, value in row.parameters.items())
            share = "" if row.fraction is None else f"{row.fraction:.0%}"
            further = "; ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in row.values.items())
            ways = "<br>".join(_way(row, way) for way in row.medians)
            yield f"| {row.figure} ({at}) | {ways} | {share} | {further} |"


def _way(row: Row, name: str) -> str:
    """A way's median, and how many times as fast each own way is."""
    times = [f"{row.ratios[f'{name} / {own}']:.3g}" for own in row.own if f"{name} / {own}" in row.ratios]
    return f"{name}: {in_words(row.medians[name])}" + (f" ({', '.join(times)} x)" if times else "")


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/")


def unexplained(text: str, rows: Sequence[Row]) -> list[str]:
    """Goals that are not reached and that the page gives no reason for."""
    reasons = text.partition("## Where it is behind")[2].partition("\n## ")[0]
    return [key for key, value in values(rows).items() if not GOALS[key].reached(value) and f"**{key}**" not in reasons]


if __name__ == "__main__":
    main()
