"""The axes of learning curves and the lines in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from onceclip.pipeline.report.svg import Scale, band, element, line, marker, path, spread, text
from onceclip.pipeline.results import Mean
from onceclip.pipeline.summary import BASELINE, Table


class Plot:
    """Axes of learning curves, and the lines in them.

    limits: per cent at the bottom and at the top. left, top, right, bottom: of the area of the lines.
    """

    def __init__(self, table: Table, limits: tuple[float, float], left: float, top: float, right: float,
                 bottom: float) -> None:
        self.table = table
        self.left, self.top, self.right, self.bottom = left, top, right, bottom
        places = _places(table.shots)
        pad = 0.04 * (places[-1] - places[0]) or 1.0
        across = Scale(places[0] - pad, places[-1] + pad, left, right)
        self.x: dict[Any, float] = {number: across(place)
                                    for number, place in zip(table.shots, places, strict=True)}
        self.y = Scale(*limits, bottom, top)

    def clipped(self, parts: Sequence[Markup]) -> Markup:
        """Lines, of which nothing is seen outside of the axes; a drawing in the drawing needs no name for that."""
        left, top, width, height = self.left - 8, self.top - 8, self.right - self.left + 16, self.bottom - self.top + 8
        return element("svg", parts, x=left, y=top, width=width, height=height,
                       viewBox=f"{left:g} {top:g} {width:g} {height:g}")

    def grid(self, caption: str, ticks: int = 6) -> Markup:
        """Grid lines, numbers along the axes, and what the axes are."""
        values = self.y.ticks(ticks)
        digits = 0 if all(value == round(value) for value in values) else 1
        parts = [element("g", [line(self.left, self.y(value), self.right, self.y(value)) for value in values],
                         class_="grid"),
                 *(text(self.left - 7, self.y(value) + 4, f"{value:.{digits}f}", class_="tick", text_anchor="end")
                   for value in values),
                 *(text(x, self.bottom + 18, number, class_="tick", text_anchor="middle")
                   for number, x in self.x.items())]
        if caption:
            across, up = (self.left + self.right) / 2, (self.top + self.bottom) / 2
            parts += [text(across, self.bottom + 38, caption, class_="axis", text_anchor="middle"),
                      text(12, up, "test accuracy, %", class_="axis", text_anchor="middle",
                           transform=f"rotate(-90 12 {up:.0f})")]
        return element("g", parts)

    def points(self, name: str) -> list[tuple[float, float]]:
        """The places of a line."""
        return [self._point(number, self.table.accuracy[name, number].value) for number in self.table.shots
                if (name, number) in self.table.accuracy]

    def _point(self, number: Any, value: float) -> tuple[float, float]:
        return self.x[number], self.y(100 * value)

    def baseline(self) -> Markup:
        """Zero-shot, dashed."""
        points = self.points(BASELINE)
        if not points:
            return Markup("")
        first, last = points[0], points[-1]
        return path([(self.left, first[1]), *points, (self.right, last[1])], class_="baseline")

    def faint(self, name: str) -> Markup:
        """A line in the background."""
        return path(self.points(name), class_="faint")

    def interval(self, number: int, name: str) -> Markup:
        """The band of a line's intervals; where a single run has none there is a gap."""
        parts: list[list[tuple[Any, Mean]]] = [[]]
        for shots in self.table.shots:
            mean = self.table.accuracy.get((name, shots))
            if mean is not None and mean.half_width is not None:
                parts[-1].append((shots, mean))
            elif mean is not None:
                parts.append([])
        return element("g", [band(*([self._point(shots, mean.value + sign * (mean.half_width or 0.0))
                                     for shots, mean in part] for sign in (-1, 1)))
                             for part in parts if part], class_=f"band s{number}")

    def strong(self, number: int, name: str) -> Markup:
        """A line in its colour with its markers."""
        points = self.points(name)
        return element("g", [element("title", name), path(points, class_="curve"),
                             *(marker(number, *point) for point in points)], class_=f"series s{number}")

    def labels(self, names: Sequence[str]) -> list[Markup]:
        """Names and last values at the right, moved apart, each tied to its line."""
        ends = [(f"s{number}", name, self.points(name)[-1]) for number, name in enumerate(names)]
        if self.points(BASELINE):
            ends.append(("zero", BASELINE, (self.right, self.points(BASELINE)[-1][1])))
        places = spread([min(point[1], self.bottom) for _, _, point in ends], 16, self.top + 4, self.bottom)
        found = []
        for (kind, name, (x, y)), place in zip(ends, places, strict=True):
            last = next(number for number in reversed(self.table.shots) if (name, number) in self.table.accuracy)
            value = f" {100 * self.table.accuracy[name, last].value:.1f}"
            start, bend, end = (x + 5, min(y, self.bottom)), (self.right + 8, place), (self.right + 14, place)
            found += [path([start, bend, end], class_="leader"),
                      element("text", [element("tspan", name), element("tspan", value, class_="value")],
                              x=self.right + 18, y=place + 4, class_=f"label {kind}")]
        return found


def _places(shots: Sequence[Any]) -> list[float]:
    """Where numbers of shots stand: by their logarithm; what is no number a step behind the last."""
    places = [math.log2(max(float(number), 0.5)) for number in shots if not isinstance(number, str)]
    for _ in range(len(shots) - len(places)):
        places.append(places[-1] + 1 if places else 0.0)
    return places
