"""Accuracies at a single number of shots: a row per method, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from onceclip.pipeline.counting import shots_of
from onceclip.pipeline.report.svg import SERIES, Scale, element, figure, line, marker, text
from onceclip.pipeline.summary import BASELINE, Table

_ROW = 24


def dot_plot(table: Table, names: Sequence[str], shots: Any, width: int) -> Markup:
    """Mean accuracies of lines, from the first down, with 95 % intervals; zero-shot as a dashed line through all."""
    left, bottom = 16 + 7.5 * max(map(len, names)), 10 + _ROW * len(names)
    means = {name: table.accuracy[name, shots] for name in names}
    ends = [100 * (mean.value + sign * (mean.half_width or 0.0)) for mean in means.values() for sign in (-1, 1)]
    room = 0.05 * (max(ends) - min(ends)) or 1.0
    x = Scale(max(min(ends) - room, 0), min(max(ends) + room, 100), left, width - 14)
    ticks = x.ticks(8 if width > 500 else 4)
    digits = 0 if all(value == round(value) for value in ticks) else 1
    parts = [element("g", [line(x(value), 6, x(value), bottom) for value in ticks], class_="grid"),
             *(text(x(value), bottom + 18, f"{value:.{digits}f}", class_="tick", text_anchor="middle")
               for value in ticks),
             text((left + width) / 2, bottom + 38, f"test accuracy at {shots_of(shots)}, %", class_="axis",
                  text_anchor="middle")]
    if BASELINE in means:
        place = x(100 * means[BASELINE].value)
        parts.append(line(place, 6, place, bottom, class_="baseline"))
    strong = [name for name in names if name != BASELINE]
    for row, (name, mean) in enumerate(means.items()):
        y, number = 18.0 + _ROW * row, strong.index(name) if name in strong else SERIES
        kind = f"s{number}" if number < SERIES else "zero"
        half = mean.half_width or 0.0
        parts.append(element("g", [
            element("title", f"{name}: {100 * mean.value:.1f} %"),
            text(left - 8, y + 4, name, class_="label", text_anchor="end"),
            line(x(100 * (mean.value - half)), y, x(100 * (mean.value + half)), y, class_="curve"),
            marker(number, x(100 * mean.value), y)], class_=kind))
    words = "; ".join(f"{name} {100 * mean.value:.1f} %" for name, mean in means.items())
    return figure(width, bottom + 44, f"Test accuracy at {shots_of(shots)}", f"{words}.", parts, "dots")
