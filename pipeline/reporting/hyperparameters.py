"""Which hyperparameters the runs of a setting used, and how often a search ended at the end of its range."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from onceclip.adapters import METHODS
from onceclip.pipeline.reporting.settings import Row, Setting

_FEW = 3  # of two values one always is an end


@dataclass(frozen=True)
class Chosen:
    """A hyperparameter of a method. cells: by shots, its value and range or share. at_end: share of runs, or None."""

    method: str
    name: str
    cells: dict[Any, tuple[str, str]]
    at_end: float | None
    meaning: str


def chosen_of(setting: Setting) -> list[Chosen]:
    """The hyperparameters that a selection or a grid chose, or that differ between runs, of the rows that count."""
    found = []
    for method, rows in _by_method(setting).items():
        known = METHODS[method].hyperparameters if method in METHODS else {}
        mixing = METHODS[method].mixing if method in METHODS else None
        names = dict.fromkeys(name for row in rows for name in row.get("hyperparameters", {}))
        for name in names:
            values = [row["hyperparameters"][name] for row in rows if name in row.get("hyperparameters", {})]
            tried = _tried(name, [row for row in setting.rows if row["method"] == method],
                           known[name].search if name in known else ())
            searched = name == mixing or bool(tried)
            if not (searched and any(row.get("settings_tried") for row in rows)) and len(set(map(str, values))) < 2:
                continue
            cells = {number: _words([row["hyperparameters"][name] for row in rows if row["shots"] == number
                                     and name in row.get("hyperparameters", {})]) for number in setting.table.shots}
            found.append(Chosen(method, name, cells, _at_end(values, tried),
                                known[name].meaning if name in known else ""))
    return found


def _by_method(setting: Setting) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = defaultdict(list)
    for seeds in setting.chosen.values():
        for row in seeds.values():
            rows[row["method"]].append(row)
    return rows


def _tried(name: str, rows: Sequence[Row], search: Sequence[Any]) -> tuple[Any, ...]:
    """The values among which a hyperparameter was chosen: of a grid, or those of the method's own search."""
    grid = {row["asked"]["values"][name] for row in rows if name in row.get("asked", {}).get("values", {})}
    if grid:
        return tuple(grid) if len(grid) > 1 else ()
    return tuple(search) if any(row.get("settings_tried") for row in rows) else ()


def _at_end(values: Sequence[Any], tried: Sequence[Any]) -> float | None:
    if len(tried) < _FEW or not all(map(_is_number, tried)):
        return None
    ends = (min(tried), max(tried))
    return sum(value in ends for value in values) / len(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _words(values: Sequence[Any]) -> tuple[str, str]:
    """Median and range of numbers, or the most frequent text and how often it was taken."""
    if not values:
        return "–", ""
    if all(map(_is_number, values)):
        low, middle, high = min(values), median(values), max(values)
        return _short(middle), "" if low == high else f"{_short(low)}…{_short(high)}"
    (value, count), *others = Counter(map(str, values)).most_common()
    return value, f"{count} of {len(values)}" if others else ""


def _short(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
