"""Accuracy against a hyperparameter that the runs of a sweep differ in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import log10
from typing import Any

from markupsafe import Markup

from onceclip.pipeline.evaluation.statistics import Mean, mean_interval
from onceclip.pipeline.reporting.drawing import SERIES, Scale, element, figure, line, marker, path, text
from onceclip.pipeline.reporting.settings import Setting
from onceclip.pipeline.words import shots_of

_WIDTH, _HEIGHT = 420, 240


@dataclass(frozen=True)
class Ablation:
    """One hyperparameter of a method. values: in order. cells: mean over seeds by value and shots.

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
        ticks = y.ticks(5)
        parts = [
            element("g", [line(x.start, y(value), x.end, y(value)) for value in ticks], class_="grid"),
            *(text(52, y(value) + 4, f"{value:g}", class_="tick", text_anchor="end") for value in ticks),
            *(text(x(place), _HEIGHT - 28, _short(value), class_="tick", text_anchor="middle")
              for value, place in zip(self.values, places, strict=True)),
            text((x.start + x.end) / 2, _HEIGHT - 8, self.name, class_="axis", text_anchor="middle")]
        for number, shots in enumerate(self.shots):
            points = [(x(place), y(100 * self.cells[value, shots].value))
                      for value, place in zip(self.values, places, strict=True) if (value, shots) in self.cells]
            parts.append(element("g", [path(points, class_="curve"),
                                       *(marker(number, *point) for point in points),
                                       text(points[-1][0] + 9, points[-1][1] + 4, shots_of(shots), class_="label")],
                                 class_=f"series s{number % SERIES}"))
        words = "; ".join(f"{_short(value)} at {shots_of(shots)}: {100 * mean.value:.1f} %"
                          for (value, shots), mean in self.cells.items())
        return figure(_WIDTH, _HEIGHT, f"{self.method} by {self.name}", f"{words}.", parts, "ablation")


def ablations_of(setting: Setting) -> list[Ablation]:
    """All hyperparameters in which runs of a method differ by what was asked for, of rows that have an accuracy."""
    of_method: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in setting.rows:
        if row["accuracy"] is not None and row.get("asked", {}).get("values"):
            of_method[row["method"]].append(row)
    found = []
    for method, rows in of_method.items():
        asked = [row["asked"]["values"] for row in rows]
        names = [name for name in dict.fromkeys(name for each in asked for name in each)
                 if len({_key(each[name]) for each in asked if name in each}) > 1]
        for name in names:
            seeds: dict[tuple[Any, Any], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
            for row in rows:
                if name in row["asked"]["values"]:
                    value = _key(row["asked"]["values"][name])
                    seeds[value, row["shots"]][row["seed"]].append(row["accuracy"])
            cells = {key: mean_interval([sum(each) / len(each) for each in by_seed.values()], key[1] != "all")
                     for key, by_seed in seeds.items()}
            found.append(Ablation(method, name, tuple(sorted({value for value, _ in cells}, key=_order)),
                                  tuple(sorted({shots for _, shots in cells}, key=_order)), cells,
                                  tuple(other for other in names if other != name)))
    return found


def _key(value: Any) -> Any:
    """A value that can be a key of a dict and sorted: numbers stay, anything else is text."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _order(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value


def _places(values: tuple[Any, ...]) -> list[float]:
    if any(isinstance(value, str) for value in values):
        return [float(number) for number in range(len(values))]
    if min(values) > 0 and max(values) >= 10 * min(values):
        return [log10(value) for value in values]
    return [float(value) for value in values]


def _short(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"
