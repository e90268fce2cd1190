"""What many result rows say together: means with intervals, and differences between methods on the same draws."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onceclip.pipeline.runs.results import Mean, mean_interval
from onceclip.pipeline.words import shots_of

BASELINE = "zero-shot"
SCORES = {"accuracy": "base classes", "accuracy_new": "new classes", "harmonic_mean": "harmonic mean of base and new"}
Key = tuple[str, Any]  # name of a line, number of shots


@dataclass(frozen=True)
class Table:
    """All runs on one store with one text and one policy.

    title: which. names: lines in order of appearance. shots: columns. accuracy: means over seeds. to_baseline, to_best:
    mean differences on the same seeds to zero-shot and to the best line of the column; None where there is none.
    failed: number of runs without a result. reasons: why, each with the number of such runs by method.
    short: the fewest training images that a run had where some class has fewer than the shots, and how many it asked
    for, by shots. unserved: lines that have no score of new classes, for they serve none.
    """

    title: str
    names: tuple[str, ...]
    shots: tuple[Any, ...]
    accuracy: dict[Key, Mean]
    to_baseline: dict[Key, Mean]
    to_best: dict[Key, Mean]
    failed: int = 0
    reasons: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    short: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    unserved: tuple[str, ...] = ()


def tables(rows: Iterable[Mapping[str, Any]]) -> list[Table]:
    """One table for each store, text and selection policy; of runs of base classes, three.

    Of runs that differ in hyperparameter values alone and were scored on validation rows, the best there stands for its
    seed; those that were not are lines of their own.
    """
    settings: dict[tuple[str, bool], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        asked = row.get("asked", {})
        settings[f"{row['store']}, text {asked.get('text', row.get('text'))}, "
                 f"selection {asked.get('select') or 'own'}", asked.get("classes") == "base"].append(row)
    made = []
    for (title, halves), members in settings.items():
        scores = [score for score in SCORES if score == "accuracy" or
                  (halves and any(row.get(score) is not None for row in members))]
        made += [_table(f"{title}, {SCORES[score]}" if halves else title, members, score) for score in scores]
    return made


def _table(title: str, rows: Sequence[Mapping[str, Any]], score: str) -> Table:
    chosen = {key: {seed: row[score] for seed, row in seeds.items()} for key, seeds in chosen_rows(rows, score).items()}
    reasons: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        if row["accuracy"] is None:
            reasons[reason_of(row)][str(row["method"])] += 1
    names = tuple(dict.fromkeys(name for name, _ in chosen))
    shots = tuple(sorted({number for _, number in chosen}, key=lambda number: (isinstance(number, str), number)))
    accuracy = {key: mean_interval(list(values.values())) for key, values in chosen.items()}
    best = {number: max((name for name in names if (name, number) in accuracy),
                        key=lambda name, number=number: accuracy[name, number].value) for number in shots}  # type: ignore[misc]
    return Table(title, names, shots, accuracy,
                 _differences(chosen, dict.fromkeys(shots, BASELINE)), _differences(chosen, best),
                 sum(row["accuracy"] is None for row in rows), reasons, _short(rows), _unserved(rows, score))


def _unserved(rows: Iterable[Mapping[str, Any]], score: str) -> tuple[str, ...]:
    if score == "accuracy":
        return ()
    return tuple(dict.fromkeys(line_name(row) for row in rows
                               if row["accuracy"] is not None and row.get("n_test_new") is None))


def _short(rows: Iterable[Mapping[str, Any]]) -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    for row in rows:
        images, asked = row.get("n_support", 0), row["shots"]
        if images and isinstance(asked, int) and images < asked * row["classes"]:
            found[asked] = min(found.get(asked, (images, 0))[0], images), asked * row["classes"]
    return dict(sorted(found.items()))


def reason_of(row: Mapping[str, Any]) -> str:
    """Why a row has no result."""
    return str(row.get("error", row.get("remark", "no test images")))


def chosen_rows(rows: Iterable[Mapping[str, Any]],
                score: str = "accuracy") -> dict[Key, dict[int, Mapping[str, Any]]]:
    """The row that stands for each seed of a line at a number of shots: the best on validation rows. It has a score."""
    chosen: dict[Key, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for row in rows:
        if row["accuracy"] is None or row[score] is None:
            continue
        seeds = chosen[line_name(row), row["shots"]]
        known = seeds.get(row["seed"])
        if known is None or (row["accuracy_val"] or 0.0) > (known["accuracy_val"] or 0.0):
            seeds[row["seed"]] = row
    return dict(chosen)


def line_name(row: Mapping[str, Any]) -> str:
    """The method, with the values that were set where nothing says which of them is best."""
    values = row.get("asked", {}).get("values") or {}
    if not values or row.get("accuracy_val") is not None:
        return str(row["method"])
    return f"{row['method']} {' '.join(f'{name}={value}' for name, value in values.items())}"


def _differences(chosen: Mapping[Key, Mapping[int, float]], to: Mapping[Any, str]) -> dict[Key, Mean]:
    found = {}
    for (name, number), values in chosen.items():
        other = chosen.get((to[number], number), {})
        pairs = [value - other[seed] for seed, value in values.items() if seed in other]
        if pairs and name != to[number]:
            found[name, number] = mean_interval(pairs)
    return found


def short_words(table: Table) -> str:
    """Say at which numbers of shots a draw was smaller than its name."""
    return ("some classes have fewer training images than shots: "
            + ", ".join(f"{had:,} of {asked:,} images at {shots_of(shots)}"
                        for shots, (had, asked) in table.short.items()))


def unserved_words(table: Table) -> str:
    """Say which lines are missing because they serve no new classes."""
    return f"not served: what these learn belongs to their classes: {', '.join(table.unserved)}"


def as_values(table: Table) -> dict[str, Any]:
    """A table as JSON values."""
    def cell(mean: Mean | None) -> dict[str, Any] | None:
        return None if mean is None else {"mean": mean.value, "half_width": mean.half_width, "runs": mean.runs}

    return {"title": table.title, "failed": table.failed, "reasons": table.reasons, "short": table.short,
            "unserved": list(table.unserved), "cells": [
        {"method": name, "shots": number, "accuracy": cell(mean),
         "to_baseline": cell(table.to_baseline.get((name, number))), "to_best": cell(table.to_best.get((name, number)))}
        for (name, number), mean in table.accuracy.items()]}
