"""What many result rows say together: means with intervals, and differences between methods on the same draws."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onceclip.adapters import METHODS
from onceclip.adapters.text import RULES
from onceclip.pipeline.evaluation.metrics import SCORES as METRICS
from onceclip.pipeline.evaluation.statistics import Mean, mean_interval
from onceclip.pipeline.tasks.draw_spec import draw_words
from onceclip.pipeline.words import counted, shots_of

BASELINE = "zero-shot"
SCORES = {"accuracy": "base classes", "accuracy_new": "new classes", "harmonic_mean": "harmonic mean of base and new"}
Key = tuple[str, Any]  # name of a line, number of shots


@dataclass(frozen=True)
class Table:
    """All runs on one store with one text, one kind of class weights and one policy.

    title: which. names: lines in order of appearance. shots: columns. accuracy: means over seeds. to_baseline, to_best:
    mean differences on the same seeds to zero-shot and to the best line of the column; None where there is none.
    reasons: why runs have no result, each with the number of such runs by method.
    short: the fewest training images that a run had where some class has fewer than the shots, and how many it asked
    for, by shots. unserved: lines that have no score of new classes, for they serve none.
    one_draw: shots at which all seeds of a line had the same training images, so that nothing has an interval.
    repeated: rows left out because a later one is of the same line, shots and seed. by_default: lines that had
    hyperparameters to choose, no policy by the user, and no images to choose them on.
    """

    title: str
    names: tuple[str, ...]
    shots: tuple[Any, ...]
    accuracy: dict[Key, Mean]
    to_baseline: dict[Key, Mean]
    to_best: dict[Key, Mean]
    reasons: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    short: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    unserved: tuple[str, ...] = ()
    one_draw: tuple[Any, ...] = ()
    repeated: int = 0
    by_default: tuple[str, ...] = ()

    @property
    def failed(self) -> int:
        """Number of runs without a result."""
        return sum(sum(methods.values()) for methods in self.reasons.values())


def tables(rows: Iterable[Mapping[str, Any]]) -> list[Table]:
    """One table for each store, text, kind of class weights and selection policy; of runs of base classes, three.

    Of runs that differ in hyperparameter values alone and were scored on validation rows, the best there stands for its
    seed; those that were not are lines of their own, and so are other searches and ways of training.
    """
    settings: dict[Experiment, list[Mapping[str, Any]]] = defaultdict(list)
    for row in at_one_place(rows):
        settings[experiment_of(row)].append(row)
    made = []
    for setting, members in settings.items():
        scores = [score for score in SCORES if score == "accuracy" or
                  (setting.base and any(row.get(score) is not None for row in members))]
        title = (f"{setting.store}, text {setting.text}, selection {setting.select}"
                 + (f", class weights {setting.class_weights}" if setting.class_weights != RULES[0] else "")
                 + (f", {setting.draw}" if setting.draw else "")
                 + (f", mean over batches ({setting.batches})" if setting.batches else ""))
        made += [_table(f"{title}, {SCORES[score]}" if setting.base else title, members, score) for score in scores]
    return made


def at_one_place(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows with one path for each content: the last, of a store that was moved or named from another folder."""
    rows = list(rows)
    last = {prints.get("store"): row["store"] for row in rows if (prints := row.get("fingerprints") or {})}
    return [{**row, "store": last[found]} if (found := (row.get("fingerprints") or {}).get("store")) else row
            for row in rows]


