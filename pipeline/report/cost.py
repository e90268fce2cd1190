"""What accuracy costs: seconds per run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from markupsafe import Markup

from onceclip.pipeline.report.curves import Curves
from onceclip.pipeline.report.reading import Setting
from onceclip.pipeline.report.svg import Scale, element, figure, line, marker, text
from onceclip.pipeline.summary import BASELINE


@dataclass(frozen=True)
class Cost:
    """Median seconds of the runs of a line at the most shots: choosing and fitting, and everything with scoring."""

    name: str
    shots: Any
    accuracy: float
    seconds: float
    total: float | None


def costs_of(setting: Setting) -> list[Cost]:
    """The costs of all lines whose rows have seconds, cheapest first."""
    found = []
    for name in setting.table.names:
        shots = [number for number in setting.table.shots if (name, number) in setting.table.accuracy][-1]
        rows = list(setting.chosen[name, shots].values())
        seconds = [row["seconds"] for row in rows if row.get("seconds")]
        totals = [row["seconds_total"] for row in rows if row.get("seconds_total")]
        if seconds:
            found.append(Cost(name, shots, setting.table.accuracy[name, shots].value, median(seconds),
                              median(totals) if totals else None))
    return sorted(found, key=lambda cost: cost.seconds)


def cost_figure(costs: Sequence[Cost], curves: Curves, width: int, height: int) -> Markup:
    """Accuracy against seconds, which grow by powers of ten; the same signs as in the learning curves."""
    low, high = (math.log10(bound(cost.seconds for cost in costs)) for bound in (min, max))
    x = Scale(math.floor(low), max(math.ceil(high), math.floor(low) + 1), 54, width - 14)
    values = [100 * cost.accuracy for cost in costs]
    room = 0.08 * (max(values) - min(values)) or 1.0
    y = Scale(max(min(values) - room, 0), min(max(values) + room, 100), height - 44, 12)
    powers = range(math.floor(low), int(x.high) + 1)
    ticks = y.ticks(5)
    digits = 0 if all(value == round(value) for value in ticks) else 1
    parts = [
        element("g", [*(line(54, y(value), width - 14, y(value)) for value in ticks),
                      *(line(x(power), 12, x(power), height - 44) for power in powers)], class_="grid"),
        *(text(47, y(value) + 4, f"{value:.{digits}f}", class_="tick", text_anchor="end") for value in ticks),
        *(text(x(power), height - 26, seconds_words(10.0**power), class_="tick", text_anchor="middle")
          for power in powers),
        text((54 + width) / 2, height - 6, "time per run: choosing and fitting", class_="axis", text_anchor="middle"),
        text(12, height / 2 - 16, "test accuracy, %", class_="axis", text_anchor="middle",
             transform=f"rotate(-90 12 {height / 2 - 16:.0f})"),
    ]
    taken: list[tuple[float, float, float]] = []
    strong = {name: number for number, name in enumerate(curves.strong)}
    for cost in sorted(costs, key=lambda each: strong.get(each.name, len(strong) - (each.name == BASELINE))):
        place = x(math.log10(cost.seconds)), y(100 * cost.accuracy)
        words = f"{cost.name}: {100 * cost.accuracy:.1f} % in {seconds_words(cost.seconds)}"
        if cost.name in strong:
            kind, sign = f"s{strong[cost.name]}", marker(strong[cost.name], *place)
        else:
            kind = "zero" if cost.name == BASELINE else "other"
            sign = element("circle", cx=place[0], cy=place[1], r=3.5, class_="dot")
        label = _label(cost.name, place, width, taken) if kind != "other" else None
        parts.append(element("g", [element("title", words), sign, *([label] if label else [])], class_=f"point {kind}"))
    return figure(width, height, "Accuracy against time per run",
                  "; ".join(f"{cost.name} {100 * cost.accuracy:.1f} % in {seconds_words(cost.seconds)}"
                            for cost in costs) + ".", parts, "cost")


def _label(name: str, place: tuple[float, float], width: float, taken: list[tuple[float, float, float]]) -> Markup:
    """A name beside its point, where no other name stands."""
    length = 7.0 * len(name)
    sides = ["start", "end"] if place[0] + length + 20 < width else ["end", "start"]
    for down in (4, 18, -10, 32, -24, 46, -38):
        for side in sides:
            left = place[0] + 9 if side == "start" else place[0] - 9 - length
            spot = (left, left + length, place[1] + down)
            free = all(spot[1] < other[0] or spot[0] > other[1] or abs(spot[2] - other[2]) > 13 for other in taken)
            if free and left > 54 and spot[1] < width:
                taken.append(spot)
                return text(place[0] + (9 if side == "start" else -9), spot[2], name, class_="label", text_anchor=side)
    return text(place[0], place[1] - 9, name, class_="label", text_anchor="middle")


def seconds_words(seconds: float) -> str:
    """A duration in a unit that suits it."""
    if seconds < 1e-3:
        return f"{1e6 * seconds:.3g} µs"
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 60:.3g} min"
