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
    logits = logits.double()
    lead = logits - logits.gather(1, label.unsqueeze(1))

    def slope(log_temperature: float) -> float:
        sharpness = math.exp(-log_temperature)
        weights = (lead * sharpness).softmax(dim=1)
        return log_temperature - sharpness * float(torch.dot(weights.flatten(), lead.flatten()))

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
        logits, = batched_logits([classifier.head], method.rows_of(task.val))
        return replace(classifier, temperature=best_temperature(logits, task.val.label), calibrated_on=VALIDATION)
    if not len(task.support):
        return classifier
    try:
        method.check_left_out(task)
    except MethodError:
        return classifier
    first, second = method.leave_one_out(method.prepare(task))
    weight = float(method.values[method.mixing]) if method.mixing else 1.0
    temperature = best_temperature(first + weight * second, task.support.label)
    return replace(classifier, temperature=temperature, calibrated_on=LEFT_OUT)
