"""Few-shot draws: which training rows a run may see, decided by keys and a seed alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onceclip.stores.identity import digest, fingerprint

GENERATOR, LISTED = "blake2b-rank-1", "listed"  # of keys and a seed; by a file


@dataclass(frozen=True)
class Draw:
    """Rows drawn from a store.

    rows: (n,) positions in the store, class by class. keys: their keys. short: classes that had fewer rows than
    asked for, with their number. wrong: labels that are told instead of the true ones, by place among the rows.
    """

    rows: np.ndarray
    keys: tuple[str, ...]
    short: dict[int, int] = field(default_factory=dict)
    wrong: dict[int, int] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Identity of the draw: the set of its keys, and labels that are wrong."""
        wrong = {self.keys[place]: label for place, label in self.wrong.items()}
        return fingerprint({"generator": GENERATOR, "keys": sorted(self.keys), **({"wrong": wrong} if wrong else {})})

    def told(self, label: np.ndarray) -> np.ndarray:
        """The labels (n,) that a run is told. label: the true ones (n,)."""
        told = label.copy()
        told[list(self.wrong)] = list(self.wrong.values())
        return told


def draw(rows: np.ndarray, keys: Sequence[str], label: np.ndarray, shots: int | Mapping[int, int] | None, seed: int,
         purpose: str) -> Draw:
    """Draw up to `shots` rows of every class without replacement, or all of them; a number for each class or for all.

    rows: (n,) candidates. keys, label: of these candidates. purpose: "support" or "val"; each draws on its own.
    A row's rank in its class is a hash of purpose, seed and key. So a draw is the same on every machine and in
    every order of rows, fewer shots are a subset of more, and another class's images never move it.
    """
    chosen: list[int] = []
    short = {}
    for number in np.unique(label):
        members = np.flatnonzero(label == number)
        ranked = sorted(members.tolist(), key=lambda each: digest(f"{purpose}:{seed}:{keys[each]}".encode()))
        most = shots[int(number)] if isinstance(shots, Mapping) else shots
        if most is not None and len(ranked) < most:
            short[int(number)] = len(ranked)
        chosen.extend(ranked[:most])
    return Draw(rows[chosen], tuple(str(keys[each]) for each in chosen), short)
