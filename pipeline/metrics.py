"""How good logits are: top-1, macro recall, likelihood and calibration; added up piece by piece."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

BINS = 15


class Tally:
    """Scores of a classifier, of which any number of rows may be added in bounded memory.

    accuracy: top-1 over rows. macro_recall: mean over the classes that have rows. nll: mean negative log likelihood in
    nats. ece: expected calibration error with 15 bins of equal width (Naeini et al., 2015; Guo et al., 2017).
    """

    def __init__(self, classes: int) -> None:
        self.rows, self.nll = 0, 0.0
        self.right, self.count = torch.zeros(classes, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
        self.gap = torch.zeros(BINS, dtype=torch.float64)

    def add(self, logits: Tensor, label: Tensor) -> None:
        """Count rows in. logits: (rows, classes). label: (rows,) int64."""
        if not len(label):
            return
        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        right = (predicted == label).double()
        self.rows += len(label)
        self.nll += float(cross_entropy(logits.double(), label, reduction="sum"))
        self.right.index_add_(0, label, right)
        self.count.index_add_(0, label, torch.ones_like(right))
        bins = (confidence.double() * BINS).ceil().long().clamp(1, BINS) - 1
        self.gap.index_add_(0, bins, confidence.double() - right)

    def scores(self) -> dict[str, float | None]:
        """All scores as fractions, and NLL in nats; None for no rows."""
        if not self.rows:
            return {"accuracy": None, "macro_recall": None, "nll": None, "ece": None}
        present = self.count > 0
        return {
            "accuracy": float(self.right.sum() / self.rows),
            "macro_recall": float((self.right[present] / self.count[present]).mean()),
            "nll": self.nll / self.rows,
            "ece": float(self.gap.abs().sum() / self.rows),
        }


def metrics(logits: Tensor, label: Tensor) -> dict[str, float | None]:
    """Score logits (rows, classes) against labels (rows,); what the scores are, `Tally` says."""
    tally = Tally(logits.shape[1])
    tally.add(logits, label)
    return tally.scores()
