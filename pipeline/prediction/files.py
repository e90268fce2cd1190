"""Predictions written to files, row by row; a file has its name only when it is whole."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from onceclip.pipeline.errors import PredictionError
from onceclip.pipeline.prediction.predict import BAD_IMAGE, INTERRUPTED, OK, UNSURE, Prediction
from onceclip.pipeline.words import csv_cell
from onceclip.stores.location import whole_file

Add = Callable[[Prediction], object]
_GROUP = 16384  # rows that a parquet file gets at once


def prediction_file(path: Path, top_k: int, sets: bool = False) -> AbstractContextManager[Add]:
    """Open a file for predictions, and give the function that adds one.

    path: its ending is one of FORMATS. top_k: classes per image. sets: whether they have sets.
    Raises PredictionError where the format needs a package that is not installed.
    """
    return FORMATS[path.suffix.lower()](path, top_k, sets)


class Passing:
    """Predictions on their way to whoever goes through them: counted, and added to files.

    predictions: goes through them once. adders: functions that `prediction_file` and `logits_file` gave.
    """

    def __init__(self, predictions: Iterable[Prediction], adders: Sequence[Add] = ()) -> None:
        self._predictions, self._adders, self._states = predictions, adders, Counter[str]()

    def __iter__(self) -> Iterator[Prediction]:
        for prediction in self._predictions:
            self._states[prediction.state] += 1
            for add in self._adders:
                add(prediction)
            yield prediction

    def counts(self) -> dict[str, int]:
        """How many have passed: all, the bad and the unsure ones; and those that were interrupted, if any were."""
        found = {"n": self._states.total(), "bad": self._states[BAD_IMAGE], "unsure": self._states[UNSURE]}
        return {**found, INTERRUPTED: self._states[INTERRUPTED]} if self._states[INTERRUPTED] else found


@contextmanager
def logits_file(path: Path, count: int, classes: int) -> Iterator[Add]:
    """Open a NumPy file for the logits (images, classes) of so many predictions; a bad image's row is NaN."""
    missing = np.full(classes, np.nan, np.float32)
    with whole_file(path) as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (count, classes)})
        yield lambda prediction: file.write(
            (missing if prediction.logits is None else prediction.logits).astype("<f4").tobytes())


def as_values(prediction: Prediction) -> dict[str, Any]:
    """A prediction as JSON values; `class` is None unless the state is "ok", `probability` unless there is one."""
    return {"image": prediction.key, "state": prediction.state, "reason": prediction.reason,
            "class": prediction.class_name, "probability": prediction.probability,
            "top": [{"class": each, "probability": share} for each, share in prediction.top],
            **({} if prediction.set is None else {"set": list(prediction.set)})}


def columns(top_k: int, sets: bool = False) -> list[str]:
    """Names of the columns of a table of predictions. sets: whether they have sets."""
    further = [name for rank in range(2, top_k + 1) for name in (f"class_{rank}", f"probability_{rank}")]
    return ["image", "state", "reason", "class", "probability", *further, *["set"] * sets]


def cells(prediction: Prediction, top_k: int) -> list[Any]:
    """A prediction as the cells of `columns`, with None where there is nothing; a set is a JSON list."""
    further = [cell for pair in prediction.top[1:] for cell in pair]
    return [prediction.key, prediction.state, prediction.reason, prediction.class_name, prediction.probability,
            *further, *[None] * (2 * (top_k - 1) - len(further)), *_set_text(prediction)]


def _set_text(prediction: Prediction) -> list[str]:
    return [] if prediction.set is None else [json.dumps(prediction.set, ensure_ascii=False)]


def json_text(values: dict[str, Any], passing: Passing) -> Iterator[str]:
    """One JSON object, piece by piece: some values, the predictions, and what was counted while they passed."""
    yield json.dumps(values)[:-1] + ', "predictions": ['
    for number, prediction in enumerate(passing):
        yield (", " if number else "") + json.dumps(as_values(prediction))
    yield "], " + json.dumps(passing.counts())[1:]


def as_line(prediction: Prediction) -> str:
    """A prediction for people: image and state, then classes with their probabilities, or the reason, by tabs."""
    answer = ([f"{name}\t{probability:.4f}" for name, probability in prediction.top] if prediction.state == OK
              else [prediction.reason])
    return "\t".join([prediction.key, prediction.state, *answer, *_set_text(prediction)])


@contextmanager
def _csv(path: Path, top_k: int, sets: bool) -> Iterator[Add]:
    with whole_file(path) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(columns(top_k, sets))
        yield lambda prediction: writer.writerow(map(csv_cell, cells(prediction, top_k)))


@contextmanager
def _json_lines(path: Path, top_k: int, sets: bool) -> Iterator[Add]:
    with whole_file(path) as file:
        yield lambda prediction: file.write(json.dumps(as_values(prediction)).encode("ascii") + b"\n")


@contextmanager
def _parquet(path: Path, top_k: int, sets: bool) -> Iterator[Add]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetWriter
    except ImportError:
        raise PredictionError(f"{path}: parquet files need pyarrow: pip install 'onceclip[parquet]', or write a .csv "
                          "or .jsonl file") from None
    schema = pyarrow.schema([(name, pyarrow.float32() if name.startswith("probability") else pyarrow.string())
                             for name in columns(top_k, sets)])
    with whole_file(path) as file, ParquetWriter(file, schema) as writer:
        rows: list[list[Any]] = []

        def flush() -> None:
            writer.write_batch(pyarrow.record_batch(list(zip(*rows, strict=True)), schema=schema))
            rows.clear()

        def add(prediction: Prediction) -> None:
            rows.append(cells(prediction, top_k))
            if len(rows) == _GROUP:
                flush()

        yield add
        if rows:
            flush()


FORMATS = {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}
