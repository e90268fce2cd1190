"""The rows of results folders, gathered into settings: runs on one content of a store with one text and one policy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onceclip.pipeline.errors import ResultError
from onceclip.pipeline.results import NAME, read_rows
from onceclip.pipeline.stores_file import read_stores
from onceclip.pipeline.summary import Key, Table, chosen_rows, tables

Row = Mapping[str, Any]
_NEEDED = ("method", "shots", "seed", "accuracy", "store")


@dataclass(frozen=True)
class Results:
    """What results folders hold. rows: each run once. places: FILE:N of a run. stores: descriptions by fingerprint."""

    folders: tuple[Path, ...]
    rows: tuple[Row, ...]
    places: Mapping[str, str]
    stores: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Setting:
    """Runs on one store with one text and one policy.

    prints: fingerprints of the store's content and of the text; empty where no row says them.
    base: whether they are of base and new classes. tables: their summaries, of accuracy first.
    rows: of all runs. chosen: the row that stands for a seed, by the names and shots of the first table.
    store: its description in `stores.json`; empty where that is missing.
    """

    prints: tuple[str, str]
    base: bool
    tables: tuple[Table, ...]
    rows: tuple[Row, ...]
    chosen: Mapping[Key, Mapping[int, Row]]
    store: Mapping[str, Any]

    @property
    def table(self) -> Table:
        """The summary of accuracy."""
        return self.tables[0]

    def details(self, name: str, shots: Any) -> list[Mapping[str, Any]]:
        """The details of the chosen rows of a line at a number of shots, as far as they have any."""
        return [row["details"] for row in self.chosen.get((name, shots), {}).values() if row.get("details")]


def read_results(folders: Sequence[Path]) -> Results:
    """Read results folders; of a run that stands in several rows the last with a result counts.

    Raises ResultError if there is no row, or a row is no result.
    """
    rows: dict[str, Row] = {}
    places: dict[str, str] = {}
    stores: dict[str, Mapping[str, Any]] = {}
    for given in folders:
        folder = given.parent if given.name == NAME else given
        found = read_rows(folder)
        if not found:
            raise ResultError(f"{given} holds no result rows (no {NAME} with a row in it): give the folder that "
                              "`onceclip sweep --out` wrote")
        for number, row in enumerate(found, 1):
            needed = _NEEDED if row.get("accuracy") is None else (*_NEEDED, "accuracy_val")
            missing = [name for name in needed if name not in row]
            if missing:
                raise ResultError(f"{folder / NAME}: row {number} has no {missing[0]!r}: it is no result of onceclip; "
                                  "take it out, or give another folder")
            run = str(row.get("run") or f"{folder}:{number}")
            if run not in rows or "error" not in row:
                rows[run], places[run] = row, f"{folder / NAME}:{number}"
        stores |= read_stores(folder)
    return Results(tuple(folders), tuple(rows.values()), places, stores)


def settings_of(results: Results) -> list[Setting]:
    """The settings of the rows, in order of appearance.

    A store or a text set that was made again under its name has other test images or prompts: a setting of its own.
    """
    groups: dict[Any, dict[tuple[str, str], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in results.rows:
        asked, prints = row.get("asked", {}), row.get("fingerprints", {})
        key = row["store"], asked.get("text", row.get("text")), asked.get("select"), asked.get("classes") == "base"
        groups[key][str(prints.get("store") or ""), str(prints.get("text") or "")].append(row)
    for contents in groups.values():
        # Rows of failures may have no fingerprints: they stand with those of the last content.
        unknown = contents.pop(("", ""), [])
        contents[next(reversed(contents), ("", ""))].extend(unknown)
    return [Setting(prints, base, tuple(tables(rows)), tuple(rows), chosen_rows(rows), _store(rows, results.stores))
            for (*_, base), contents in groups.items() for prints, rows in contents.items() if rows]


def _store(rows: Iterable[Row], stores: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    for row in rows:
        found = stores.get(row.get("fingerprints", {}).get("store", ""))
        if found:
            return found
    return {}
