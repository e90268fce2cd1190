"""Drawings as SVG by hand: text stays text, colours come from the page's style, and nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from onceclip.pipeline.runs.summary import BASELINE, Table
from onceclip.pipeline.words import shots_of

SERIES = 8  # colours and markers that the style sheet has
_ROW = 24  # height of a line of `dot_plot`


def element(name: str, content: str | Iterable[str] = "", **attributes: object) -> Markup:
    """An SVG element; underscores in names of attributes stand for hyphens, and `class_` for class.

    content: text, which is escaped unless it is markup, or several pieces of markup.
    """
    inner = content if isinstance(content, str) else Markup("").join(content)
    written = Markup("")
    for key, value in attributes.items():
        short = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
        written += Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), short)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, inner)


def figure(width: float, height: float, title: str, description: str, content: Iterable[Markup],
           class_: str = "") -> Markup:
    """A whole drawing with a name and a description for those who do not see it."""
    return element("svg", [element("title", title), element("desc", description), *content],
                   viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=title, class_=f"figure {class_}".strip())


def path(points: Sequence[tuple[float, float]], **attributes: object) -> Markup:
    """A line through points."""
    return element("path", "", d="M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points), **attributes)


def band(low: Sequence[tuple[float, float]], high: Sequence[tuple[float, float]]) -> Markup:
    """The area between two lines; of a single point a stroke from one to the other."""
    if len(low) == 1:
        low, high = ([(points[0][0] + side, points[0][1]) for side in (-3.0, 3.0)] for points in (low, high))
    return element("path", d="M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in [*low, *reversed(high)]) + "Z")


def text(x: float, y: float, words: object, **attributes: object) -> Markup:
    """Words at a place."""
    return element("text", str(words), x=x, y=y, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> Markup:
    """A straight line."""
    return element("line", "", x1=x1, y1=y1, x2=x2, y2=y2, **attributes)


_MARKERS = (
    "M-4,0A4,4 0 1 0 4,0A4,4 0 1 0 -4,0Z",  # disc
    "M-3.6,-3.6H3.6V3.6H-3.6Z",  # square
    "M0,-5L4.6,3.4H-4.6Z",  # triangle
    "M0,-5L5,0L0,5L-5,0Z",  # diamond
    "M0,5L4.6,-3.4H-4.6Z",  # triangle, down
    "M-1.4,-4.4H1.4V-1.4H4.4V1.4H1.4V4.4H-1.4V1.4H-4.4V-1.4H-1.4Z",  # plus
    "M0,-5L4.8,-1.5L3,4.1H-3L-4.8,-1.5Z",  # pentagon
    "M-2,0L-4.4,-2.4L-2.4,-4.4L0,-2L2.4,-4.4L4.4,-2.4L2,0L4.4,2.4L2.4,4.4L0,2L-2.4,4.4L-4.4,2.4Z",  # cross
)


def marker(series: int, x: float, y: float) -> Markup:
    """The sign of a series at a place."""
    return element("path", d=_MARKERS[series % SERIES], transform=f"translate({x:.1f},{y:.1f})", class_="marker")


@dataclass(frozen=True)
class Scale:
    """Maps values to places on an axis. low, high: values at its ends. start, end: places of the ends."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / ((self.high - self.low) or 1.0)

    def ticks(self, number: int = 5) -> list[float]:
        """About so many round values along the axis."""
        raw = (self.high - self.low) / max(number, 1)
        if raw <= 0:
            return [self.low]
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(each * power for each in (1, 2, 5, 10) if each * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(place * step, 10) for place in range(first, math.floor(self.high / step + 1e-9) + 1)]


def grid(y: Scale, values: Sequence[float], left: float, right: float, numbers: float, form: str) -> list[Markup]:
    """Lines across at some values of a scale, and the values, which end at the place `numbers`."""
    return [element("g", [line(left, y(value), right, y(value)) for value in values], class_="grid"),
            *(text(numbers, y(value) + 4, form.format(value), class_="tick", text_anchor="end") for value in values)]


def _form(values: Sequence[float]) -> str:
    """How numbers along an axis are written: without decimals where none has any."""
    return "{:.0f}" if all(value == round(value) for value in values) else "{:.1f}"


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved as little as it takes to lie a gap apart, between two ends."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    result = list(places)
    floor = low
    for index in order:
        result[index] = floor = max(result[index], floor)
        floor += gap
    ceiling = high
    for index in reversed(order):
        result[index] = ceiling = min(result[index], ceiling)
        ceiling -= gap
    return result


def dot_plot(table: Table, names: Sequence[str], width: int) -> Markup:
    """Mean accuracies of lines at the first number of shots, from the first down, with 95 % intervals.

    Zero-shot is a dashed line through all.
    """
    shots = table.shots[0]
    left, bottom = 16 + 7.5 * max(map(len, names)), 10 + _ROW * len(names)
    means = {name: table.accuracy[name, shots] for name in names}
    ends = [100 * (mean.value + sign * (mean.half_width or 0.0)) for mean in means.values() for sign in (-1, 1)]
    room = 0.05 * (max(ends) - min(ends)) or 1.0
    x = Scale(max(min(ends) - room, 0), min(max(ends) + room, 100), left, width - 14)
    ticks = x.ticks(8)
    form = _form(ticks)
    parts = [element("g", [line(x(value), 6, x(value), bottom) for value in ticks], class_="grid"),
             *(text(x(value), bottom + 18, form.format(value), class_="tick", text_anchor="middle") for value in ticks),
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
        self.x: dict[Any, float] = dict(zip(table.shots, map(across, places), strict=True))
        self.y = Scale(*limits, bottom, top)

    def clipped(self, parts: Sequence[Markup]) -> Markup:
        """Lines, of which nothing is seen outside of the axes; a drawing in the drawing needs no name for that."""
        left, top, width, height = self.left - 8, self.top - 8, self.right - self.left + 16, self.bottom - self.top + 8
        return element("svg", parts, x=left, y=top, width=width, height=height,
                       viewBox=f"{left:g} {top:g} {width:g} {height:g}")

    def grid(self, caption: str, ticks: int = 6) -> Markup:
        """Grid lines, numbers along the axes, and what the axes are."""
        values = self.y.ticks(ticks)
        parts = [*grid(self.y, values, self.left, self.right, self.left - 7, _form(values)),
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
        return [(x, self.y(100 * self.table.accuracy[name, number].value)) for number, x in self.x.items()
                if (name, number) in self.table.accuracy]

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
        parts: list[list[tuple[float, float, float]]] = [[]]  # place, and both ends
        for shots, x in self.x.items():
            mean = self.table.accuracy.get((name, shots))
            if mean is not None and mean.half_width is not None:
                low, high = (self.y(100 * (mean.value + sign * mean.half_width)) for sign in (-1, 1))
                parts[-1].append((x, low, high))
            elif mean is not None:
                parts.append([])
        return element("g", [band([(x, low) for x, low, _ in part], [(x, high) for x, _, high in part])
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
