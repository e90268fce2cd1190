"""Two classifiers of one encoder averaged, in their weights where heads have one form."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError
from onceclip.adapters.heads import Bottleneck, Head, Linear, Sum, pack, unpack
from onceclip.adapters.heads.residual import Rectified
from onceclip.adapters.ops import unit
from onceclip.adapters.selection.calibration import VALIDATION, on_rows
from onceclip.adapters.selection.rule import Weighed, best_weight, some_rows
from onceclip.adapters.task import Rows

MERGED = "merged_with"  # among the values of a merged classifier: the method of the other one


def merge(fitted: Classifier, start: Classifier, weight: float = 0.5, align: bool = False) -> Classifier:
    """Average a fitted classifier with one that it started from, or with any other of the same classes.

    weight: share of the fitted one, between 0 and 1. Heads of one form (two linear ones, two projections, ...) are
    averaged in their weights; others in their logits, which for linear heads is the same.
    align: first give the hidden units of a bottleneck the order in which they are most like those of the other, so that
        trainings of several seeds can be averaged.
    Raises MethodError if the two do not belong together.

    Source: Robust Fine-tuning of Zero-shot Models (Wortsman et al., CVPR 2022), equation 1; MerA (He et al., 2023) for
    the order of units.

    Example:
        >>> from onceclip.adapters import CLAP, ZeroShot, merge
        >>> merged = merge(CLAP().fit(task), ZeroShot().fit(task), weight=0.5)
        >>> merged.logits(embeddings).shape
        torch.Size([5, 4])
    """
    _require_alike(fitted, start)
    if not 0 <= weight <= 1:
        raise MethodError(f"weight {weight} of a merge is not between 0 and 1")
    head = aligned(fitted.head, start.head) if align else fitted.head
    return _merged(fitted, start, weight, average(start.head, head, weight))


def aligned(head: Head, like: Head) -> Head:
    """A head whose hidden units have the order of another's: those of the highest cosine of unit rows of `down` pair.

    It gives the same logits. What is no bottleneck on both sides, or of other widths, stays as it is.
    """
    from scipy.optimize import linear_sum_assignment  # 0.2 s, which few who fit or load an adapter need

    if isinstance(head, Sum) and isinstance(like, Sum) and len(head.heads) == len(like.heads):
        return replace(head, heads=tuple(map(aligned, head.heads, like.heads)))
    if not isinstance(head, Bottleneck | Rectified) or not isinstance(like, type(head)):
        return head
    if head.down.shape != like.down.shape:
        return head
    alike = unit(like.down) @ unit(head.down).T
    order = torch.from_numpy(linear_sum_assignment(alike.cpu().numpy(), maximize=True)[1]).to(head.down.device)
    return replace(head, down=head.down[order], up=head.up[:, order])


def best_merge(fitted: Classifier, start: Classifier, rows: Rows) -> tuple[Classifier, Weighed]:
    """Average two classifiers with the weight that labelled rows speak for, and give it too.

    The logits are averaged; the weight is chosen as every hyperparameter is, and 0.5 is left only with evidence. The
    same rows give the average its temperature and the scores of prediction sets.
    rows: validation rows, never those that the number is reported on.
    Raises MethodError if the two do not belong together, or there are no rows.

    Example:
        >>> task = onceclip.make_task(store, shots=4, select="val")
        >>> from onceclip.adapters import GDA, ZeroShot, best_merge
        >>> merged, found = best_merge(GDA().fit(task), ZeroShot().fit(task), task.val)
        >>> 0 <= found.weight <= 1
        True
    """
    _require_alike(fitted, start)
    if not len(rows):
        raise MethodError("the best weight of a merge needs labelled rows and there are none: give `merge` a weight")
    rows = some_rows(rows, len(fitted.class_names))
    values = rows.input(fitted.inputs)
    first = start.logits(values)
    second = fitted.logits(values) - first
    found = best_weight(first, second, rows.label, 0.5, high=1.0)
    linear = isinstance(fitted.head, Linear) and isinstance(start.head, Linear)
    head = (average if linear else _sum)(start.head, fitted.head, found.weight)
    merged = _merged(fitted, start, found.weight, head)
    return on_rows(merged, first + found.weight * second, rows.label, VALIDATION), found


def average(first: Head, second: Head, weight: float) -> Head:
    """The head `(1 - weight) first + weight second`: of the weights where both have one form, else of the logits."""
    if isinstance(first, Linear) and isinstance(second, Linear):
        first, second = _with_bias(first, second), _with_bias(second, first)
    form, one = pack(first)
    other_form, other = pack(second)
    if form != other_form or any(not _alike(one[name], other[name]) for name in one):
        return _sum(first, second, weight)
    return unpack(form, {name: torch.lerp(value, other[name], weight) if value.is_floating_point() else value
                         for name, value in one.items()})


def _sum(first: Head, second: Head, weight: float) -> Head:
    return Sum((first, second), (1 - weight, weight))


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of heads may be averaged: numbers may differ, labels and positions may not."""
    return first.shape == second.shape and (first.is_floating_point() or torch.equal(first, second))


def _with_bias(head: Linear, like: Linear) -> Linear:
    if head.bias is None and like.bias is not None:
        return replace(head, bias=torch.zeros_like(like.bias))
    return head


def _require_alike(fitted: Classifier, start: Classifier) -> None:
    known = fitted.encoder and start.encoder
    for what, one, other in (("class names", fitted.class_names, start.class_names),
                             ("inputs", fitted.inputs, start.inputs), ("widths", fitted.dim, start.dim),
                             ("encoders", *(each.encoder.get("fingerprint") for each in (fitted, start)))):
        if one != other and (known or what != "encoders"):
            raise MethodError(f"two classifiers of different {what} do not merge: fit both on one task")


def _merged(fitted: Classifier, start: Classifier, weight: float, head: Head) -> Classifier:
    values = {**fitted.hyperparameters, MERGED: start.method, "merge_weight": weight}
    return replace(fitted, head=head, hyperparameters=values, parameters={}, temperature=1.0, calibrated_on="",
                   conformity={})
