"""What a sweep keeps of its runs beside their rows, on request: curves of trainings, and answers for test rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onceclip.pipeline.errors import ResultError, TaskError
from onceclip.pipeline.evaluation.evaluate import Evaluation
from onceclip.pipeline.runs.results import CURVES, append_rows, file_name, lines_of
from onceclip.pipeline.words import shots_of
from onceclip.pipeline.workers import Part
from onceclip.stores import StoreError
from onceclip.stores.identity import fingerprint
from onceclip.stores.schema import create_array, get_array, read_whole
from onceclip.stores.storage import damage, open_group

PREDICTIONS = "predictions.zarr"
_LABELS, _UNITS = "label", "unit"  # with the classes of each set of test rows, and what belongs together, if anything
_NO_ANSWER = {np.dtype(np.uint8): 2**8 - 1, np.dtype(np.uint16): 2**16 - 1, np.dtype(np.uint32): 2**32 - 1}
_EXTRA = ("curve", "predicted", "label", "unit", "keys")
_SERIES = ("train_loss", "val_loss", "val_accuracy")


@dataclass(frozen=True)
class Keep:
    """curves: losses of every epoch and which was kept. predictions: what each run takes every test row for.

    coverage: that prediction sets are counted with, in the row itself; None for none.
    """

    curves: bool = False
    predictions: bool = False
    coverage: float | None = None

    def __post_init__(self) -> None:
        if self.coverage is not None and not (isinstance(self.coverage, int | float) and 0 < self.coverage < 1):
            raise TaskError(f"coverage {self.coverage!r}: give a probability between 0 and 1, such as 0.9")


NOTHING = Keep()


@dataclass(frozen=True)
class Predictions:
    """What a run took every test row for. predicted, label: (rows,) positions of classes. keys: hash of the rows.

    unit: (rows,) numbers, the same for rows of a group; None where no row has one.
    """

    predicted: np.ndarray
    label: np.ndarray
    keys: str
    unit: np.ndarray | None = None

    @property
    def right(self) -> np.ndarray:
        """Which rows were recognised: (rows,) bool."""
        return self.predicted == self.label


def rows_scored(found: Evaluation) -> dict[str, Any]:
    """Label, groups and identity of the test rows that a run, and all runs of its group, are scored on."""
    keys = list(map(str, found.store.column("key")[found.rows]))
    return {"label": found.label.astype(found.predicted.dtype), "keys": fingerprint([keys, found.label.tolist()]),
            "unit": None if found.unit is None else found.unit.astype(np.uint32)}


def write_kept(folder: Path, rows: Sequence[dict[str, Any]], part: Part | None) -> list[dict[str, Any]]:
    """Write what rows carry beside their values, and give the rows without it, to be written after it."""
    curves = [{"run": row["run"], **(row["curve"] or {})} for row in rows if "curve" in row]
    if curves:
        append_rows(folder, curves, file_name(CURVES, part))
    answered = [row for row in rows if "predicted" in row]
    if answered:
        path = folder / PREDICTIONS
        path.mkdir(parents=True, exist_ok=True)
        group = open_group(str(path), "a")
        for row in answered:
            place = f"{_LABELS}/{row['keys']}"
            if place not in group:
                _put(group, place, row["label"], {})
                if row["unit"] is not None:
                    _put(group, f"{_UNITS}/{row['keys']}", row["unit"], {})
            _put(group, str(row["run"]), row["predicted"], {"keys": row["keys"], "store": row["store"]})
    return [{name: value for name, value in row.items() if name not in _EXTRA} for row in rows]


def _put(group: Any, name: str, values: np.ndarray, attributes: dict[str, Any]) -> None:
    create_array(group, name, values.shape, (max(len(values), 1),), str(values.dtype), _NO_ANSWER[values.dtype],
                 ("row",), attributes)[...] = values


def has_kept(folder: Path, keep: Keep, rows: Mapping[str, Any]) -> set[str]:
    """Those of some runs, with their rows, that have all that is to be kept."""
    found = {run for run, row in rows.items() if keep.coverage is None or (
        "sets" in row and all(each.get("coverage_asked") == keep.coverage for each in row["sets"]))}
    if keep.curves:
        found &= read_curves(folder).keys()
    if keep.predictions:
        path = folder / PREDICTIONS
        found &= {each.name for each in path.iterdir()} if path.is_dir() else set()
    return found


def read_curves(folder: Path) -> dict[str, dict[str, Any]]:
    """The curves of a results folder by run; of methods without epochs they are empty.

    Raises ResultError if a line has a value that no training writes.
    """
    found: dict[str, dict[str, Any]] = {}
    for path, number, values in lines_of(folder, CURVES):
        if values is None:
            continue  # the end of a process that was killed
        if not _is_curve(values):
            raise ResultError(f"{path}, line {number}: no curve of a training: correct it or take it out")
        found[values["run"]] = values
    return found


def _is_curve(values: Any) -> bool:
    return (isinstance(values, dict) and isinstance(values.get("run"), str)
            and (values.get("kept") is None or type(values["kept"]) is int)
            and all(isinstance(values.get(name, []), list) and all(
                each is None or type(each) in (int, float) for each in values.get(name, [])) for name in _SERIES))


def read_predictions(folder: Path, row: Mapping[str, Any]) -> Predictions:
    """What the run of a row took every test row for.

    Raises ResultError if it was not kept, or is damaged.
    """
    path, run = folder / PREDICTIONS, str(row.get("run"))
    if not (path / run).is_dir() or "/" in run or "." in run:
        raise ResultError(f"{folder} has no predictions of {row.get('method')} ({shots_of(row.get('shots', '?'))}, "
                          f"seed {row.get('seed')}): repeat the sweep with --keep-predictions")
    try:
        with damage(str(path), run):
            group = open_group(str(path))
            array = get_array(group, run)
            keys = str(array.attrs["keys"])
            units = f"{_UNITS}/{keys}"
            found = Predictions(read_whole(array), read_whole(get_array(group, f"{_LABELS}/{keys}")), keys,
                                read_whole(get_array(group, units)) if units in group else None)
    except StoreError as error:
        raise ResultError(f"{path}: the predictions of run {run} are damaged: delete that folder of them and repeat "
                          "the sweep") from error
    others = [found.label.shape, *([] if found.unit is None else [found.unit.shape])]
    if any(shape != found.predicted.shape for shape in others) or found.predicted.ndim != 1:
        raise ResultError(f"{path}: the predictions of run {run} are not those of its test rows: delete that folder of "
                          "them and repeat the sweep")
    return found
