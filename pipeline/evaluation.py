"""What scoring one classifier on one split gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onceclip.adapters import Classifier
from onceclip.pipeline.bootstrap import row_interval, units_of
from onceclip.pipeline.metrics import Tally
from onceclip.stores import Store


@dataclass(frozen=True)
class Evaluation:
    """One classifier on the labelled rows of one split.

    rows: (n,) positions in the store. label, predicted: (n,) positions in `candidates`, the names of the classes that
    were scored among. seconds: how long it took.
    """

    classifier: Classifier
    store: Store
    split: str
    rows: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    candidates: tuple[str, ...]
    tally: Tally
    seconds: float

    @property
    def right(self) -> np.ndarray:
        """Which rows were recognised: (n,) bool."""
        return self.predicted == self.label

    @property
    def unit(self) -> np.ndarray | None:
        """The group of each row as a number: (n,) int64, or None where rows have no groups."""
        return units_of(self.store.column("group")[self.rows])

    def as_values(self) -> dict[str, Any]:
        """All scores as JSON values; what each is, docs/evaluation.md says."""
        unit, names = self.unit, self.candidates
        wrong = self.tally.wrong.counted()
        return {
            **scores_of(self.classifier, self.store, self.split, self.tally, self.seconds),
            "interval": list(row_interval(self.right, unit)),
            "n_groups": None if unit is None else int(unit.max()) + 1,
            "per_class": per_class(names, self.tally.count.numpy(), self.tally.right.numpy(), wrong),
            "confusions": [[names[true], names[predicted], number] for true, predicted, number in wrong.tolist()],
        }


def per_class(names: Sequence[str], count: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> list[dict[str, Any]]:
    """Rows, recognised rows, recall and precision of every class.

    count, right: (classes,) rows of each class, and those of them that were recognised. wrong: (pairs, 3) of true
    class, predicted class and number. Recall is None for a class without rows, precision for one never predicted.
    """
    predicted = right + np.bincount(wrong[:, 1], wrong[:, 2], len(names)).astype(np.int64)
    return [{"class": name, "n": rows, "right": good, "recall": good / rows if rows else None,
             "precision": good / given if given else None}
            for name, rows, good, given in zip(names, count.tolist(), right.tolist(), predicted.tolist(), strict=True)]


def temperature_of(classifier: Classifier) -> float | None:
    """The temperature that was fitted for a classifier, or None."""
    return classifier.temperature if classifier.calibrated_on else None


def scores_of(classifier: Classifier, store: Store, split: str, tally: Tally, seconds: float) -> dict[str, Any]:
    """What a tally says, and of what, as JSON values."""
    return {**tally.scores(), **tally.calibrated_scores(), "split": split, "n": tally.rows,
            "classes": int((tally.count > 0).sum()), "among": tally.classes, "method": classifier.method,
            "store": store.path, "store_fingerprint": store.fingerprint, "encoder": store.encoder["name"],
            "details": tally.details(), "seconds": seconds}
