"""Result rows as pandas frames: a line per run that counts, and the cells of a table of means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from onceclip.adapters.selection.calibration import KINDS
from onceclip.pipeline.errors import ResultError
from onceclip.pipeline.evaluation.evaluate import harmonic_mean
from onceclip.pipeline.evaluation.statistics import Mean, mean_interval
from onceclip.pipeline.reporting.settings import Setting, read_results, settings_of
from onceclip.pipeline.words import listing

SCORES = ("accuracy", "accuracy_new", "harmonic_mean", "top5", "macro_recall", "nll", "brier", "ece", "nll_calibrated",
          "ece_calibrated")
LOWER = frozenset(["nll", "brier", "ece", "nll_calibrated", "ece_calibrated"])  # the less, the better
NATS = frozenset(["nll", "nll_calibrated", "brier"])  # no fractions
_FURTHER = ("accuracy_val", "n_support", "n_val", "n_test", "seconds", "select", "encoder", "text", "run")
_SETS = tuple(f"{name}_{kind}" for kind in KINDS for name in ("coverage", "size"))  # of prediction sets
COLUMNS = ("stores", "shots", "scores")
MEAN = "mean"
_HARMONIC = ("accuracy", "accuracy_new")  # of which the last of the base-to-new scores is made


def results_frame(folders: Sequence[Path]) -> pd.DataFrame:
    """The runs of results folders that count, a line each: store, method, shots, seed, scores and more.

    method: the line of the tables that a sweep prints, so that runs that differ in anything but shots and seed differ
    in it. Of a grid, the setting that is best on validation rows stands for its seed. Failures are left out.
    Raises ResultError if there is no row, or a row is no result of onceclip.
    """
    read = read_results(folders)
    settings = settings_of(read)
    names = _store_names([setting.experiment.store for setting in settings])
    lines = [{"store": names[setting.experiment.store], "method": f"{name}{_apart(setting, settings)}", "shots": shots,
              "seed": seed, **{score: row.get(score) for score in (*SCORES, *_FURTHER)},
              **{f"{name}_{each['kind']}": each[name] for each in row.get("sets", ()) for name in ("coverage", "size")},
              "support": row.get("fingerprints", {}).get("support"),
              "hyperparameters": row.get("hyperparameters", {}), "path": setting.experiment.store,
              "folder": _folder(read.places.get(str(row.get("run"))))}
             for setting in settings for (name, shots), seeds in setting.chosen.items() for seed, row in seeds.items()]
    frame = pd.DataFrame(lines, columns=["store", "method", "shots", "seed", *SCORES, *_SETS, *_FURTHER, "support",
                                         "hyperparameters", "path", "folder"])
    return frame.astype(dict.fromkeys(SCORES, "float64")).dropna(axis="columns", how="all")


def _folder(place: str | None) -> str | None:
    """The results folder of a FILE:N."""
    return None if place is None else str(Path(place.rpartition(":")[0]).parent)


def _store_names(paths: Sequence[str]) -> dict[str, str]:
    """Short names of stores, never empty: that of the file, or the whole path where two have the same."""
    found = Counter(PurePath(path).name for path in dict.fromkeys(paths))
    alone = {path: found[PurePath(path).name] == 1 for path in paths}
    return {path: (PurePath(path).name.removesuffix(".zarr") if alone[path] else path) or path or "?" for path in paths}


def _apart(setting: Setting, settings: Sequence[Setting]) -> str:
    """What tells the runs of a setting from others on the same store."""
    mine = setting.experiment
    same = [each.experiment for each in settings if each.experiment.store == mine.store]
    parts = [f"{name.replace('_', ' ')} {getattr(mine, name)}" for name in ("text", "select", "class_weights")
             if len({getattr(each, name) for each in same}) > 1]
    parts += [mine.draw] * bool(mine.draw and len({each.draw for each in same}) > 1)
    parts += [f"batches ({mine.batches})"] * bool(mine.batches and len({each.batches for each in same}) > 1)
    prints = [each.prints for each in settings if each.experiment == mine]
    parts += [f"content {setting.prints[0][:8]}"] * (len(prints) > 1)
    parts += ["base"] * (mine.base and len({each.base for each in same}) > 1)
    return "".join(f", {part}" for part in parts)


@dataclass(frozen=True)
class Cells:
    """A table of means. lines: (shots, method), shots being None where they are the columns. cells: by line and column.

    score: what is in the cells, by column.
    """

    lines: tuple[tuple[Any, str], ...]
    columns: tuple[Any, ...]
    cells: Mapping[tuple[tuple[Any, str], Any], Mean]
    score: Mapping[Any, str]


def cells_of(frame: pd.DataFrame, columns: str, scores: Sequence[str]) -> Cells:
    """The means of a table. columns: "stores" and their mean, "shots", or "scores"; the two last are means over stores.

    A mean over stores is over those seeds that all stores have, and is left out where a store has none: its interval
    is of the means of seeds. That of harmonic means is the harmonic mean of the means (CoCoOp, CVPR 2022, table 1).
    Raises ResultError if no run has such a score.
    """
    for score in scores:
        if score not in frame or frame[score].isna().all():
            known = [each for each in SCORES if each in frame and frame[each].notna().any()]
            raise ResultError(f"no run has a {score}: there are: {listing(known, 12)}")
    stores = list(dict.fromkeys(frame["store"]))
    methods = list(dict.fromkeys(frame["method"]))
    numbers = sorted(set(frame["shots"]), key=lambda shots: (isinstance(shots, str), shots))
    lines = [(None if columns == "shots" else shots, name)
             for shots in ([None] if columns == "shots" else numbers) for name in methods]
    among = {"stores": [*stores, *[MEAN] * (len(stores) > 1)], "shots": numbers, "scores": list(scores)}[columns]
    found: dict[tuple[tuple[Any, str], Any], Mean] = {}
    groups = {key: part for key, part in frame.groupby(["shots", "method"], sort=False)}
    for line in lines:
        for column in among:
            part = groups.get((column if columns == "shots" else line[0], line[1]))
            some = [column] if columns == "stores" and column != MEAN else stores
            mean = None if part is None else _mean(part, some, column if columns == "scores" else scores[0])
            if mean is not None:
                found[line, column] = mean
    kept = tuple(line for line in lines if any((line, column) in found for column in among))
    return Cells(kept, tuple(among), found, {column: column if columns == "scores" else scores[0] for column in among})


def _mean(part: pd.DataFrame, stores: Sequence[str], score: str) -> Mean | None:
    """Mean over seeds of the means over stores, of runs of one method at one number of shots."""
    names = _HARMONIC if score == "harmonic_mean" else (score,)
    if not set(names) <= set(part.columns):
        return None
    wide = part.pivot_table(index="seed", columns="store", values=list(names))
    if any((name, store) not in wide.columns for name in names for store in stores):
        return None
    seeds = wide[[(name, store) for name in names for store in stores]].dropna()
    if seeds.empty:
        return None
    means = [seeds[name].mean(axis="columns").tolist() for name in names]
    # Draws that are all the same say nothing of other draws.
    drawn = not (part["shots"] == "all").all() and not ("support" in part and len(part) > 1 and
                                                        part.groupby("store")["support"].nunique().max() == 1)
    if score != "harmonic_mean":
        return mean_interval(means[0], drawn)
    of_seeds = mean_interval([harmonic_mean(*pair) or 0.0 for pair in zip(*means, strict=True)], drawn)
    value = harmonic_mean(*(sum(each) / len(each) for each in means))
    return Mean(value or 0.0, of_seeds.half_width, of_seeds.runs)
