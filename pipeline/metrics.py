"""How good logits are: top-1, top-5, macro recall, likelihood and calibration; added up piece by piece."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onceclip.pipeline.confusion import WrongPairs

BINS = 15
TOP = 5
LISTED = 20  # wrong pairs in the details of a result row
SCORES = ("accuracy", "top5", "macro_recall", "nll", "brier", "ece")
CALIBRATED = ("temperature", "nll_calibrated", "ece_calibrated")


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
        self._calibrated = None if temperature is None else Tally(classes)
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
        if self._calibrated and self.temperature:
            self._calibrated.add(logits / self.temperature, label)
        highest, predicted = logits.max(dim=1, keepdim=True)
        weight = (logits - highest).exp_()
        total = weight.sum(dim=1).double()
        own = label[:, None]
        share = weight.gather(1, own)[:, 0].double() / total
        margin = (highest - logits.gather(1, own))[:, 0].double()
        self.nll += float((total.log() + margin).sum())
        self.brier += float((weight.square_().sum(dim=1) / total.square() - 2 * share + 1).sum())
        self.rows += len(label)
        predicted = predicted[:, 0]
        right = predicted == label
        self.count += label.bincount(minlength=self.classes)
        self.right += label[right].bincount(minlength=self.classes)
        self._bin(1 / total, right)
        self._mistakes(logits, label, predicted, ~right)
        return predicted

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
