"""The hyperparameters of the runs of a setting: which were chosen, and the accuracy against those that differ."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log10
from operator import itemgetter
from statistics import fmean, median
from typing import Any

from markupsafe import Markup

from onceclip.adapters import METHODS
from onceclip.pipeline.evaluation.statistics import Mean, mean_interval
from onceclip.pipeline.reporting.drawing import SERIES, Scale, element, figure, grid, marker, path, text
from onceclip.pipeline.reporting.settings import Row, Setting, in_order
from onceclip.pipeline.words import shots_of

_FEW = 3  # of two values one always is an end
_WIDTH, _HEIGHT = 420, 240


def chosen_of(setting: Setting) -> list[dict[str, Any]]:
    """The hyperparameters that a selection or a grid chose, or that differ between runs, of the rows that count.

    Each has cells by shots, with the value and its range or share, and the share of runs at an end of its search.
    """
    found = []
    counted = [row for seeds in setting.chosen.values() for row in seeds.values()]
    for method, rows in _by_method(counted).items():
        known = METHODS[method].hyperparameters if method in METHODS else {}
        mixing = METHODS[method].mixing if method in METHODS else None
        searched = any(row.get("settings_tried") for row in rows)
        for name in dict.fromkeys(name for row in rows for name in row.get("hyperparameters", {})):
            having = [row for row in rows if name in row.get("hyperparameters", {})]
            values = [row["hyperparameters"][name] for row in having]
            tried = _tried(name, [row for row in setting.rows if row["method"] == method],
                           known[name].search if name in known else ())
            if (searched and (name == mixing or tried)) or len(set(map(str, values))) > 1:
                cells = {number: _words([row["hyperparameters"][name] for row in having if row["shots"] == number])
                         for number in setting.table.shots}
                found.append({"method": method, "name": name, "cells": cells, "at_end": _at_end(values, tried),
                              "meaning": known[name].meaning if name in known else ""})
    return found


def _by_method(rows: Iterable[Row], name: Callable[[Row], str] = itemgetter("method")) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[name(row)].append(row)
    return found


def _with_strategy(row: Row) -> str:
    """The method, and the strategy that read the test rows, if one did."""
    return " + ".join([row["method"], *filter(None, [row.get("inference", {}).get("name")])])


def _tried(name: str, rows: Sequence[Row], search: Sequence[Any]) -> Sequence[Any]:
    """The values among which a hyperparameter was chosen: of a grid, or those of the method's own search."""
    grid = {_key(row["asked"]["values"][name]) for row in rows if name in row.get("asked", {}).get("values", {})}
    if grid:
        return tuple(grid) if len(grid) > 1 else ()
    return search if any(row.get("settings_tried") for row in rows) else ()


def _at_end(values: Sequence[Any], tried: Sequence[Any]) -> float | None:
    """The share of values that are the smallest or the largest of those tried; None where few were, or texts."""
    if len(tried) < _FEW or not all(map(_is_number, tried)):
        return None
    return fmean(value in (min(tried), max(tried)) for value in values)


def _words(values: Sequence[Any]) -> tuple[str, str]:
    """Median and range of numbers, or the most frequent text and how often it was taken."""
    if not values:
        return "–", ""
    if all(map(_is_number, values)):
        low, middle, high = (f"{each:,.0f}" if 1000 <= abs(each) < 1e6 else f"{each:.3g}"
                             for each in (min(values), median(values), max(values)))
        return middle, "" if min(values) == max(values) else f"{low}…{high}"
    (value, count), *others = Counter(map(str, values)).most_common()
    return value, f"{count} of {len(values)}" if others else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Ablation:
    """A hyperparameter that runs of a method differ in. values: in order. cells: mean over seeds by value and shots.

    others: names of hyperparameters that differ too, over which each cell is a mean.
    """

    method: str
    name: str
    values: tuple[Any, ...]
    shots: tuple[Any, ...]
    cells: Mapping[tuple[Any, Any], Mean]
    others: tuple[str, ...]

    @property
    def drawing(self) -> Markup:
        """A line per number of shots; values that span more than a decade stand by their logarithm."""
        ends = [100 * mean.value for mean in self.cells.values()]
        room = 0.08 * (max(ends) - min(ends)) or 1.0
        places = _places(self.values)
        x = Scale(places[0], places[-1], 58, _WIDTH - 84)
        y = Scale(max(min(ends) - room, 0), min(max(ends) + room, 100), _HEIGHT - 46, 14)
        names = {value: value if isinstance(value, str) else f"{value:.3g}" for value in self.values}
        parts = [
            *grid(y, y.ticks(5), x.start, x.end, 52, "{:g}"),
            *(text(x(place), _HEIGHT - 28, names[value], class_="tick", text_anchor="middle")
              for value, place in zip(self.values, places, strict=True)),
            text((x.start + x.end) / 2, _HEIGHT - 8, self.name, class_="axis", text_anchor="middle")]
        for number, shots in enumerate(self.shots):
            points = [(x(place), y(100 * self.cells[value, shots].value))
                      for value, place in zip(self.values, places, strict=True) if (value, shots) in self.cells]
            parts.append(element("g", [path(points, class_="curve"),
                                       *(marker(number, *point) for point in points),
                                       text(points[-1][0] + 9, points[-1][1] + 4, shots_of(shots), class_="label")],
                                 class_=f"series s{number % SERIES}"))
        words = "; ".join(f"{names[value]} at {shots_of(shots)}: {100 * mean.value:.1f} %"
                          for (value, shots), mean in self.cells.items())
        return figure(_WIDTH, _HEIGHT, f"{self.method} by {self.name}", f"{words}.", parts, "ablation")


def ablations_of(setting: Setting) -> list[Ablation]:
    """All hyperparameters in which runs of a method differ by what was asked for, of rows that have an accuracy."""
    found = []
    scored = (row for row in setting.rows if row["accuracy"] is not None and row.get("asked", {}).get("values"))
    for method, rows in _by_method(scored, _with_strategy).items():
        asked = [row["asked"]["values"] for row in rows]
        names = [name for name in dict.fromkeys(name for each in asked for name in each)
                 if len({_key(each[name]) for each in asked if name in each}) > 1]
        for name in names:
            seeds: dict[tuple[Any, Any], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
            for row, given in zip(rows, asked, strict=True):
                if name in given:
                    seeds[_key(given[name]), row["shots"]][row["seed"]].append(row["accuracy"])
            cells = {key: mean_interval([sum(each) / len(each) for each in by_seed.values()], key[1] != "all")
                     for key, by_seed in seeds.items()}
            values, shots = (tuple(in_order(each)) for each in zip(*cells, strict=True))
            found.append(Ablation(method, name, values, shots, cells, tuple(each for each in names if each != name)))
    return found


def _key(value: Any) -> Any:
    """A value that can be a key of a dict and sorted: numbers stay, anything else is text."""
    return value if _is_number(value) else str(value)


def _places(values: tuple[Any, ...]) -> list[float]:
    """Where values stand on an axis."""
    if any(isinstance(value, str) for value in values):
        return [float(number) for number in range(len(values))]
    if min(values) > 0 and max(values) >= 10 * min(values):
        return [log10(value) for value in values]
    return [float(value) for value in values]
