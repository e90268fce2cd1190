"""Which classes are taken for which: pairs counted as rows pass by, and the whole matrix as a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onceclip.pipeline.whole_file import whole_file

_WAITING = 1 << 14  # pairs that are kept uncounted


class WrongPairs:
    """How often each wrong pair of a true and a predicted class has occurred, in memory for the pairs that occur."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._code, self._number = np.empty(0, np.int64), np.empty(0, np.int64)
        self._waiting: list[np.ndarray] = []

    def add(self, true: np.ndarray, predicted: np.ndarray) -> None:
        """Count pairs in. true, predicted: (pairs,) int64 positions of classes that differ."""
        self._waiting.append(true * self.classes + predicted)
        if sum(map(len, self._waiting)) > max(_WAITING, len(self._code)):
            self._count()

    def _count(self) -> None:
        waiting = np.concatenate(self._waiting or [np.empty(0, np.int64)])
        code = np.concatenate([self._code, waiting])
        number = np.concatenate([self._number, np.ones(len(waiting), np.int64)])
        self._waiting = []
        self._code, place = np.unique(code, return_inverse=True)
        self._number = np.zeros(len(self._code), np.int64)
        np.add.at(self._number, place, number)

    def counted(self) -> np.ndarray:
        """All pairs: (pairs, 3) int64 of true class, predicted class and number, most frequent first."""
        if self._waiting:
            self._count()
        order = np.argsort(-self._number, kind="stable")
        code = self._code[order]
        return np.stack([code // self.classes, code % self.classes, self._number[order]], axis=1)


def write_matrix(path: Path, names: Sequence[str], right: np.ndarray, wrong: np.ndarray) -> None:
    """Write a confusion matrix as CSV: a line per true class, a column per predicted class, the names at both.

    right: (classes,) rows of each class that were recognised. wrong: (pairs, 3), as `WrongPairs.counted` gives them.
    """
    wrong = wrong[np.argsort(wrong[:, 0], kind="stable")]
    start = np.searchsorted(wrong[:, 0], np.arange(len(names) + 1))
    with whole_file(path) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        table = csv.writer(lines)
        table.writerow(["true / predicted", *names])
        for number, name in enumerate(names):
            line = np.zeros(len(names), np.int64)
            line[number] = right[number]
            mine = wrong[start[number]:start[number + 1]]
            line[mine[:, 1]] = mine[:, 2]
            table.writerow([name, *line.tolist()])
        lines.detach()
