"""How good logits, prediction sets and scores of abnormality are; logits are added up block by block."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters.selection.calibration import SetRule
from onceclip.pipeline.words import csv_cell
from onceclip.stores.location import whole_file

BINS = 15
TOP = 5
LISTED = 20  # wrong pairs in the details of a result row
SCORES = ("accuracy", "top5", "macro_recall", "nll", "brier", "ece")
CALIBRATED = ("temperature", "nll_calibrated", "ece_calibrated")
DETECTION = ("auroc", "average_precision")
MOST = 0.3  # rate of false pixels up to which regions are counted


class WrongPairs:
    """How often each wrong pair of a true and a predicted class has occurred, in memory for the pairs that occur."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._number: Counter[int] = Counter()

    def add(self, true: np.ndarray, predicted: np.ndarray) -> None:
        """Count pairs in. true, predicted: (pairs,) int64 positions of classes that differ."""
        self._number.update((true * self.classes + predicted).tolist())

    def counted(self) -> np.ndarray:
        """All pairs: (pairs, 3) int64 of true class, predicted class and number, most frequent first."""
        code, number = np.array(sorted(self._number.items()), np.int64).reshape(-1, 2).T
        order = np.argsort(-number, kind="stable")
        return np.stack([code // self.classes, code % self.classes, number], axis=1)[order]


class Tally:
    """Scores of a classifier, of which any number of rows may be added in bounded memory.

    accuracy: top-1 over rows. top5: share of rows whose class is among the five most likely (a tie counts against
    it), None for fewer than six classes. macro_recall: mean over the classes that have rows. nll: mean negative log
    likelihood in nats. brier: mean over rows of the squared distance between the probabilities and the truth, 0 to 2
    (Brier, 1950). ece: expected calibration error with 15 bins of equal width (Naeini et al., 2015; Guo et al., 2017).
    """

    def __init__(self, classes: int, temperature: float | None = None) -> None:
        """temperature: of a calibrated classifier, to score its calibrated probabilities too."""
        self.classes, self.temperature = classes, temperature
        self._calibrated = None if temperature is None else Tally(classes)  # which learns of probabilities alone
        self.rows, self.nll, self.brier, self.near = 0, 0.0, 0.0, 0
        self.count, self.right = torch.zeros(2, classes, dtype=torch.int64)
        self.reliability = torch.zeros(BINS, 3, dtype=torch.float64)
        self.wrong = WrongPairs(classes)

    def add(self, logits: Tensor, label: Tensor) -> Tensor:
        """Count rows in, and give the predicted classes: (rows,) int64.

        logits: (rows, classes). label: (rows,) int64.
        """
        if not len(label):
            return label
        highest, answer = logits.max(dim=1, keepdim=True)
        predicted = answer[:, 0]
        right = predicted == label
        self._probabilities(logits, highest, label, right)
        if self._calibrated and self.temperature:
            self._calibrated._probabilities(logits / self.temperature, highest / self.temperature, label, right)
        self.count += label.bincount(minlength=self.classes)
        self.right += label[right].bincount(minlength=self.classes)
        self._mistakes(logits, label, predicted, ~right)
        return predicted

    def _probabilities(self, logits: Tensor, highest: Tensor, label: Tensor, right: Tensor) -> None:
        """Count in what depends on how sure the logits (rows, classes) are. highest: of each row (rows, 1)."""
        weight = (logits - highest).exp_()
        total = weight.sum(dim=1).double()
        own = label[:, None]
        share = weight.gather(1, own)[:, 0].double() / total
        margin = (highest - logits.gather(1, own))[:, 0].double()
        self.nll += float((total.log() + margin).sum())
        self.brier += float((weight.square_().sum(dim=1) / total.square() - 2 * share + 1).sum())
        self.rows += len(label)
        self._bin(1 / total, right)

    def _bin(self, confidence: Tensor, right: Tensor) -> None:
        place = (confidence * BINS).ceil().long().clamp_(1, BINS) - 1
        for column, values in enumerate((None, confidence, right.double())):
            self.reliability[:, column] += place.bincount(values, BINS)

    def _mistakes(self, logits: Tensor, label: Tensor, predicted: Tensor, wrong: Tensor) -> None:
        true = label[wrong]
        self.wrong.add(true.numpy(), predicted[wrong].numpy())
        if self.classes > TOP:
            missed = logits[wrong]
            behind = (missed < missed.gather(1, true[:, None])).sum(dim=1)
            self.near += int((behind >= self.classes - TOP).sum())

    def scores(self) -> dict[str, float | None]:
        """All scores as fractions, and NLL in nats; None for no rows."""
        if not self.rows:
            return dict.fromkeys(SCORES)
        present, right = self.count > 0, int(self.right.sum())
        gap = self.reliability[:, 1] - self.reliability[:, 2]
        return {
            "accuracy": right / self.rows,
            "top5": (right + self.near) / self.rows if self.classes > TOP else None,
            "macro_recall": float((self.right[present].double() / self.count[present]).mean()),
            "nll": self.nll / self.rows,
            "brier": self.brier / self.rows,
            "ece": float(gap.abs().sum() / self.rows),
        }

    def calibrated_scores(self) -> dict[str, float | None]:
        """The temperature, and NLL and ECE of the logits over it; None where there is none."""
        if not self._calibrated:
            return dict.fromkeys(CALIBRATED)
        scores = self._calibrated.scores()
        return {"temperature": self.temperature, "nll_calibrated": scores["nll"], "ece_calibrated": scores["ece"]}

    def details(self) -> dict[str, Any] | None:
        """What a report draws, as JSON values; None for no rows.

        right: per class, how many of its rows were recognised. reliability: per bin of confidence, the number of rows,
        the sum of their confidences and how many were right. confusions: the 20 most frequent wrong pairs, as true
        class, predicted class and number.
        """
        if not self.rows:
            return None
        return {"right": self.right.tolist(),
                "reliability": [[int(rows), confidence, int(right)]
                                for rows, confidence, right in self.reliability.tolist()],
                "confusions": self.wrong.counted()[:LISTED].tolist()}


def metrics(logits: Tensor, label: Tensor) -> dict[str, float | None]:
    """Score logits (rows, classes) against labels (rows,); what the scores are, `Tally` says."""
    tally = Tally(logits.shape[1])
    tally.add(logits, label)
    return tally.scores()


class SetTally:
    """Prediction sets of any number of rows, counted in bounded memory."""

    def __init__(self, rule: SetRule) -> None:
        self.rule, self.rows, self.covered, self.size, self.single = rule, 0, 0, 0, 0

    def add(self, logits: Tensor, label: Tensor, keys: np.ndarray) -> None:
        """Count rows in. logits: (rows, classes). label: (rows,) int64. keys: (rows,) of the images."""
        inside = self.rule.members(logits, list(map(str, keys)))
        size = inside.sum(dim=1)
        self.rows += len(label)
        self.covered += int(inside.gather(1, label[:, None]).sum())
        self.size += int(size.sum())
        self.single += int((size == 1).sum())

    def as_values(self) -> dict[str, Any]:
        """coverage: share of rows whose set holds their class. size: mean number of classes. single: share of one."""
        rows = max(self.rows, 1)
        return {**self.rule.as_values(), "coverage": self.covered / rows, "size": self.size / rows,
                "single": self.single / rows}


def auroc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve: how often a positive row scores higher than a negative one, ties counted half.

    score: (n,). positive: (n,) bool. None without rows of both kinds.
    """
    return weighted_auroc(score, positive, ~positive)


def weighted_auroc(score: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float | None:
    """The same where each score is that of so many positive and so many negative things, such as pixels: (n,) each."""
    levels, place = np.unique(score, return_inverse=True)
    many, few = (np.bincount(place, each, len(levels)) for each in (positive, negative))
    if not many.sum() or not few.sum():
        return None
    return float((many * (np.cumsum(few) - few / 2)).sum() / (many.sum() * few.sum()))


def average_precision(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Mean over the positive rows of the precision at their score; rows of equal score come together.

    score: (n,). positive: (n,) bool. None without rows of both kinds.
    """
    if not positive.any() or positive.all():
        return None
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.diff(score[order], append=np.nan) != 0)
    right = np.cumsum(positive[order])[ends]
    return float((np.diff(right, prepend=0) * right / (ends + 1)).sum() / positive.sum())


@dataclass(frozen=True)
class Marks:
    """What the masks of images mark, by patch. A pixel has the score of the patch that it is in.

    abnormal, normal: (n, patches) numbers of pixels that are marked, and that are not. region: (n, patches) sum over
    the connected regions of the share of the region that is in the patch. record: JSON values on the masks.
    """

    abnormal: np.ndarray
    normal: np.ndarray
    region: np.ndarray
    record: dict[str, Any]

    def scores(self, score: np.ndarray) -> dict[str, Any]:
        """Area under the ROC curve of all pixels, and PRO, of scores of patches (n, patches), as JSON values."""
        flat = score.ravel(), self.abnormal.ravel(), self.normal.ravel()
        return {"pixel_auroc": weighted_auroc(*flat),
                "pro": per_region_overlap(flat[0], self.region.ravel(), flat[2]), "masks": self.record}


def per_region_overlap(score: np.ndarray, region: np.ndarray, normal: np.ndarray) -> float | None:
    """Area under the mean share of the regions that is found, over the rate of false pixels up to MOST, over MOST.

    score: (n,), the higher the more abnormal. region, normal: (n,), as of `Marks`. None without pixels of both kinds.
    Source: PRO, of The MVTec Anomaly Detection Dataset (Bergmann et al., IJCV 2021), section 4.3.
    """
    regions, pixels = region.sum(), normal.sum()
    if not regions or not pixels:
        return None
    levels, place = np.unique(-score, return_inverse=True)
    found, false = (np.concatenate([[0.0], np.cumsum(np.bincount(place, each, len(levels))) / each.sum()])
                    for each in (region, normal))
    kept = false < MOST
    x, y = np.append(false[kept], MOST), np.append(found[kept], np.interp(MOST, false, found))
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / MOST)


def write_matrix(path: Path, names: Sequence[str], right: np.ndarray, wrong: np.ndarray) -> None:
    """Write a confusion matrix as CSV: a line per true class, a column per predicted class, the names at both.

    right: (classes,) rows of each class that were recognised. wrong: (pairs, 3), as `WrongPairs.counted` gives them.
    """
    wrong = wrong[np.argsort(wrong[:, 0], kind="stable")]
    start = np.searchsorted(wrong[:, 0], np.arange(len(names) + 1))
    with whole_file(path) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        table = csv.writer(lines)
        table.writerow(["true / predicted", *map(csv_cell, names)])
        for number, name in enumerate(names):
            line = np.zeros(len(names), np.int64)
            line[number] = right[number]
            mine = wrong[start[number]:start[number + 1]]
            line[mine[:, 1]] = mine[:, 2]
            table.writerow([csv_cell(name), *line.tolist()])
        lines.detach()
