"""Result rows: one JSON object a line, appended; and what many of them say together."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from onceclip.pipeline.errors import ResultError
from onceclip.pipeline.evaluation.metrics import BINS
from onceclip.pipeline.files import RESULTS
from onceclip.pipeline.tasks.draw_spec import stored_types
from onceclip.pipeline.words import counted
from onceclip.pipeline.workers import Part
from onceclip.stores import Store
from onceclip.stores.location import whole_file
from onceclip.stores.schema import BAD, SPLITS, STORED

NAME = RESULTS
STORES_NAME = "stores.json"
_log = logging.getLogger("onceclip")


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
    """Read the rows of a results folder, those of all parts too; lines that are no rows are passed over with a remark.

    Raises ResultError if a row has a value that no run writes.
    """
    rows = []
    for path in (folder / NAME, *sorted(folder.glob("results.*-of-*.jsonl"))):
        passed_over = []
        for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], 1):
            row = _json(line)
            if isinstance(row, dict):
                _require(row, _ROW, f"{path}, line {number}")
                rows.append(row)
            else:
                passed_over.append(number)
        if passed_over:
            _log.warning("%s: %s passed over that %s no JSON object of a run (the first is line %d)", path,
                         counted(len(passed_over), "line"), "are" if passed_over[1:] else "is", passed_over[0])
    return rows


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines; a line that a killed process left half written is passed over."""
    values = map(_json, path.read_bytes().splitlines() if path.is_file() else [])
    return [each for each in values if isinstance(each, dict)]


def _json(text: bytes) -> Any:
    """The values of a JSON text, or None if it is none; halves of characters, which nothing could write, become `?`."""
    try:
        values = json.loads(text)
        if b"\\ud" in text.lower() or not text.isascii():
            values = json.loads(json.dumps(values, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return values


def _number(least: float, most: float = math.inf) -> Callable[[Any], bool]:
    """A test for finite numbers in a range, or None."""
    return lambda value: value is None or (type(value) in (int, float) and least <= value <= most
                                           and math.isfinite(value))


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _object(**fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A test for JSON objects. fits: what some of their values have to be, as far as they are there."""
    return lambda value: isinstance(value, dict) and all(fits[name](value[name]) for name in fits if name in value)


def _object_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _triples(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return _list_of(lambda each: isinstance(each, list) and len(each) == 3 and None not in each
                    and all(map(fits, each)))


def _of_types(types: Sequence[type]) -> Callable[[Any], bool]:
    """A test for values of some types, or None; numbers are finite and not below zero, lists are of texts."""
    return lambda value: value is None or (type(value) in types and (
        _list_of(_text)(value) if isinstance(value, list) else not isinstance(value, int | float) or _number(0)(
            float(value))))


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _object_or_none(value: Any) -> bool:
    return isinstance(value, dict | None)


def _details(value: Any) -> bool:
    fits = _object(right=_list_of(_count), reliability=_triples(_number(0)), confusions=_triples(_count))
    return value is None or (fits(value) and {"right", "reliability", "confusions"} <= value.keys()
                             and len(value["reliability"]) == BINS)


_FRACTION = _number(0, 1 + 1e-9)  # sums of shares round
_ROW: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("accuracy", "accuracy_val", "accuracy_new", "harmonic_mean", "top5", "macro_recall", "ece",
                     "ece_calibrated"), _FRACTION),
    **dict.fromkeys(("nll", "nll_calibrated", "brier", "temperature", "seconds", "seconds_total"), _number(0)),
    **dict.fromkeys(("seed", "classes", "n_support", "n_test"), _count),
    **dict.fromkeys(("encoder", "text", "select", "device", "version", "error", "class_weights", "products"), _text),
    **dict.fromkeys(("method", "store"), lambda value: isinstance(value, str)),
    "shots": lambda value: value == "all" or _count(value), "run": lambda value: isinstance(value, str),
    "settings_tried": lambda value: value is None or _count(value), "hyperparameters": _object(),
    "compiling": _object(), "support_source": _object(), "fingerprints": _object_of(_text),
    "asked": _object(**dict.fromkeys(("method", "text", "select", "search", "class_weights", "inference"), _text),
                     **dict.fromkeys(("values", "inference_values", "batches"), _object()),
                     **dict.fromkeys(("narrow", "validated"), _flag),
                     **{name: _of_types(types) for name, types in stored_types().items()}),
    "details": _details,
    "sets": _list_of(_object(kind=_text, coverage_asked=_FRACTION, coverage=_FRACTION, size=_number(0),
                             single=_FRACTION)),
    "inference": _object(name=_text, transductive=_flag, alone=_object(accuracy=_FRACTION)),
}
_STORE: Mapping[str, Callable[[Any], bool]] = {
    "path": _text, "classes": _list_of(lambda each: isinstance(each, str)), "test_counts": _list_of(_count),
    "splits": _object_of(_count), "encoder": _object(logit_scale=_number(-math.inf)),
    "texts": _object_of(_object(templates=_list_of(_text), file=_object_or_none)),
    "extraction": _object(images=_count, bad=_count, reasons=_object_of(_count),
                          split_source=_object_or_none),
}


def _require(values: Mapping[str, Any], fits: Mapping[str, Callable[[Any], bool]], place: str) -> None:
    for name, fit in fits.items():
        if name in values and not fit(values[name]):
            raise ResultError(f"{place}: {name!r} is {json.dumps(values[name])[:60]}, which onceclip never writes: "
                              "correct it or take it out")


def by_run(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows by their `run`: of several the last, but none without a result in the place of one that has it."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        run = str(row["run"])
        if run not in found or "error" not in row:
            found[run] = row
    return found


def mean_interval(values: Sequence[float], interval: bool = True) -> Mean:
    """Mean of values with its 95 % interval. interval: whether the values are of draws, so that they have one."""
    if len(values) < 2 or not interval:
        return Mean(fmean(values), None, len(values))
    from scipy.stats import t as student  # takes a second

    quantile = float(student.ppf(0.975, len(values) - 1))
    return Mean(fmean(values), quantile * stdev(values) / math.sqrt(len(values)), len(values))


def record_stores(folder: Path, stores: Sequence[Store]) -> Path:
    """Describe stores in the folder's `stores.json`, by fingerprint, beside those that it has already."""
    path = folder / STORES_NAME
    found = read_stores(folder) | {store.fingerprint: described(store) for store in stores}
    with whole_file(path) as file:
        file.write(json.dumps(found, indent=1, allow_nan=False).encode())
    return path


def read_stores(folder: Path) -> dict[str, dict[str, Any]]:
    """The stores of a results folder by fingerprint; none where nothing readable says so.

    Raises ResultError if a description has a value of a wrong type.
    """
    try:
        found = _json((folder / STORES_NAME).read_bytes())
    except OSError:
        return {}
    if not isinstance(found, dict):
        return {}
    _require(found, dict.fromkeys(found, _object()), str(folder / STORES_NAME))
    for name, each in found.items():
        _require(each, _STORE, f"{folder / STORES_NAME}, {name}")
    return found


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