def with_alone(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The rows and before them, where test rows were dealt out in batches, those of what each classifier reaches alone
    on the same batches, which no run has: of their scores they have the accuracy only.
    """
    found: dict[Any, Mapping[str, Any]] = {}
    for row in rows:
        if row.get("asked", {}).get("batches") and "alone" in row.get("inference", {}):
            asked = {name: value for name, value in row.get("asked", {}).items() if not name.startswith("inference")}
            alone = {**row, **dict.fromkeys(METRICS), "accuracy": row["inference"]["alone"]["accuracy"], "asked": asked,
                     "inference": {}, "details": None}
            found.setdefault((line_name(alone), row["shots"], row["seed"]), alone)
    return [*found.values(), *rows]


@dataclass(frozen=True)
class Experiment:
    """What the rows of one table share. base: whether they are of base and new classes. draw: what the support is like
    if it is not K images of every class. batches: in words, how test rows were dealt out to a strategy; empty where
    they were not.
    """

    store: str
    text: str
    select: str
    class_weights: str
    base: bool
    draw: str = ""
    batches: str = ""


def experiment_of(row: Mapping[str, Any]) -> Experiment:
    """What a row shares with the others of its table."""
    asked = row.get("asked", {})
    return Experiment(str(row["store"]), str(asked.get("text", row.get("text"))), str(asked.get("select") or "default"),
                      str(asked.get("class_weights") or row.get("class_weights") or RULES[0]),
                      asked.get("classes") == "base", draw_words(asked),
                      ", ".join(f"{name} {_words(value)}" for name, value in (asked.get("batches") or {}).items()
                                if value))


def _words(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _table(title: str, rows: Sequence[Mapping[str, Any]], score: str) -> Table:
    rows = with_alone(rows)
    found = chosen_rows(rows, score)
    chosen = {key: {seed: row[score] for seed, row in seeds.items()} for key, seeds in found.items()}
    alone = {key for key, seeds in found.items() if len(seeds) > 1 and _one_draw(key[1], seeds.values())}
    reasons: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        if row["accuracy"] is None:
            reasons[reason_of(row)][str(row["method"])] += 1
    names = tuple(dict.fromkeys(name for name, _ in chosen))
    shots = tuple(sorted({number for _, number in chosen}, key=lambda number: (isinstance(number, str), number)))
    accuracy = {key: mean_interval(list(values.values()), key not in alone) for key, values in chosen.items()}
    best = {number: max((name for name in names if (name, number) in accuracy),
                        key=lambda name, number=number: accuracy[name, number].value) for number in shots}  # type: ignore[misc]
    scored = sum(row["accuracy"] is not None and row.get(score) is not None and not _in_a_grid(row) for row in rows)
    standing = sum(not _in_a_grid(row) for seeds in found.values() for row in seeds.values())
    unserved = () if score == "accuracy" else tuple(dict.fromkeys(
        line_name(row) for row in rows if row["accuracy"] is not None and row.get("n_test_new") is None))
    return Table(title, names, shots, accuracy, _differences(chosen, dict.fromkeys(shots, BASELINE), alone),
                 _differences(chosen, best, alone), reasons, _short(rows), unserved,
                 one_draw=tuple(number for number in shots if any(key[1] == number for key in alone)),
                 repeated=scored - standing,
                 by_default=tuple(dict.fromkeys(line_name(row) for row in rows if _by_default(row))))


def _by_default(row: Mapping[str, Any]) -> bool:
    """Whether nothing chose the hyperparameters of a run, although its method has some and the user left it open."""
    asked, method = row.get("asked", {}), METHODS.get(str(row["method"]))
    if method is None or row.get("select") != "fixed" or not asked or asked.get("select") is not None:
        return False
    values = asked.get("values") or {}
    given = {*values, *method.presets.get(str(values.get("preset")), ())}
    return any(name not in given and (setting.search or name == method.mixing)
               for name, setting in method.hyperparameters.items())


def _one_draw(shots: Any, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether rows of several seeds were fitted on the same images."""
    prints = {row.get("fingerprints", {}).get("support") for row in rows}
    return shots == "all" or (len(prints) == 1 and None not in prints)


def _short(rows: Iterable[Mapping[str, Any]]) -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    for row in rows:
        images, asked = row.get("n_support", 0), row["shots"]
        classes = row.get("classes") or 0
        if "support_counts" not in row and images and isinstance(asked, int) and images < asked * classes:
            found[asked] = min(found.get(asked, (images, 0))[0], images), asked * classes
    return dict(sorted(found.items()))


def reason_of(row: Mapping[str, Any]) -> str:
    """Why a row has no result."""
    return str(row.get("error", row.get("remark", "no test images")))


def chosen_rows(rows: Iterable[Mapping[str, Any]],
                score: str = "accuracy") -> dict[Key, dict[int, Mapping[str, Any]]]:
    """The row that stands for each seed of a line at a number of shots: it has a score.

    Of a grid that is the best on validation rows, of other runs that were made again the last.
    """
    scored = [row for row in rows if row["accuracy"] is not None and row.get(score) is not None]
    chosen: dict[Key, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for name, row in zip(_told_apart(scored), scored, strict=True):
        seeds = chosen[name, row["shots"]]
        known = seeds.get(row["seed"])
        if known is None or not _in_a_grid(row) or row["accuracy_val"] > (known.get("accuracy_val") or 0.0):
            seeds[row["seed"]] = row
    return dict(chosen)


def _told_apart(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the lines of rows: where two kinds of run have a name, shots and a seed in common, with the kind."""
    kinds: dict[Any, set[tuple[str, ...]]] = defaultdict(set)
    for row in rows:
        kinds[line_name(row), row["shots"], row["seed"]].add(_kind(row))
    varied: dict[str, set[int]] = defaultdict(set)  # places in the kind
    for (name, _, _), found in kinds.items():
        varied[name] |= {place for place, values in enumerate(zip(*found, strict=True)) if len({*values}) > 1}
    return [" ".join([name, *(part for place, part in enumerate(_kind(row)) if part and place in varied[name])])
            for row, name in zip(rows, map(line_name, rows), strict=True)]


def _kind(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What makes another line of a run only where there is one without it: a grid, the device if it is no CPU, the
    bank, by its fingerprint too where two have a name, captions, inputs, and a refit.
    """
    asked, prints = row.get("asked", {}), row.get("fingerprints", {})
    device, grid = str(row.get("device") or "cpu"), _in_a_grid(row) and asked.get("values")
    bank = str(asked.get("bank") or "").rstrip("/").rpartition("/")[2]
    return ("best of its grid" if grid else "", "" if device == "cpu" else f"on {device}",
            f"of bank {bank} {str(prints.get('bank'))[:6]}" if bank else "",
            f"with captions {asked['captions']}" if asked.get("captions") else "",
            f"from {' '.join(map(str, asked['inputs']))}" if asked.get("inputs") else "",
            f"refit on {asked['refit']}" if asked.get("refit") else "")


def _in_a_grid(row: Mapping[str, Any]) -> bool:
    """Whether a run is one of several settings that are compared on validation rows."""
    return row.get("accuracy_val") is not None and (row.get("select") or row.get("asked", {}).get("select")) == "fixed"


def line_name(row: Mapping[str, Any]) -> str:
    """The method, with the values that were set where no grid chose among them, and how it was searched and trained."""
    asked, parts = row.get("asked", {}), [str(row["method"])]
    if not _in_a_grid(row):
        parts += [f"{name}={value}" for name, value in (asked.get("values") or {}).items()]
    if row["method"] != BASELINE:  # which has nothing to search and is not trained
        if (row.get("select") or asked.get("select")) != "fixed":
            parts += [f"search {asked['search']}"] if asked.get("search", "grid") != "grid" else []
            parts += ["narrow"] if asked.get("narrow") else []
        parts += ["stream"] if asked.get("stream") else []
        parts += [str(asked["support"])] if asked.get("support") else []
    return " ".join([*parts, *_strategy(row)])


def _strategy(row: Mapping[str, Any]) -> list[str]:
    """The strategy that read the test rows, with the values that were set, and whether it is transductive."""
    asked, found = row.get("asked", {}), row.get("inference", {})
    name = found.get("name") or asked.get("inference")
    if not name or name == "none":
        return []
    values = [f"{key}={value}" for key, value in (asked.get("inference_values") or {}).items()]
    return ["+", str(name), *values, *(["(transductive)"] if found.get("transductive") else [])]


def _differences(chosen: Mapping[Key, Mapping[int, float]], to: Mapping[Any, str],
                 alone: Collection[Key]) -> dict[Key, Mean]:
    found = {}
    for (name, number), values in chosen.items():
        other = chosen.get((to[number], number), {})
        pairs = [value - other[seed] for seed, value in values.items() if seed in other]
        if pairs and name != to[number]:
            found[name, number] = mean_interval(pairs, (name, number) not in alone)
    return found


def remarks_on(table: Table) -> list[str]:
    """What has to be known of the numbers of a table, a sentence each."""
    found = []
    if table.short:
        images = ", ".join(f"{had:,} of {asked:,} images at {shots_of(shots)}"
                           for shots, (had, asked) in table.short.items())
        found.append(f"some classes have fewer training images than shots: {images}")
    if table.one_draw:
        found.append(f"at {', '.join(map(shots_of, table.one_draw))} all seeds have the same training images: a mean "
                     "over seeds has no interval of draws there")
    if table.repeated:
        found.append(f"{counted(table.repeated, 'row')} left out: of the same line, shots and seed the last counts")
    if table.by_default:
        found.append(f"hyperparameters are defaults, since there were no images to choose them on: "
                     f"{', '.join(table.by_default)}")
    if table.unserved:
        found.append(f"not served: what these learn belongs to their classes: {', '.join(table.unserved)}")
    return found


def as_values(table: Table) -> dict[str, Any]:
    """A table as JSON values."""
    def cell(mean: Mean | None) -> dict[str, Any] | None:
        return None if mean is None else {"mean": mean.value, "half_width": mean.half_width, "runs": mean.runs}

    return {
        "title": table.title, "failed": table.failed, "reasons": table.reasons, "short": table.short,
        "unserved": list(table.unserved), "one_draw": list(table.one_draw), "repeated": table.repeated,
        "by_default": list(table.by_default), "cells": [
            {"method": key[0], "shots": key[1], "accuracy": cell(mean), "to_baseline": cell(table.to_baseline.get(key)),
             "to_best": cell(table.to_best.get(key))} for key, mean in table.accuracy.items()]}
