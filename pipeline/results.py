"""Result rows: one JSON object a line, appended; and what many of them say together."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

from onceclip.pipeline.parts import Part

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


def append_rows(folder: Path, rows: Iterable[Mapping[str, Any]], name: str = NAME) -> Path:
    """Append rows to a file of the folder in one write, and give the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with path.open("a+b") as file:
        # A process that was killed in the middle of a line must not spoil the next one.
        cut = file.seek(0, os.SEEK_END) > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        lines = b"".join(json.dumps(row, allow_nan=False).encode("ascii") + b"\n" for row in rows)
        file.write((b"\n" if cut else b"") + lines)
    return path


def rows_name(part: Part | None = None) -> str:
    """The file of a results folder that rows go to: a part of a sweep has its own.

    Parts run on several machines, and appending to one file from two of them loses lines where the folder is on NFS.
    """
    return f"results.{part.number}-of-{part.of}.jsonl" if part else NAME


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of a results folder, those of all parts too; lines that are cut or no rows are passed over."""
    rows = []
    for path in (folder / NAME, *sorted(folder.glob("results.*-of-*.jsonl"))):
        for line in path.read_bytes().splitlines() if path.is_file() else []:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
    return rows


def by_run(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows by their `run`: of several the last, but none without a result in the place of one that has it."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        run = str(row["run"])
        if run not in found or "error" not in row:
            found[run] = row
    return found


def mean_interval(values: Sequence[float]) -> Mean:
    """Mean of values with its 95 % interval."""
    if len(values) < 2:
        return Mean(fmean(values), None, len(values))
    quantile = float(student.ppf(0.975, len(values) - 1))
    return Mean(fmean(values), quantile * stdev(values) / math.sqrt(len(values)), len(values))
