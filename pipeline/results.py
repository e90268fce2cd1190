"""Result rows: one JSON object a line, appended; and what many of them say together."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

NAME = "results.jsonl"


@dataclass(frozen=True)
class Mean:
    """Mean over runs. half_width: of its 95 % interval (Student's t), None for a single run. runs: their number."""

    value: float
    half_width: float | None
    runs: int


def append_row(folder: Path, row: Mapping[str, Any]) -> Path:
    """Append one row to the folder's `results.jsonl`, and give the file."""
    return append_rows(folder, [row])


def append_rows(folder: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Append rows to the folder's `results.jsonl` in one write, and give the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    with path.open("a+b") as file:
        # A process that was killed in the middle of a line must not spoil the next one.
        cut = file.seek(0, os.SEEK_END) > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        lines = b"".join(json.dumps(row, allow_nan=False).encode("ascii") + b"\n" for row in rows)
        file.write((b"\n" if cut else b"") + lines)
    return path


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of a results folder; a last line that was cut short is passed over."""
    path = folder / NAME
    rows = []
    for line in path.read_text(encoding="ascii").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def mean_interval(values: Sequence[float]) -> Mean:
    """Mean of values with its 95 % interval."""
    if len(values) < 2:
        return Mean(fmean(values), None, len(values))
    quantile = float(student.ppf(0.975, len(values) - 1))
    return Mean(fmean(values), quantile * stdev(values) / math.sqrt(len(values)), len(values))


def summarise(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[Any, Mean]]:
    """Mean accuracy of each method at each number of shots."""
    groups: dict[tuple[str, Any], list[float]] = defaultdict(list)
    for row in rows:
        groups[row["method"], row["shots"]].append(row["accuracy"])
    summary: dict[str, dict[Any, Mean]] = defaultdict(dict)
    for (method, shots), values in groups.items():
        summary[method][shots] = mean_interval(values)
    return dict(summary)


def table(summary: Mapping[str, Mapping[Any, Mean]], shots: Sequence[Any]) -> str:
    """Text table of per cent accuracies: a line per method, a column per number of shots."""
    width = max(len("shots"), *(len(name) for name in summary))
    lines = [f"{'shots':<{width}}" + "".join(f"{number!s:>14}" for number in shots)]
    for name, cells in summary.items():
        lines.append(f"{name:<{width}}" + "".join(f"{_cell(cells.get(number)):>14}" for number in shots))
    return "\n".join(lines)


def _cell(mean: Mean | None) -> str:
    if mean is None:
        return "-"
    half = "" if mean.half_width is None else f" ± {100 * mean.half_width:.1f}"
    return f"{100 * mean.value:.1f}{half}"
