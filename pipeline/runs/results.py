"""Result rows: one JSON object a line, appended; and what stores they were made of."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
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
ROWS, CURVES = "results", "curves"  # kinds of lines of a results folder
STORES_NAME = "stores.json"
_log = logging.getLogger("onceclip")


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


def file_name(kind: str, part: Part | None = None) -> str:
    """The file of a results folder that lines of a kind go to: a part of a sweep has its own.

    Parts run on several machines, and appending to one file from two of them loses lines where the folder is on NFS.
    """
    return f"{kind}.{part.number}-of-{part.of}.jsonl" if part else f"{kind}.jsonl"


def lines_of(folder: Path, kind: str) -> Iterator[tuple[Path, int, Any]]:
    """The lines of a kind in a results folder, those of all parts too: file, number from 1, and JSON values.

    The values are None of a line that is no JSON, such as one that a killed process left half written.
    """
    for path in (folder / file_name(kind), *sorted(folder.glob(f"{kind}.*-of-*.jsonl"))):
        for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], 1):
            yield path, number, _json(line)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of a results folder; lines that are no rows are passed over with a remark.

    Raises ResultError if a row has a value that no run writes.
    """
    rows, passed_over = [], defaultdict(list)
    for path, number, row in lines_of(folder, ROWS):
        if isinstance(row, dict):
            _require(row, _ROW, f"{path}, line {number}")
            rows.append(row)
        else:
            passed_over[path].append(number)
    for path, numbers in passed_over.items():
        _log.warning("%s: %s passed over that %s no JSON object of a run (the first is line %d)", path,
                     counted(len(numbers), "line"), "are" if numbers[1:] else "is", numbers[0])
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


def _fits(value: Any, form: Any) -> bool:
    """Whether a JSON value has a form.

    form: a type, for values of it or null; a list of one form; an object of forms by key, as far as the keys are there,
        with `...` for all of them; or a function that says it.
    """
    if isinstance(form, dict):
        return isinstance(value, dict) and all(_fits(each, form[name if name in form else ...])
                                               for name, each in value.items() if name in form or ... in form)
    if isinstance(form, list):
        return isinstance(value, list) and all(_fits(each, form[0]) for each in value)
    if isinstance(form, type):
        return value is None or type(value) is form
    return bool(form(value))


def _number(least: float, most: float = math.inf) -> Callable[[Any], bool]:
    """A test for finite numbers in a range, or None."""
    return lambda value: value is None or (type(value) in (int, float) and least <= value <= most
                                           and math.isfinite(value))


def _name(value: Any) -> bool:
    return isinstance(value, str)


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _triple(form: Any) -> Callable[[Any], bool]:
    return lambda value: _fits(value, [form]) and len(value) == 3 and None not in value


def _of_types(types: Sequence[type]) -> Callable[[Any], bool]:
    """A test for values of some types, or None; numbers are finite and not below zero, lists are of texts."""
    return lambda value: value is None or (type(value) in types and (
        _fits(value, [str]) if isinstance(value, list) else not isinstance(value, int | float) or _number(0)(
            float(value))))


def _details(value: Any) -> bool:
    form = {"right": [_count], "reliability": [_triple(_number(0))], "confusions": [_triple(_count)]}
    return value is None or (_fits(value, form) and form.keys() <= value.keys() and len(value["reliability"]) == BINS)


_FRACTION = _number(0, 1 + 1e-9)  # sums of shares round
_ROW: Mapping[str, Any] = {
    **dict.fromkeys(("accuracy", "accuracy_val", "accuracy_new", "harmonic_mean", "top5", "macro_recall", "ece",
                     "ece_calibrated"), _FRACTION),
    **dict.fromkeys(("nll", "nll_calibrated", "brier", "temperature", "seconds", "seconds_total"), _number(0)),
    **dict.fromkeys(("seed", "classes", "n_support", "n_test"), _count),
    **dict.fromkeys(("encoder", "text", "select", "device", "version", "error", "class_weights", "products"), str),
    **dict.fromkeys(("method", "store", "run"), _name),
    "shots": lambda value: value == "all" or _count(value),
    "settings_tried": lambda value: value is None or _count(value),
    **dict.fromkeys(("hyperparameters", "compiling", "support_source"), _object), "fingerprints": {...: str},
    "asked": {**dict.fromkeys(("method", "text", "select", "search", "class_weights", "inference", "refit"), str),
              "inputs": [str], "join": [str],
              **dict.fromkeys(("values", "inference_values", "batches"), _object),
              **dict.fromkeys(("narrow", "validated"), bool),
              **{name: _of_types(types) for name, types in stored_types().items()}},
    "details": _details,
    "sets": [{"kind": str, "size": _number(0), **dict.fromkeys(("coverage_asked", "coverage", "single"), _FRACTION)}],
    "inference": {"name": str, "transductive": bool, "alone": {"accuracy": _FRACTION}},
}
_STORE: Mapping[str, Any] = {
    "path": str, "classes": [_name], "test_counts": [_count], "splits": {...: _count},
    "encoder": {"logit_scale": _number(-math.inf)}, "texts": {...: {"templates": [str], "file": dict}},
    "extraction": {"images": _count, "bad": _count, "reasons": {...: _count}, "split_source": dict},
}


def _require(values: Mapping[str, Any], forms: Mapping[str, Any], place: str) -> None:
    for name, form in forms.items():
        if name in values and not _fits(values[name], form):
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


def record_stores(folder: Path, stores: Sequence[Store]) -> Path:
    """Describe stores in the folder's `stores.json`, by fingerprint, beside those that it has already."""
    path = folder / STORES_NAME
    found = read_stores(folder) | {store.fingerprint: _described(store) for store in stores}
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
    _require(found, dict.fromkeys(found, _object), str(folder / STORES_NAME))
    for name, each in found.items():
        _require(each, _STORE, f"{folder / STORES_NAME}, {name}")
    return found


def _described(store: Store) -> dict[str, Any]:
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
