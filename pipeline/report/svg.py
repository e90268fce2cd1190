"""Drawing SVG by hand: text stays text, colours come from the page's style, and nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

SERIES = 8  # colours and markers that the style sheet has


def element(name: str, content: str | Iterable[str] = "", **attributes: object) -> Markup:
    """An SVG element; underscores in names of attributes stand for hyphens, and `class_` for class.

    content: text, which is escaped unless it is markup, or several pieces of markup.
    """
    inner = content if isinstance(content, str) else Markup("").join(content)
    written = Markup("").join(Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _short(value))
                              for key, value in attributes.items() if value is not None)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, inner)


def _short(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def figure(width: float, height: float, title: str, description: str, content: Iterable[Markup],
           class_: str = "") -> Markup:
    """A whole drawing with a name and a description for those who do not see it."""
    return element("svg", [element("title", title), element("desc", description), *content],
                   viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=title, class_=f"figure {class_}".strip())


def path(points: Sequence[tuple[float, float]], **attributes: object) -> Markup:
    """A line through points."""
    return element("path", "", d="M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points), **attributes)


def band(low: Sequence[tuple[float, float]], high: Sequence[tuple[float, float]], **attributes: object) -> Markup:
    """The area between two lines; of a single point a stroke from one to the other."""
    points = [*low, *reversed(high)]
    if len(low) == 1:
        (x, y), half = low[0], 3.0
        points = [(x - half, y), (x + half, y), (x + half, high[0][1]), (x - half, high[0][1])]
    return element("path", "", d="M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points) + "Z", **attributes)


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


def swatch(series: int) -> Markup:
    """The sign of a series, for a legend in the text."""
    return element("svg", [line(0, 6, 22, 6, class_="curve"), marker(series, 11, 6)], viewBox="0 0 22 12",
                   class_=f"swatch s{series % SERIES}", aria_hidden="true")


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
