"""Probabilities that are as sure as they are right: one temperature for all logits of a classifier."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from scipy.optimize import brentq
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError
from onceclip.adapters.heads.batched import batched_logits
from onceclip.adapters.method import Method
from onceclip.adapters.task import Task

VALIDATION, LEFT_OUT = "val", "loo"
_REACH = math.log(1e12)  # of the search for log T, to both sides
_MOST = 2**26  # logits that a temperature is fitted on, 256 MiB in float32: rows evenly spread where there are more
_PIECE = 2**22  # of them in float64 at once


def best_temperature(logits: Tensor, label: Tensor) -> float:
    """Find the temperature T with which `softmax(logits / T)` is the most likely for labelled rows.

    It minimises the sum of -log softmax(logits / T)[label] over the rows, plus (log T)^2 / 2. The latter takes log T
    for a draw of N(0, 1), so that T stays finite where all rows are right, or all wrong; it loses its weight as rows
    are added, and without rows T is 1. The answer is the root of the slope in log T, which is found in float64.

    logits: (rows, classes). label: (rows,) int64.
    Source: On Calibration of Modern Neural Networks (Guo et al., ICML 2017), section 4.2, temperature scaling.
    """
    if not len(label):
        return 1.0
    step = max(1, _PIECE // logits.shape[1])

    def slope(log_temperature: float) -> float:
        sharpness, total = math.exp(-log_temperature), 0.0
        for piece, own in zip(logits.split(step), label.split(step), strict=True):
            lead = piece.double() - piece.gather(1, own.unsqueeze(1)).double()
            total += float(torch.dot((lead * sharpness).softmax(dim=1).flatten(), lead.flatten()))
        return log_temperature - sharpness * total

    return math.exp(brentq(slope, -_REACH, _REACH, xtol=1e-9))


def calibrated(classifier: Classifier, method: Method, task: Task) -> Classifier:
    """Give a fitted classifier its temperature, from rows that fitting it may look at.

    These are the task's validation rows; without them the support, every image scored as if it were not in it, where
    the method can do that; else it stays uncalibrated. Validation rows that chose hyperparameters too make it a little
    too sure.

    method: of the classifier's kind, with any values.
    """
    method = method.with_values(**{name: classifier.hyperparameters[name] for name in method.values})
    if task.val is not None and len(task.val):
        some = _some(len(task.val), task.classes)
        logits, = batched_logits([classifier.head], method.rows_of(task.val)[some])
        return replace(classifier, temperature=best_temperature(logits, task.val.label[some]),
                       calibrated_on=VALIDATION)
    if not len(task.support):
        return classifier
    try:
        some = _some(len(task.support), task.classes)
        first, second = method.leave_one_out(method.prepare(task), *([some] if some.step > 1 else []))
    except MethodError:  # it has no such form, or not for this support
        return classifier
    weight = float(method.values[method.mixing]) if method.mixing else 0.0
    logits = first + weight * second if weight else first
    temperature = best_temperature(logits, task.support.label[some])
    return replace(classifier, temperature=temperature, calibrated_on=LEFT_OUT)


def _some(rows: int, classes: int) -> slice:
    """Rows that are enough for one number, evenly spread; all of them unless their logits would fill the memory."""
    return slice(None, None, -(-rows * classes // _MOST) or 1)
