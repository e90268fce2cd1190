"""How rows are dealt out to a strategy: in batches as they come in practice, or as a stream in several orders."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from onceclip.adapters import MethodError
from onceclip.adapters.inference import Inference
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.words import numbers_in

CLASSES = (1, 4)  # of a drawn batch, unless others are asked for
ORDERS = (1, 2, 3)  # seeds of the orders of a stream, likewise


@dataclass(frozen=True)
class Batches:
    """How labelled rows are dealt out in batches; a strategy sees one batch at a time, and never the labels.

    size: rows of a batch at most. number: of batches that are drawn, each of a few classes; 0 deals every row out once.
    classes: the fewest and the most classes of a drawn batch. dirichlet: concentration of a stream in which every row
    occurs once and the classes come in turn, the more so the smaller it is; 0 for none. seed: of all draws.
    balanced: draw as many rows of each class of a batch, which then has as many as its rarest class allows.

    Source: Realistic Test-Time Adaptation of Vision-Language Models (Zanella, Fuchs et al., CVPR 2025), section 5.
    """

    size: int = 64
    number: int = 0
    classes: tuple[int, int] = CLASSES
    dirichlet: float = 0.0
    seed: int = 1
    balanced: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.size < 1:
            raise TaskError(f"a batch of {self.size} rows: give a --batch-size from 1 up")
        if len(self.classes) != 2 or not 1 <= self.classes[0] <= self.classes[1]:
            raise TaskError(f"no batch has {'-'.join(map(str, self.classes))} classes: give --effective-classes such "
                            "as 1-4")
        if self.number and self.dirichlet:
            raise TaskError("--batches draws batches of few classes and --dirichlet deals out a stream: give one of "
                            "them")
        if self.balanced and not self.number:
            raise TaskError("--balanced is for drawn batches: add --batches N")
        if self.number < 0 or not 0 <= self.dirichlet < float("inf") or self.seed < 0:
            raise TaskError("the numbers of batches, --dirichlet and the seed are finite numbers from 0 up")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Batches:
        """From JSON values. Raises TaskError for a name that there is not."""
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise TaskError(f"batches have no {min(unknown)!r}: there are: {', '.join(cls.__dataclass_fields__)}")
        return cls(**values)

    def as_values(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "classes": list(self.classes)}

    def deal(self, label: np.ndarray) -> list[np.ndarray]:
        """Positions of the rows of each batch: arrays of int64, the same for the same labels in the same order.

        label: (n,) class of every row. Raises MethodError where it has fewer classes than a drawn batch is asked to
        have.
        """
        if self.number:
            there = len(np.unique(label))
            if self.classes[0] > there or (self.classes[1] > there and self.classes != CLASSES):
                raise MethodError(f"no batch has {'-'.join(map(str, self.classes))} classes, for the images are of "
                                  f"{there}: give --effective-classes such as 1-{there}")
            return [self._few_classes(label, np.random.default_rng([self.seed, each])) for each in range(self.number)]
        random = np.random.default_rng(self.seed)
        order = self._stream(label, random) if self.dirichlet else random.permutation(len(label))
        return [order[start:start + self.size] for start in range(0, len(order), self.size)]

    def _few_classes(self, label: np.ndarray, random: np.random.Generator) -> np.ndarray:
        there = np.unique(label)
        number = min(int(random.integers(self.classes[0], self.classes[1] + 1)), len(there))
        chosen = random.choice(there, number, replace=False)
        if self.balanced:
            each = [np.flatnonzero(label == one) for one in chosen]
            rows = min(max(self.size // number, 1), *map(len, each), len(label))
            return random.permutation(np.concatenate([random.choice(one, rows, replace=False) for one in each]))
        members = np.flatnonzero(np.isin(label, chosen))
        return random.choice(members, min(self.size, len(members)), replace=False)

    def _stream(self, label: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """All rows, slot after slot: the rows of a class are shared out over the slots by shares of a Dirichlet
        distribution; there are as many slots as batches.
        """
        slots: list[list[np.ndarray]] = [[] for _ in range(-(-len(label) // self.size))]
        for number in np.unique(label):
            members = random.permutation(np.flatnonzero(label == number))
            share = random.dirichlet(np.full(len(slots), self.dirichlet))
            ends = (np.cumsum(share)[:-1] * len(members)).astype(np.int64)
            for slot, part in zip(slots, np.split(members, ends), strict=True):
                slot.append(part)
        return np.concatenate([random.permutation(np.concatenate(slot)) for slot in slots])


def parse_orders(text: str) -> tuple[int, ...]:
    """The seeds that a list such as "1-5" or "1,4,9" names.

    Raises TaskError for what is none, or names a seed twice.
    """
    seeds = numbers_in(text)
    if not seeds:
        raise TaskError(f"no orders {text!r}: give seeds of permutations, such as 1-5 or 1,4,9")
    if len({*seeds}) < len(seeds):
        raise TaskError(f"the orders {text!r} name a seed twice: give each once")
    return tuple(seeds)


def orders_for(strategy: Inference | None, orders: Sequence[int] | str | None, batches: bool) -> tuple[int, ...]:
    """Seeds of the orders in which a strategy reads the rows; none but for a stream that is not dealt in batches.

    orders: that are asked for, None for ORDERS. batches: whether batches are.
    Raises TaskError for orders of what is no stream, or that are none.
    """
    stream = strategy is not None and strategy.sees == "stream"
    if orders is None:
        return ORDERS if stream and not batches else ()
    if strategy is not None and not stream:
        raise TaskError(f"--orders is for strategies that read a stream, and {strategy.name} does not: leave it out")
    if batches:
        raise TaskError("--orders and batches are two ways to deal out a stream: give one of them")
    return parse_orders(orders if isinstance(orders, str) else ",".join(map(str, orders)))


def permutation(seed: int, rows: int) -> np.ndarray:
    """The order of a seed, by torch's generator on a CPU: (rows,) int64."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).numpy()


def order_hash(order: np.ndarray) -> str:
    """SHA-256 of a permutation, as little-endian int64."""
    return hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()
