"""A head that compares rows with keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from onceclip.adapters.heads.head import Head
from onceclip.adapters.run_axis import per_run, product

_LAID = WeakTensorKeyDictionary()  # how labels lie, which is asked at every step


@dataclass(frozen=True)
class Kernel(Head):
    """Logits `sum_i exp(-beta (1 - x . key_i)) weight_i value_i`, where value_i is the one-hot label of key i.

    keys: (keys, dim).
    label: (keys,) int64; a sum per class, so that no (keys, classes) matrix is ever built.
    classes: number of classes, also of those without a key.
    beta: sharpness. weight: (keys,), how much each key counts; None for one.
    """

    keys: Tensor
    label: Tensor
    classes: int
    beta: float | Tensor
    weight: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        affinity = torch.exp(per_run(self.beta) * (product(rows, self.keys) - 1))
        if self.weight is not None:
            affinity = affinity * self.weight.unsqueeze(-2)
        return sum_by_class(affinity, self.label, self.classes)

    @property
    def width(self) -> int:
        return max(self.keys.shape[-2], self.classes)

    @property
    def dtype(self) -> torch.dtype:
        return self.keys.dtype


def sum_by_class(values: Tensor, label: Tensor, classes: int) -> Tensor:
    """Add up the columns of values (..., keys) that have the same label (keys,): (..., classes)."""
    if label not in _LAID:
        _LAID[label] = _in_order(label)
    if classes and len(label) == classes * _LAID[label]:
        return values.unflatten(-1, (classes, _LAID[label])).sum(-1)  # many times faster
    return values.new_zeros(*values.shape[:-1], classes).index_add(-1, label, values)


def _in_order(label: Tensor) -> int:
    """How many keys each class has, if all have equally many and lie class by class from class 0; else 0."""
    classes = int(label[-1]) + 1 if len(label) else 0
    each, rest = divmod(len(label), max(classes, 1))
    ordered = torch.arange(classes, device=label.device).repeat_interleave(each)
    return each if not rest and torch.equal(label, ordered) else 0
