"""One HTML page of classes that arrive: accuracy on all classes seen, session by session."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from onceclip.pipeline.errors import ResultError
from onceclip.pipeline.evaluation.statistics import Mean, mean_interval
from onceclip.pipeline.reporting.drawing import Plot, figure
from onceclip.pipeline.reporting.pages import write_page
from onceclip.pipeline.runs.incremental import NAME, PAGE
from onceclip.pipeline.runs.results import read_lines
from onceclip.pipeline.runs.summary import Table
from onceclip.pipeline.words import shots_of

_WIDTH, _HEIGHT = 960, 440
_DRAWN = 8  # lines in a drawing


def write_incremental_report(folder: Path) -> Path:
    """Draw the rows of a folder's `incremental.jsonl`, one drawing for every store and division into sessions.

    Raises ResultError if it has none.
    """
    rows = read_lines(folder / NAME)
    if not rows:
        raise ResultError(f"{folder} has no {NAME}: `onceclip incremental STORE --out {folder}` writes it")
    settings: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        settings[str(row["store"]), len(row["sessions"]), row["shots"], row["text"]].append(row)
    write_page(folder / PAGE, "incremental.html", title="Classes that arrive", settings=[
        {"title": f"{store}, {sessions} sessions, {shots_of(shots)}, text {text}", "curves": _curves(members),
         "lines": _lines(members)} for (store, sessions, shots, text), members in settings.items()])
    return folder / PAGE


def name_of(row: Mapping[str, Any]) -> str:
    """A line's name: the method, and whether it read the images of all sessions."""
    return f"{row['method']}{' (joint)' if row['joint'] else ''}"


def _curves(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Accuracy on the classes seen, the mean over orders with its interval."""
    found: dict[tuple[str, Any], list[float]] = defaultdict(list)
    for row in rows:
        for seen, accuracy in zip(row["classes_seen"], row["accuracies"], strict=True):
            found[name_of(row), seen].append(accuracy)
    means = {key: mean_interval(values) for key, values in found.items()}
    names = tuple(dict.fromkeys(map(name_of, rows)))[:_DRAWN]
    table = Table("", names, tuple(sorted({seen for _, seen in means})), means, {}, {})
    values = [100 * mean.value + sign * 100 * (mean.half_width or 0.0) for mean in means.values() for sign in (-1, 1)]
    limits = max(min(values) - 2, 0.0), min(max(values) + 2, 100.0)
    right = 66 + 7 * max(map(len, names))
    plot = Plot(table, limits, 54, 12, _WIDTH - right, _HEIGHT - 44)
    numbered = list(enumerate(names))
    lines = plot.clipped([*(plot.interval(number, name) for number, name in numbered),
                          *(plot.strong(number, name) for number, name in numbered)])
    words = "; ".join(f"{name} {100 * means[name, table.shots[-1]].value:.1f} % at the end" for name in names
                      if (name, table.shots[-1]) in means)
    return figure(_WIDTH, _HEIGHT, "Accuracy on all classes seen", f"{words}.",
                  [plot.grid("classes seen"), lines, *plot.labels([name for name in names if name != "zero-shot"])],
                  "curves")


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line of the table for every method."""
    lines = []
    for name in dict.fromkeys(map(name_of, rows)):
        mine = [row for row in rows if name_of(row) == name]
        lost = [row["forgetting"] for row in mine if row["forgetting"] is not None]
        means: dict[str, Mean | None] = {
            "average": mean_interval([row["average_incremental_accuracy"] for row in mine]),
            "last": mean_interval([row["accuracy"] for row in mine]),
            "forgetting": mean_interval(lost) if lost else None}
        lines.append({"name": name, "orders": len(mine), "bytes": max(row["bytes_kept"] for row in mine),
                      "old": mine[0]["reads_old_rows"], **means})
    return lines
