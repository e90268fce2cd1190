"""The few pieces that every fitted classifier is a sum of: unit image rows in, logits out.

A head is pure and row-independent, differentiable in its tensors, and saved by its fields alone. While many runs are
trained together its tensors, numbers too, have a leading axis of runs; `product` and `per_run` see to it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import relu

from onceclip.adapters.errors import AdapterFileError
from onceclip.adapters.run_axis import per_run, product
from onceclip.adapters.task import unit


class Head:
    """Maps unit rows (rows, dim) to logits (rows, classes)."""

    def __call__(self, rows: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Number of columns of the largest intermediate tensor: evaluation sizes its pieces by it."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Floating type that it computes in."""
        raise NotImplementedError


@dataclass(frozen=True)
class Linear(Head):
    """Logits `x W^T + b`.

    weight: (classes, dim), with any logit scale already multiplied in.
    bias: (classes,) or None.
    """

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        logits = product(rows, self.weight)
        return logits if self.bias is None else logits + self.bias.unsqueeze(-2)

    @property
    def width(self) -> int:
        return self.weight.shape[-2]

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype


@dataclass(frozen=True)
class Kernel(Head):
    """Logits `sum_i exp(-beta (1 - x . key_i)) value_i`, where value_i is the one-hot label of key i.

    keys: (keys, dim).
    label: (keys,) int64; a sum per class, so that no (keys, classes) matrix is ever built.
    classes: number of classes, also of those without a key.
    beta: sharpness.
    """

    keys: Tensor
    label: Tensor
    classes: int
    beta: float | Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        affinity = torch.exp(per_run(self.beta) * (product(rows, self.keys) - 1))
        return sum_by_class(affinity, self.label, self.classes)

    @property
    def width(self) -> int:
        return max(self.keys.shape[-2], self.classes)

    @property
    def dtype(self) -> torch.dtype:
        return self.keys.dtype


@dataclass(frozen=True)
class Bottleneck(Head):
    """A residual two-layer map in front of another head: `head(unit(r relu(U relu(D x)) + (1 - r) x))`.

    down: (hidden, dim). up: (dim, hidden). ratio: r, between 0 and 1.
    """

    down: Tensor
    up: Tensor
    ratio: float | Tensor
    head: Head

    def __call__(self, rows: Tensor) -> Tensor:
        return self.head(blend(rows, self.down, self.up, self.ratio))

    @property
    def width(self) -> int:
        return max(self.head.width, *self.down.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.down.dtype


def sum_by_class(values: Tensor, label: Tensor, classes: int) -> Tensor:
    """Add up the columns of values (..., keys) that have the same label (keys,): (..., classes)."""
    each, rest = divmod(len(label), classes)
    if not rest and torch.equal(label, torch.arange(classes, device=label.device).repeat_interleave(each)):
        return values.unflatten(-1, (classes, each)).sum(-1)  # equal shots, class by class: many times faster
    return values.new_zeros(*values.shape[:-1], classes).index_add(-1, label, values)


def blend(rows: Tensor, down: Tensor, up: Tensor, ratio: float | Tensor) -> Tensor:
    """Mix rows (n, dim) with their two-layer map and scale to unit length."""
    share = per_run(ratio)
    return unit(share * relu(product(relu(product(rows, down)), up)) + (1 - share) * rows)


@dataclass(frozen=True)
class Sum(Head):
    """Weighted sum of heads.

    heads: the terms. weights: one factor per term.
    """

    heads: tuple[Head, ...]
    weights: tuple[float | Tensor, ...]

    def __call__(self, rows: Tensor) -> Tensor:
        return sum((per_run(weight) * head(rows) for weight, head in zip(self.weights, self.heads, strict=True)),
                   start=rows.new_zeros(()))

    @property
    def width(self) -> int:
        return max(head.width for head in self.heads)

    @property
    def dtype(self) -> torch.dtype:
        return self.heads[0].dtype


HEADS: dict[str, type[Head]] = {"linear": Linear, "kernel": Kernel, "bottleneck": Bottleneck, "sum": Sum}
_NAMES = {kind: name for name, kind in HEADS.items()}


def pack(head: Head, prefix: str = "", copy: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Split a head into a JSON description and its named tensors; copies of them, unless told otherwise."""
    description: dict[str, Any] = {"type": _NAMES[type(head)]}
    tensors: dict[str, Tensor] = {}

    def put(name: str, value: Any) -> Any:
        if isinstance(value, Head):
            inner, more = pack(value, f"{prefix}{name}.", copy)
            tensors.update(more)
            return inner
        if isinstance(value, Tensor):
            # A copy, because safetensors refuses two names for one memory.
            tensors[prefix + name] = value.detach().cpu().contiguous().clone() if copy else value
            return {"tensor": prefix + name}
        if isinstance(value, tuple):
            return [put(f"{name}.{index}", item) for index, item in enumerate(value)]
        return value

    for field in fields(head):  # type: ignore[arg-type]
        description[field.name] = put(field.name, getattr(head, field.name))
    return description, tensors


def unpack(description: dict[str, Any], tensors: dict[str, Tensor]) -> Head:
    """Rebuild a head from what `pack` made.

    Raises AdapterFileError for a head type that this version does not know.
    """
    values = dict(description)
    kind = values.pop("type")
    if kind not in HEADS:
        raise AdapterFileError(f"the adapter has a head of type {kind!r}, which this version of onceclip does not "
                               "know: install a newer version")

    def get(value: Any) -> Any:
        if isinstance(value, dict):
            return unpack(value, tensors) if "type" in value else tensors[value["tensor"]]
        return tuple(get(item) for item in value) if isinstance(value, list) else value

    return HEADS[kind](**{name: get(value) for name, value in values.items()})
