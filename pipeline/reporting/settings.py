"""The settings of results folders (the runs that one table compares), and what their rows say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from onceclip.pipeline.errors import ResultError
from onceclip.pipeline.evaluation.statistics import Mean
from onceclip.pipeline.runs.incremental import NAME as INCREMENTAL
from onceclip.pipeline.runs.incremental import PAGE
from onceclip.pipeline.runs.keep import read_curves
from onceclip.pipeline.runs.results import NAME, read_rows, read_stores
from onceclip.pipeline.runs.summary import (
    Experiment,
    Key,
    Table,
    at_one_place,
    chosen_rows,
    experiment_of,
    line_name,
    reason_of,
    tables,
    with_alone,
)
from onceclip.pipeline.words import shots_of

Row = Mapping[str, Any]
_NEEDED = ("method", "shots", "seed", "accuracy", "store")
_TITLES = {"text": "text {}", "select": "selection {}", "class_weights": "class weights {}", "draw": "draw {}",
           "batches": "batches of {}"}


@dataclass(frozen=True)
class Results:
    """What results folders hold. rows: each run once. places: FILE:N of a run. stores: descriptions by fingerprint.

    curves: of trainings, by run.
    """

    folders: tuple[str, ...]
    rows: tuple[Row, ...]
    places: Mapping[str, str]
    stores: Mapping[str, Mapping[str, Any]]
    curves: Mapping[str, Mapping[str, Any]]

    def called(self, names: Sequence[str]) -> Results:
        """The same with other names of the folders, one for each."""
        shown = {f"{folder}/": f"{name.rstrip('/')}/" for folder, name in zip(self.folders, names, strict=True)}
        return replace(self, folders=tuple(names), places={run: next(
            (name + place.removeprefix(folder) for folder, name in shown.items() if place.startswith(folder)), place)
            for run, place in self.places.items()})


@dataclass(frozen=True)
class Setting:
    """Runs on one store with one text, one kind of class weights and one policy.

    experiment: what they share. prints: fingerprints of the store's content and of the text; empty where no row says
    them. tables: their summaries, of accuracy first.
    rows: of all runs. chosen: the row that stands for a seed, by the names and shots of the first table.
    store: its description in `stores.json`; empty where that is missing.
    """

    experiment: Experiment
    prints: tuple[str, str]
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

    def last(self, name: str) -> tuple[Any, list[Row]]:
        """The most shots at which a line has a result, and its chosen rows there."""
        shots = [number for number in self.table.shots if (name, number) in self.table.accuracy][-1]
        return shots, list(self.chosen[name, shots].values())


def read_results(folders: Sequence[Path]) -> Results:
    """Read results folders; of a run that stands in several rows the last with a result counts, once per device.

    Raises ResultError if there is no row, or a row is no result of onceclip.
    """
    found: dict[str, dict[str, tuple[Row, str]]] = defaultdict(dict)  # by run and device
    stores: dict[str, Mapping[str, Any]] = {}
    curves: dict[str, Mapping[str, Any]] = {}
    for given in folders:
        folder = given.parent if given.name == NAME else given
        rows = read_rows(folder)
        if not rows and (folder / INCREMENTAL).is_file():
            raise ResultError(f"{given} holds rows of classes that arrive, which have a page of their own: "
                              f"{folder / PAGE}, which `onceclip incremental --out` writes")
        if not rows:
            raise ResultError(f"{given} holds no result rows (no {NAME} with a row in it): give the folder that "
                              "`onceclip sweep --out` wrote")
        for number, row in enumerate(rows, 1):
            needed = _NEEDED if row.get("accuracy") is None else (*_NEEDED, "accuracy_val")
            missing = [name for name in needed if name not in row]
            if missing:
                raise ResultError(f"{folder / NAME}: row {number} has no {missing[0]!r}: it is no result of onceclip; "
                                  "take it out, or give another folder")
            same = found[str(row.get("run") or f"{folder}:{number}")]
            if "error" in row and any("error" not in other for other, _ in same.values()):
                continue
            for device in [device for device, (other, _) in same.items() if "error" in other]:
                del same[device]
            same[str(row.get("device"))] = row, f"{folder / NAME}:{number}"
        stores |= read_stores(folder)
        curves |= read_curves(folder)
    return Results(tuple(map(str, folders)), tuple(row for same in found.values() for row, _ in same.values()),
                   {run: place for run, same in found.items() for _, place in same.values()}, stores, curves)


def settings_of(results: Results) -> list[Setting]:
    """The settings of the rows, in order of appearance.

    A store or a text set that was made again under its name has other test images or prompts: a setting of its own.
    """
    groups: dict[Experiment, dict[tuple[str, str], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in at_one_place(results.rows):
        prints = row.get("fingerprints", {})
        groups[experiment_of(row)][str(prints.get("store") or ""), str(prints.get("text") or "")].append(row)
    for contents in groups.values():
        # Rows of failures may have no fingerprints: they stand with those of the last content.
        unknown = contents.pop(("", ""), [])
        contents[next(reversed(contents), ("", ""))].extend(unknown)
    return [Setting(experiment, prints, tuple(tables(rows)), tuple(rows), chosen_rows(with_alone(rows)),
                    next((found for row in rows if (found := results.stores.get(
                        row.get("fingerprints", {}).get("store", "")))), {}))
            for experiment, contents in groups.items() for prints, rows in contents.items() if rows]


@dataclass(frozen=True)
class Best:
    """The best line at a number of shots. to_baseline: None for zero-shot itself. ties: lines not told apart."""

    shots: Any
    name: str
    accuracy: Mean
    to_baseline: Mean | None
    ties: tuple[str, ...]


def best_of(table: Table) -> list[Best]:
    """The best line of every column."""
    found = []
    for number in table.shots:
        names = [name for name in table.names if (name, number) in table.accuracy]
        best = max(names, key=lambda name: table.accuracy[name, number].value)
        ties = tuple(name for name in names if name != best and is_tie(table.to_best.get((name, number))))
        found.append(Best(number, best, table.accuracy[best, number], table.to_baseline.get((best, number)), ties))
    return found


def is_tie(to_best: Mean | None) -> bool:
    """Whether a paired difference to the best has an interval that includes 0."""
    return to_best is not None and to_best.half_width is not None and to_best.value + to_best.half_width >= 0


def sign_of(difference: Mean | None) -> str:
    """"better" or "worse" where the interval of a difference leaves out 0, else nothing."""
    if difference is None or difference.half_width is None or abs(difference.value) <= difference.half_width:
        return ""
    return "better" if difference.value > 0 else "worse"


def titles(settings: Sequence[Setting]) -> list[str]:
    """A short name for every setting, which says no more than it takes to tell them apart."""
    keys = [setting.experiment for setting in settings]
    paths = {key.store for key in keys}
    found = []
    for key, setting in zip(keys, settings, strict=True):
        name = PurePath(key.store).name
        same = [each.prints for each in settings
                if (each.experiment.store, each.experiment.text) == (key.store, key.text)]
        found.append(", ".join([
            key.store if sum(PurePath(path).name == name for path in paths) > 1 else name,
            *differences(key, keys, _TITLES, "balanced"),
            *(f"{what} {own[:8]}" for what, own, *all_of_it in zip(("content", "prompts"), setting.prints, *same,
                                                                   strict=True) if len(set(all_of_it)) > 1),
            *["base to new classes"] * key.base]))
    return found


def differences(key: Experiment, keys: Collection[Experiment], words: Mapping[str, str], draw: str = "") -> list[str]:
    """What tells an experiment from others. words: a form for each of the fields that count. draw: for a plain one."""
    named = replace(key, draw=key.draw or draw)
    return [form.format(getattr(named, name)) for name, form in words.items()
            if getattr(named, name) and len({getattr(each, name) for each in keys}) > 1]


def mean_over_stores(settings: Sequence[Setting]) -> list[tuple[str, Table]]:
    """Titles and tables of means over stores, for settings that several stores have alike.

    A line has a cell where every store has it, for the seeds that all have; its interval is of the means of seeds.
    A store that was made again counts once, as it was last.
    """
    alike: dict[Experiment, dict[str, Setting]] = defaultdict(dict)
    for setting in settings:
        alike[replace(setting.experiment, store="")][setting.experiment.store] = setting
    groups = {key: list(members.values()) for key, members in alike.items() if len(members) > 1}
    return [(", ".join([f"mean over {len(members)} stores", *differences(key, groups, _TITLES, "balanced"),
                        *["base classes"] * key.base]), _mean(members)) for key, members in groups.items()]


def _mean(settings: Sequence[Setting]) -> Table:
    where: dict[tuple[str, Any, int], list[float]] = defaultdict(list)
    for setting in settings:
        for (name, shots), seeds in setting.chosen.items():
            for seed, row in seeds.items():
                where[name, shots, seed].append(row["accuracy"])
    rows = [{"method": name, "shots": shots, "seed": seed, "accuracy": sum(values) / len(values), "accuracy_val": None,
             "store": "mean", "text": ""}
            for (name, shots, seed), values in where.items() if len(values) == len(settings)]
    return next(iter(tables(rows)), Table("", (), (), {}, {}, {}))


def failures(rows: Iterable[Row]) -> list[tuple[str, str, list[str]]]:
    """Runs without a result by method and reason, each with its shots and seeds."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        if row["accuracy"] is None:
            found[line_name(row), reason_of(row)].append(f"{shots_of(row['shots'])}, seed {row['seed']}")
    return [(name, reason, runs) for (name, reason), runs in found.items()]


def policies(rows: Iterable[Row]) -> Mapping[str, list[str]]:
    """The methods whose runs were selected in each way."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        if row.get("select"):
            found[row["select"]][row["method"]] = None
    return {policy: list(methods) for policy, methods in found.items()}


def in_order(values: Iterable[Any]) -> list[Any]:
    """Each of some values once, numbers before texts: numbers of shots, then "all"."""
    return sorted(set(values), key=lambda value: (isinstance(value, str), value))
