"""Writes the tables of `docs/performance.md`, and the costs in README.md, from what the benches measured.

`python -m docs.performance_page BENCH.jsonl`, from the checkout: the rows go to `docs/performance.jsonl`, of which the
tables are made, in place of those of the same benches on the same kind of processor. Without a file the tables are made
anew. Quick rows are refused.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import click

from bench.__main__ import BENCHES
from bench.goals import GOALS
from bench.measure import Row, in_words, read_rows

FOLDER = Path(__file__).resolve().parent
PAGE, ROWS, README = FOLDER / "performance.md", FOLDER / "performance.jsonl", FOLDER.parent / "README.md"
UNKNOWN = "to be measured"


class Line(NamedTuple):
    """A line of the first table: what somebody does, the figure that says how long it takes, and the usual way."""

    text: str
    bench: str
    figure: str
    own: str
    usual: str = ""
    usual_text: str = ""


SUMMARY = (
    Line("`extract`: an image of 500 x 375 pixels with ViT-B/32", "extract", "an image extracted, ViT-B-32, 500x375",
         "ours, extract", "peer, float32", "a DataLoader and open_clip"),
    Line("`extract` again, with nothing new", "start", "processor seconds", "extract"),
    Line("`fit --method gda` on a store, with the start of Python", "start", "processor seconds", "fit"),
    Line("1,000 CLIP-Adapters of 20 epochs: `sweep`", "grid", "CLIP-Adapter, all runs", "ours, sweep in float32",
         "peer, loop", "the published loop on cached features"),
    Line("the best setting among them: `sweep --search halving`", "grid", "CLIP-Adapter, the best", "ours, halving",
         "peer, loop", "all of them"),
    Line("Tip-Adapter: 4,000 pairs of α and β on 1,600 images", "selection", "Tip-Adapter's search, 512",
         "ours, every weight", "peer, double loop", "the published double loop"),
    Line("a step of CoOp: 100 classes, ViT-B/32", "prompts", "a step of CoOp", "ours",
         "the published form, cached images", "the published form on cached images"),
    Line("MTA over 64 views of an image", "views", "64 views", "ours, mta", "encoding the views again",
         "encoding the views again"),
    Line("reading 1,000,000 embeddings of 512, each checked", "store", "read 1,000,000", "ours, shards", "np.load",
         "np.load, unchecked"),
    Line("10,000 queries: the nearest 10 of 1,000,000 images", "retrieval", "the nearest", "ours, from the store",
         "in one go, from memory", "all in memory, blocks of queries"),
)


@click.command()
@click.argument("rows", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
def main(rows: Path | None) -> None:
    """Write the tables."""
    if rows is not None:
        if any(row.quick for row in read_rows(rows)):
            raise click.ClickException(f"{rows} has rows of --quick, which mean nothing: run the benches without it")
        ROWS.write_text("".join(json.dumps(asdict(row)) + "\n" for row in joined(kept(), read_rows(rows))),
                        encoding="ascii")
    text = page(PAGE.read_text(encoding="utf-8"), kept())
    PAGE.write_text(text, encoding="utf-8")
    README.write_text(page(README.read_text(encoding="utf-8"), kept()), encoding="utf-8")
    behind = ", ".join(unexplained(text, kept()))
    if behind:
        click.echo(f"not reached, and not named under 'Where it is behind': {behind}", err=True)


def kept() -> list[Row]:
    """The rows that the page stands on."""
    return read_rows(ROWS) if ROWS.exists() else []


def joined(before: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """New rows in place of all of the same bench on the same kind of processor."""
    measured = {(row.bench, row.processor) for row in new}
    return [*(row for row in before if (row.bench, row.processor) not in measured), *new]


def page(text: str, rows: Sequence[Row]) -> str:
    """The page, or README.md, with those of the tables that it has made anew."""
    for name, lines in (("summary", summary(rows)), ("machine", machines(rows)), ("goals", goals(rows)),
                        ("figures", figures(rows)), ("script", script(rows))):
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        made = "\n".join([begin, *lines, end])
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: made, text, flags=re.DOTALL)  # noqa: B023
    return text


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """What a user does, how long it takes, and how long the usual way takes."""
    yield "| | onceclip | the usual way |"
    yield "| --- | --- | --- |"
    for line in SUMMARY:
        own_rows = (row for row in reversed(rows) if row.bench == line.bench and row.figure.startswith(line.figure))
        row = next(own_rows, None)
        medians = row.medians if row else {}
        own, usual = (in_words(medians[way]) if way in medians else UNKNOWN if way else ""
                      for way in (line.own, line.usual))
        yield f"| {line.text} | {own} | {usual}{f' ({line.usual_text})' if line.usual else ''} |"


def script(rows: Sequence[Row]) -> Iterator[str]:
    """What the first run, a run with new images and one with another setting cost, beside a short script."""
    latest = {row.parameters["when"]: row for row in rows if row.bench == "script"}
    yield "| | script | onceclip |"
    yield "| --- | --- | --- |"
    for when, what in (("first", "first run"), ("again", "again, with 20 new images"),
                       ("fit", "again, with another setting")):
        medians = [*latest[when].medians.values()] if when in latest else []
        yield f"| {what} | {' | '.join(map(in_words, medians)) or f'{UNKNOWN} | {UNKNOWN}'} |"
    if "fit" not in latest:
        return
    own = dict(latest["fit"].values["accuracies"])
    untrained = own.pop("zero-shot")
    trained = ", ".join(f"{100 * reached:.1f} % (`{name}`)" for name, reached in own.items())
    yield (f"| test accuracy, mean of five draws | {100 * latest['fit'].values['accuracy_of_the_script']:.1f} % | "
           f"{trained}, {100 * untrained:.1f} % without any training |")


def machines(rows: Sequence[Row]) -> Iterator[str]:
    """What was measured on."""
    for row in {json.dumps([row.machine, row.versions]): row for row in rows}.values():
        at, packages = row.machine, ", ".join(f"{name} {number}" for name, number in row.versions.items())
        yield (f"Machine: {row.processor}, {at['cores']} cores, {at['memory_gib']:g} GiB, {at['system']}, "
               f"{'with a' if at['gpu'] else 'no'} GPU; {packages}.")
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
    """A line per goal, a column per kind of processor."""
    processors = list(dict.fromkeys(row.processor for row in rows)) or ["measured"]
    measured = {name: values([row for row in rows if row.processor == name]) for name in processors}
    yield f"| # | goal | wanted | {' | '.join(processors)} | command |"
    yield f"| --- | --- | --- |{' --- |' * (len(processors) + 1)}"
    for key, goal in GOALS.items():
        cells = " | ".join(_reached(key, measured[name].get(key)) for name in processors)
        yield f"| {key} | {goal.text} | {goal.wanted} | {cells} | `python -m bench {goal.bench}` |"


def _reached(key: str, value: float | None) -> str:
    """A value and whether it reaches its goal, whose number may have been another when the row was written."""
    if value is None:
        return UNKNOWN
    shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{shown}, {'reached' if GOALS[key].reached(value) else '**not reached**'}"


def figures(rows: Sequence[Row]) -> Iterator[str]:
    """A table per bench; a figure of several kinds of processor has a line for each."""
    several = len({row.processor for row in rows}) > 1
    for name, text in BENCHES.items():
        own = sorted((row for row in rows if row.bench == name), key=lambda row: row.key if several else "")
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
            where = f"<br>{row.processor}" if several else ""
            yield f"| {row.figure} ({at}){where} | {ways} | {share} | {further} |"


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
