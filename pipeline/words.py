"""Words that several commands use: numbers of things, shares, lists, and names that may be meant as one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_ALIKE = 4  # groups of names that are shown
_FORMULA = ("=", "+", "-", "@")


def counted(number: int, what: str, many: str = "") -> str:
    """A number and what is counted, in the plural but for one. many: the plural, where it is not just with an s."""
    return f"{number:,} {what if number == 1 else many or f'{what}s'}"


def counts(numbers: Mapping[str, int]) -> str:
    """Numbers by name, such as "train 70, val 70, test 50"."""
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items())


def shots_of(number: int | str) -> str:
    """A number of shots, or all of them."""
    return f"{number} {'shot' if number == 1 else 'shots'}"


def percent(value: float | None) -> str:
    """A fraction as per cent, or a dash."""
    return "-" if value is None else f"{100 * value:.2f} %"


def listing(names: Sequence[str], most: int = 8) -> str:
    """The first names, and a sign that there are more."""
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def csv_cell(value: Any) -> Any:
    """A value for a CSV file: text that a spreadsheet would run as a formula has its first sign as %XX, as keys have.

    Numbers stay, also those below zero.
    """
    if isinstance(value, str) and value[:1] in _FORMULA and not re.fullmatch(r"[+-][\d.]+", value):
        return f"%{ord(value[0]):02X}{value[1:]}"
    return value


def alike(names: Iterable[str]) -> list[str]:
    """A remark if some names differ in case or spaces alone, which makes them different classes; else nothing."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found["".join(name.split()).casefold()].append(name)
    slips = [", ".join(map(repr, each)) for each in found.values() if len(each) > 1]
    if not slips:
        return []
    more = " ..." if len(slips) > _ALIKE else ""
    return [f"names that differ in case or spaces alone are different classes: {'; '.join(slips[:_ALIKE])}{more}; if "
            "they are one, give them one name"]
