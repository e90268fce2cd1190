"""Heads that compare rows with keys by an exponential kernel, and sums of such kernels for many betas at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from onceclip.adapters.cpu import threads_for
from onceclip.adapters.heads.base import Head
from onceclip.adapters.ops import per_run, product

_KEYS_PER_CLASS = WeakTensorKeyDictionary()  # of label tensors, which every training step asks for


@dataclass(frozen=True)
class Kernel(Head):
    """Logits `sum_i exp(-beta (1 - x . key_i)) weight_i value_i`, where value_i is the one-hot label of key i.

    keys: (keys, dim).
    label: (keys,) int64; a sum per class, so that no (keys, classes) matrix is ever built.
    classes: number of classes, also of those without a key.
    beta: sharpness. weight: (keys,), how much each key counts; None for one.
    """

    name = "kernel"

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


def sum_by_class(values: Tensor, label: Tensor, classes: int) -> Tensor:
    """Add up the columns of values (..., keys) that have the same label (keys,): (..., classes)."""
    if label not in _KEYS_PER_CLASS:
        _KEYS_PER_CLASS[label] = _keys_per_class(label)
    if classes and len(label) == classes * _KEYS_PER_CLASS[label]:
        return values.unflatten(-1, (classes, _KEYS_PER_CLASS[label])).sum(-1)  # many times faster
    return values.new_zeros(*values.shape[:-1], classes).index_add(-1, label, values)


def _keys_per_class(label: Tensor) -> int:
    """Number of keys of each class, if it is the same for all and labels (keys,) are sorted from class 0; else 0."""
    classes = int(label[-1]) + 1 if len(label) else 0
    each, rest = divmod(len(label), max(classes, 1))
    ordered = torch.arange(classes, device=label.device).repeat_interleave(each)
    return each if not rest and torch.equal(label, ordered) else 0


@dataclass(frozen=True)
class KernelMachine(Head):
    """Logits `sum_i exp(-beta (1 - x . key_i)) value_i` with any values, as a kernel regression has them.

    keys: (keys, dim). value: (keys, classes). beta: sharpness.
    """

    name = "kernel-machine"

    keys: Tensor
    value: Tensor
    beta: float | Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        affinity = torch.exp(per_run(self.beta) * (product(rows, self.keys) - 1))
        return product(affinity, self.value.transpose(-1, -2))

    @property
    def width(self) -> int:
        return max(self.value.shape[-2:])


@dataclass(frozen=True)
class FourierFeatures(Head):
    """Random Fourier features in front of another head: `head([cos(x F^T), sin(x F^T)] / sqrt(frequencies))`.

    The scalar product of the features of two unit vectors a and b approximates `exp(-beta (1 - a . b))` where the
    frequencies are drawn from a normal distribution of variance beta.

    frequency: (frequencies, dim). head: takes rows of twice as many columns as there are frequencies.
    Source: Random Features for Large-Scale Kernel Machines (Rahimi and Recht, NeurIPS 2007).
    """

    name = "fourier-features"

    frequency: Tensor
    head: Head

    def __call__(self, rows: Tensor) -> Tensor:
        return self.head(fourier(rows, self.frequency))

    @property
    def width(self) -> int:
        return max(self.head.width, 2 * self.frequency.shape[-2])


def fourier(rows: Tensor, frequency: Tensor) -> Tensor:
    """Cosines and sines (rows, 2 frequencies) of rows (rows, dim), of unit length."""
    phase = product(rows, frequency)
    return torch.cat([phase.cos(), phase.sin()], dim=-1) / frequency.shape[-2] ** 0.5


_MAX_LOGITS = 2**26  # elements of the logits that are held at a time: 256 MiB in float32
_MAX_PRODUCT = 2**25  # elements of one product of rows and keys
_CACHE_ELEMENTS = 2**17  # of that product which one core works on at a time, so that they stay in its cache
_MAX_FACTORS = 32  # exponentials in a power before it is computed anew, since each factor adds a rounding error
_SAME_BETA = 1e-9  # relative difference of betas that are equal but for rounding
_MIN_BETA = 1e-30


def same_cache(heads: Sequence[Head]) -> bool:
    """Whether heads are kernels with the very same keys, labels and weights, so that only beta differs."""
    first = heads[0]
    return isinstance(first, Kernel) and isinstance(first.beta, float) and all(
        isinstance(head, Kernel) and isinstance(head.beta, float)
        and all(getattr(head, field.name) is getattr(first, field.name) for field in fields(first)
                if field.name not in ("beta", "classes"))
        for head in heads)


def batched_cache_logits(heads: Sequence[Kernel], rows: Tensor) -> Iterator[Tensor]:
    """Logits (rows, classes) of heads that are the `same_cache`, one head after the other.

    rows: (rows, dim), unit embeddings.
    """
    first = heads[0]
    most = max(1, _MAX_LOGITS // max(len(rows) * first.classes, 1))
    for start in range(0, len(heads), most):
        betas = [float(head.beta) for head in heads[start:start + most]]
        yield from cache_logits(rows, first.keys, first.label, first.classes, betas, first.weight)


def cache_logits(rows: Tensor, keys: Tensor, label: Tensor, classes: int, betas: Sequence[float],
                 weight: Tensor | None = None) -> Tensor:
    """Sums over each class of `weight_i exp(-beta (1 - x . key_i))` for every beta: (betas, rows, classes).

    rows: (rows, dim). keys: (keys, dim). label: (keys,) int64. betas: in any order. weight: (keys,), or None for one.
    """
    order = sorted(range(len(betas)), key=betas.__getitem__)
    ascending = [betas[place] for place in order]
    columns = _keys_by_shot(label, classes)
    if columns is not None:  # with the shots of a class along an axis of their own, its sum adds up whole rows
        missing, columns = columns == len(keys), columns.clamp(max=len(keys) - 1)
        keys, weight = keys[columns.flatten()], None if weight is None else weight[columns]
    result = rows.new_empty(len(betas), len(rows), classes)
    step = max(1, _MAX_PRODUCT // max(len(keys), 1))
    for start in range(0, len(rows), step):
        distance = 1 - product(rows[start:start + step], keys)
        if columns is not None:
            distance = distance.unflatten(1, columns.shape)
            if missing.any():
                distance.masked_fill_(missing, math.inf)
        _sum_powers(distance, ascending, order, label, weight, result[:, start:start + step])
    return result


def _sum_powers(distance: Tensor, ascending: Sequence[float], order: Sequence[int], label: Tensor,
                weight: Tensor | None, result: Tensor) -> None:
    """Write the sums over each class of exp(-beta distance) for all betas into result (betas, rows, classes)."""
    on_cpu = distance.device.type == "cpu"
    step = max(1, _CACHE_ELEMENTS // max(distance[0].numel(), 1)) if on_cpu else len(distance)
    with threads_for(0) if on_cpu else nullcontext():  # pieces are too small for several threads
        for start in range(0, len(distance), step):
            piece = slice(start, start + step)
            for place, power in zip(order, _powers(distance[piece], ascending), strict=True):
                weighted = power if weight is None else power * weight
                result[place, piece] = (weighted.sum(dim=1) if power.ndim == 3 else
                                        sum_by_class(weighted, label, result.shape[2]))


def _keys_by_shot(label: Tensor, classes: int) -> Tensor | None:
    """Positions of the first, second, ... key of every class: (largest number of shots, classes).

    A class with fewer shots has the number of keys in place of a position. None where classes differ so much in their
    shots that most of the table would be empty.
    """
    count = torch.bincount(label, minlength=classes)
    most = int(count.max()) if len(label) else 0
    if not most or most * classes > 2 * len(label):
        return None
    order = label.argsort(stable=True)
    shot = torch.arange(len(label), device=label.device) - (count.cumsum(0) - count)[label[order]]
    table = label.new_full((most, classes), len(label))
    table[shot, label[order]] = order
    return table


def _powers(distance: Tensor, betas: Sequence[float]) -> Iterator[Tensor]:
    """`exp(-beta distance)` for ascending betas.

    On a grid of equal steps each power is the previous one times a constant, on a grid that doubles it is the square of
    an earlier one: one exponential serves many betas. Each factor adds a rounding error, so factors are counted.
    """
    recent: list[tuple[float, int, Tensor]] = []  # the last two: a grid may double at every second step
    width, step = 0.0, distance
    for beta, following in zip(betas, [*betas[1:], math.inf], strict=True):
        previous = recent[-1] if recent else (beta, _MAX_FACTORS, distance)
        half = next((each for each in recent if _same(2 * each[0], beta) and 2 * each[1] <= _MAX_FACTORS), None)
        if half is not None:
            factors, power = 2 * half[1], half[2] * half[2]
        elif width and _same(beta - previous[0], width) and previous[1] < _MAX_FACTORS:
            factors, power = previous[1] + 1, previous[2] * step
        else:
            # The distance of a missing key is infinite, and 0 times infinity is NaN.
            factors, power = 1, torch.exp(-max(beta, _MIN_BETA) * distance)
            gap = beta - previous[0]
            if gap > 0 and _same(following - beta, gap) and not _same(gap, width):
                width, step = gap, torch.exp(-gap * distance)
        recent = [*recent[-1:], (beta, factors, power)]
        yield power


def _same(first: float, second: float) -> bool:
    return abs(first - second) <= _SAME_BETA * second
