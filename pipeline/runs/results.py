"""Result rows: one JSON object a line, appended; and what many of them say together."""

from __future__ import annotations

import json
import math
import os
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy.stats import t as student

from onceclip.pipeline.workers.work import Part
from onceclip.stores import Store
from onceclip.stores.schema import BAD, SPLITS, STORED

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


STORES_NAME = "stores.json"


def record_stores(folder: Path, stores: Sequence[Store]) -> Path:
    """Describe stores in the folder's `stores.json`, by fingerprint, beside those that it has already."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STORES_NAME
    part = folder / f"{STORES_NAME}.{platform.node()}-{os.getpid()}.part"
    try:
        part.write_text(json.dumps(read_stores(folder) | {store.fingerprint: described(store) for store in stores},
                                   indent=1, allow_nan=False), encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def read_stores(folder: Path) -> dict[str, dict[str, Any]]:
    """The stores of a results folder by fingerprint; none where nothing readable says so."""
    try:
        found = json.loads((folder / STORES_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def described(store: Store) -> dict[str, Any]:
    """Classes, counts, encoder, text sets and extraction of a store, as JSON values."""
    state, attributes = store.column("state"), store.attributes
    labels = {split: store.column("label")[store.rows(split)] for split in SPLITS}
    return {
        "path": store.path, "classes": list(store.classes),
        "test_counts": np.bincount(labels["test"], minlength=len(store.classes)).tolist(),
        "splits": {split: len(label) for split, label in labels.items()},
        "encoder": store.encoder,
        "texts": {name: {"fingerprint": attributes["texts"][name]["fingerprint"], **attributes["texts"][name]["source"]}
                  for name in store.texts},
        "extraction": {
            "images": int((state == STORED).sum()), "bad": int((state == BAD).sum()),
            "reasons": dict(Counter(map(str, store.column("reason")[state == BAD])).most_common()),
            "split_source": attributes.get("split_source"), "dtype": attributes["dtype"], "dim": store.dim,
            "outputs": {name: list(output.shape) for name, output in store.outputs.items()},
        },
    }
