"""Names of classes that may be meant as one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

_NAMED = 4


def alike(names: Iterable[str]) -> list[str]:
    """A remark if some names differ in case or spaces alone, which makes them different classes; else nothing."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found["".join(name.split()).casefold()].append(name)
    slips = [", ".join(map(repr, each)) for each in found.values() if len(each) > 1]
    if not slips:
        return []
    more = " ..." if len(slips) > _NAMED else ""
    return [f"names that differ in case or spaces alone are different classes: {'; '.join(slips[:_NAMED])}{more}; if "
            "they are one, give them one name"]
