"""Batches of query rows as they come in practice: few classes at a time, or a stream whose classes drift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onceclip.adapters import MethodError
from onceclip.pipeline.errors import TaskError


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
    classes: tuple[int, int] = (1, 4)
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

        label: (n,) class of every row. Raises MethodError where it has fewer classes than a drawn batch is to have.
        """
        if self.number:
            there = len(np.unique(label))
            if self.classes[0] > there:
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
