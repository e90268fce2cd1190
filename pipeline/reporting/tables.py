"""Result rows as a pandas frame, and as a table of means in LaTeX, CSV, Markdown or HTML."""

from __future__ import annotations

import csv
import html
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from onceclip.adapters.selection.calibration import KINDS
from onceclip.pipeline.errors import ResultError
from onceclip.pipeline.evaluation.evaluate import harmonic_mean
from onceclip.pipeline.evaluation.statistics import Mean, mean_interval
from onceclip.pipeline.reporting.settings import Setting, differences, in_order, read_results, settings_of
from onceclip.pipeline.words import csv_cell, listing, shots_of

SCORES = ("accuracy", "accuracy_new", "harmonic_mean", "top5", "macro_recall", "nll", "brier", "ece", "nll_calibrated",
          "ece_calibrated")
LOWER = frozenset(["nll", "brier", "ece", "nll_calibrated", "ece_calibrated"])  # the less, the better
COLUMNS = ("stores", "shots", "scores")
_NATS = frozenset(["nll", "nll_calibrated", "brier"])  # no fractions
_FURTHER = ("accuracy_val", "n_support", "n_val", "n_test", "seconds", "select", "encoder", "text", "run")
_SETS = tuple(f"{name}_{kind}" for kind in KINDS for name in ("coverage", "size"))  # of prediction sets
_MEAN = "mean"
_HARMONIC = ("accuracy", "accuracy_new")  # of which the last of the base-to-new scores is made
_APART = {"text": "text {}", "select": "select {}", "class_weights": "class weights {}", "draw": "{}",
          "batches": "batches ({})"}


def results_frame(folders: Sequence[Path], contents: str = "method") -> pd.DataFrame:
    """The runs of results folders that count, a line each: store, method, shots, seed, scores and more.

    method: the line of the tables that a sweep prints, so that runs that differ in anything but shots and seed differ
    in it. Of a grid, the setting that is best on validation rows stands for its seed. Failures are left out.
    contents: the column that tells contents of a store apart which was made again, "method" or "store".
    Raises ResultError if there is no row, or a row is no result of onceclip.
    """
    read = read_results(folders)
    settings = settings_of(read)
    names = _store_names([setting.experiment.store for setting in settings])
    folder_of = {run: str(Path(place.rpartition(":")[0]).parent) for run, place in read.places.items()}
    lines = [{"store": f"{names[setting.experiment.store]}{_content(setting, settings, contents == 'store')}",
              "method": f"{name}{_content(setting, settings, contents == 'method')}{_apart(setting, settings)}",
              "shots": shots, "seed": seed, **{score: row.get(score) for score in (*SCORES, *_FURTHER)},
              **{f"{name}_{each['kind']}": each[name] for each in row.get("sets", ()) for name in ("coverage", "size")},
              "support": row.get("fingerprints", {}).get("support"),
              "hyperparameters": row.get("hyperparameters", {}), "path": setting.experiment.store,
              "folder": folder_of.get(str(row.get("run")))}
             for setting in settings for (name, shots), seeds in setting.chosen.items() for seed, row in seeds.items()]
    frame = pd.DataFrame(lines, columns=["store", "method", "shots", "seed", *SCORES, *_SETS, *_FURTHER, "support",
                                         "hyperparameters", "path", "folder"])
    return frame.astype(dict.fromkeys(SCORES, "float64")).dropna(axis="columns", how="all")


def _store_names(paths: Sequence[str]) -> dict[str, str]:
    """Short names of stores, never empty: that of the file, or the whole path where two have the same."""
    found = Counter(PurePath(path).name for path in dict.fromkeys(paths))
    alone = {path: found[PurePath(path).name] == 1 for path in paths}
    return {path: (PurePath(path).name.removesuffix(".zarr") if alone[path] else path) or path or "?" for path in paths}


def _content(setting: Setting, settings: Sequence[Setting], wanted: bool) -> str:
    """What tells the content of a store, and its prompts, from others that it had, where that is wanted."""
    same = [each.prints for each in settings if each.experiment == setting.experiment] if wanted else []
    return "".join(f", {what} {own[:8]}" for what, own, *every in zip(("content", "prompts"), setting.prints, *same,
                                                                      strict=True) if len({*every}) > 1)


def _apart(setting: Setting, settings: Sequence[Setting]) -> str:
    """What tells the runs of a setting from others on the same store, behind the name of the method."""
    mine = setting.experiment
    same = [each.experiment for each in settings if each.experiment.store == mine.store]
    parts = [*differences(mine, same, _APART), *["base"] * (mine.base and len({each.base for each in same}) > 1)]
    return "".join(f", {part}" for part in parts)


Line = tuple[Any, str]  # shots and method; shots are None where they are the columns


