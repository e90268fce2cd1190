"""Probabilities that are as sure as they are right: one temperature for all logits of a classifier."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError
from onceclip.adapters.heads.batched import batched_logits
from onceclip.adapters.method import Method
from onceclip.adapters.selection.conformal import conformity
from onceclip.adapters.selection.rule import LOGITS, best_temperature, some_rows
from onceclip.adapters.task import Task

VALIDATION, LEFT_OUT, HELD_OUT = "val", "loo", "held-out"


def calibrated(classifier: Classifier, method: Method, task: Task) -> Classifier:
    """Give a fitted classifier its temperature and the scores of prediction sets, from rows that fitting may look at.

    These are the task's validation rows; without them the support, every image scored as if it were not in it, where
    the method can do that and their logits have no more than 2**27 elements; else it stays uncalibrated. Validation
    rows that chose hyperparameters too make it a little too sure.

    method: of the classifier's kind, with any values.
    """
    method = method.with_values(**{name: classifier.hyperparameters[name] for name in method.values})
    if task.val is not None and len(task.val):
        rows = some_rows(task.val, task.classes)
        logits, = batched_logits([classifier.head], method.rows_of(rows))
        return on_rows(classifier, logits, rows.label, VALIDATION)
    if not 0 < len(task.support) * task.classes <= LOGITS:
        return classifier
    try:
        method.check_left_out(task)
        first, second = method.leave_one_out(method.prepare(task))
    except MethodError:  # no such form, or not for this support, or rows that are streamed
        return classifier
    weight = float(method.values[method.mixing]) if method.mixing else 1.0
    return on_rows(classifier, first + weight * second, task.support.label, LEFT_OUT)


def on_rows(classifier: Classifier, logits: Tensor, label: Tensor, rows: str) -> Classifier:
    """Give a classifier the temperature that suits some rows, and the scores that prediction sets are made of.

    logits: (n, classes), the classifier's own. label: (n,). rows: which they are, for `calibrated_on`.
    """
    temperature = best_temperature(logits, label)
    return replace(classifier, temperature=temperature, calibrated_on=rows,
                   conformity=conformity(logits, label, temperature))
