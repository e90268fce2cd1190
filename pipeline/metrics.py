"""How good logits are: top-1, macro recall, likelihood and calibration."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

BINS = 15


def metrics(logits: Tensor, label: Tensor) -> dict[str, float | None]:
    """Score logits (rows, classes) against labels (rows,): fractions, and NLL in nats; None for no rows.

    accuracy: top-1 over rows. macro_recall: mean over the classes that have rows. ece: expected calibration
    error with 15 bins of equal width (Naeini et al., 2015; Guo et al., 2017).
    """
    if not len(label):
        return {"accuracy": None, "macro_recall": None, "nll": None, "ece": None}
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    right = (predicted == label).double()
    counts = torch.bincount(label, minlength=logits.shape[1])
    recall = torch.zeros(logits.shape[1], dtype=torch.float64).index_add_(0, label, right)[counts > 0]
    return {
        "accuracy": float(right.mean()),
        "macro_recall": float((recall / counts[counts > 0]).mean()),
        "nll": float(cross_entropy(logits.double(), label)),
        "ece": _calibration_error(confidence.double(), right),
    }


def _calibration_error(confidence: Tensor, right: Tensor) -> float:
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    gap = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, confidence - right)
    return float(gap.abs().sum() / len(right))