@dataclass(frozen=True)
class Cells:
    """A table of means. cells: by line and column. score: what is in the cells, by column."""

    lines: tuple[Line, ...]
    columns: tuple[Any, ...]
    cells: Mapping[tuple[Line, Any], Mean]
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
    stores, methods = (list(dict.fromkeys(frame[name])) for name in ("store", "method"))
    numbers = in_order(frame["shots"])
    lines = [(shots, name) for shots in ([None] if columns == "shots" else numbers) for name in methods]
    among = {"stores": [*stores, *[_MEAN] * (len(stores) > 1)], "shots": numbers, "scores": list(scores)}[columns]
    score_of = {column: column if columns == "scores" else scores[0] for column in among}
    found: dict[tuple[Line, Any], Mean] = {}
    groups = {key: part for key, part in frame.groupby(["shots", "method"], sort=False)}
    for shots, name in lines:
        for column in among:
            part = groups.get((column if columns == "shots" else shots, name))
            some = [column] if columns == "stores" and column != _MEAN else stores
            mean = None if part is None else _mean(part, some, score_of[column])
            if mean is not None:
                found[(shots, name), column] = mean
    kept = tuple(line for line in lines if any((line, column) in found for column in among))
    return Cells(kept, tuple(among), found, score_of)


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


def _number(number: float, score: str, digits: int) -> str:
    """A mean or half of an interval: in per cent, but for nats."""
    return f"{number:.{digits + 2}f}" if score in _NATS else f"{100 * number:.{digits}f}"


def _marks(table: Cells, digits: int) -> dict[tuple[Line, Any], int]:
    """Which cells are the best (0) and the second (1) of their column, among the methods at the same shots.

    What looks equal in print is equal. A column with one method has no marks.
    """
    marks: dict[tuple[Line, Any], int] = {}
    for shots in dict.fromkeys(shots for shots, _ in table.lines):
        for column, score in table.score.items():
            shown = {line: float(_number(table.cells[line, column].value, score, digits)) for line in table.lines
                     if line[0] == shots and (line, column) in table.cells}
            ranked = sorted(set(shown.values()), reverse=score not in LOWER)
            marks |= {(line, column): ranked.index(value) for line, value in shown.items()
                      if len(shown) > 1 and value in ranked[:2]}
    return marks


def _texts(table: Cells, digits: int, interval: bool, escape: Callable[[str], str], between: str, best: str,
           second: str) -> tuple[list[str], list[list[str]]]:
    """Headings, and the texts of every line; a first column has the shots where lines differ in them.

    between: a mean and half of its interval. best, second: forms of these cells.
    """
    marks, several = _marks(table, digits), any(shots is not None for shots, _ in table.lines)
    head = [*["shots"] * several, "method", *(escape(str(each).replace("_", " ")) if several else shots_of(each)
                                              for each in table.columns)]
    lines = []
    for line in table.lines:
        cells = []
        for column in table.columns:
            mean, score = table.cells.get((line, column)), table.score[column]
            text = "–" if mean is None else _number(mean.value, score, digits)
            if (line, column) in marks:
                text = (best, second)[marks[line, column]].format(text)
            half = mean.half_width if mean and interval else None
            cells.append(text if half is None else f"{text}{between}{_number(half, score, digits)}")
        lines.append([*[str(line[0])] * several, escape(line[1]), *cells])
    return head, lines


_LATEX = str.maketrans({"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
                        **{sign: f"\\{sign}" for sign in "&%$#_{}"}})


def _latex(table: Cells, digits: int, interval: bool) -> str:
    head, lines = _texts(table, digits, interval, lambda text: text.translate(_LATEX), r" $\pm$ ", r"\textbf{{{}}}",
                         r"\underline{{{}}}")
    numbers = len(table.columns)
    made = [f"\\begin{{tabular}}{{{'l' * (len(head) - numbers)}{'r' * numbers}}}", r"\toprule",
            " & ".join(head) + r" \\"]
    for number, (line, (shots, _)) in enumerate(zip(lines, table.lines, strict=True)):
        if not number or shots != table.lines[number - 1][0]:
            made.append(r"\midrule")
        made.append(" & ".join("--" if cell == "–" else cell for cell in line) + r" \\")
    return "\n".join([*made, r"\bottomrule", r"\end{tabular}"])


def _markdown(table: Cells, digits: int, interval: bool) -> str:
    head, lines = _texts(table, digits, interval, lambda text: re.sub(r"([|\\`*_<>])", r"\\\1", text), " ± ", "**{}**",
                         "<u>{}</u>")
    numbers = len(table.columns)
    rule = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def _html(table: Cells, digits: int, interval: bool) -> str:
    head, lines = _texts(table, digits, interval, html.escape, " ± ", "<b>{}</b>", "<u>{}</u>")
    rows = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return (f"<table>\n<thead>\n<tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>\n</thead>\n<tbody>\n{rows}\n"
            "</tbody>\n</table>")


def _csv(table: Cells, digits: int, interval: bool) -> str:
    """Numbers as they are, fractions too; with intervals a column of half widths behind each."""
    file, several = io.StringIO(newline=""), any(shots is not None for shots, _ in table.lines)
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow([*["shots"] * several, "method", *(csv_cell(str(name)) for column in table.columns
                    for name in (column, f"{column} ±")[:1 + interval])])
    for line in table.lines:
        means = [table.cells.get((line, column)) for column in table.columns]
        pairs = [(mean.value, mean.half_width) if mean else (None, None) for mean in means]
        lines.writerow([*[line[0]] * several, csv_cell(line[1]), *(
            value for pair in pairs for value in pair[:1 + interval])])
    return file.getvalue().rstrip("\n")


FORMATS: Mapping[str, Callable[[Cells, int, bool], str]] = {"markdown": _markdown, "latex": _latex, "csv": _csv,
                                                            "html": _html}
