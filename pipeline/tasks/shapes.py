"""Draws that are not balanced and clean: long-tailed, of the natural prior, with wrong labels, with classes missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onceclip.adapters.errors import unknown
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.tasks.draws import Draw, draw
from onceclip.stores.identity import digest


@dataclass(frozen=True)
class Shape:
    """How the support of a run differs from K images of every class; validation images stay as they are.

    long_tail: how many times as many images the largest class has as the smallest; between them the numbers fall
        exponentially, over the classes in an order of the seed (Cui et al., CVPR 2019, section 5).
    natural_prior: K times the number of classes in all, drawn without regard to class.
    label_noise: the probability with which a label is replaced by another class, all alike (symmetric noise).
    missing: classes without any labelled image, a number of them chosen by the seed or their names; these have no
        validation images either.
    Raises TaskError for values that mean nothing.
    """

    long_tail: float = 1.0
    natural_prior: bool = False
    label_noise: float = 0.0
    missing: int | tuple[str, ...] = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.long_tail, int | float) and 1 <= self.long_tail < float("inf")):
            raise TaskError(f"--long-tail {self.long_tail}: give a ratio from 1 up, such as 10")
        if not (isinstance(self.label_noise, int | float) and 0 <= self.label_noise < 1):
            raise TaskError(f"--label-noise {self.label_noise}: give a probability from 0 to below 1")
        if isinstance(self.missing, int) and self.missing < 0:
            raise TaskError(f"--missing {self.missing}: give a number of classes, or their names")
        if self.natural_prior and self.long_tail != 1:
            raise TaskError("--long-tail and --natural-prior are two ways to say how many images classes have: give "
                            "one of them")

    def absent(self, classes: Sequence[str], seed: int) -> frozenset[int]:
        """Positions of the classes that are missing.

        Raises TaskError for a name that is no class, or if fewer than two classes would be left.
        """
        if isinstance(self.missing, int):
            chosen = _order(classes, f"missing:{seed}")[:self.missing]
        else:
            for name in self.missing:
                if name not in classes:
                    raise TaskError(unknown("class", name, classes, " that --missing could leave out"))
            chosen = [classes.index(name) for name in self.missing]
        if chosen and len(classes) - len(set(chosen)) < 2:
            raise TaskError(f"--missing leaves {len(classes) - len(set(chosen))} of {len(classes)} classes with "
                            "images: leave two or more")
        return frozenset(chosen)

    def support(self, rows: np.ndarray, keys: Sequence[str], label: np.ndarray, shots: int | None, seed: int,
                classes: Sequence[str]) -> Draw:
        """Draw the support. rows, keys, label: of the candidates, as of `draw`; classes: their names."""
        if self == BALANCED:
            return draw(rows, keys, label, shots, seed, "support")
        there = ~np.isin(label, list(self.absent(classes, seed)))
        rows, keys, label = rows[there], [key for key, kept in zip(keys, there, strict=True) if kept], label[there]
        if self.natural_prior:
            number = None if shots is None else shots * len(classes)
            drawn = _by_class(draw(rows, keys, np.zeros(len(rows), np.int64), number, seed, "support"), rows, label)
        else:
            drawn = draw(rows, keys, label, self._counts(label, shots, seed, classes), seed, "support")
        return self._with_noise(drawn, rows, label, seed, len(classes))

    def _counts(self, label: np.ndarray, shots: int | None, seed: int,
                classes: Sequence[str]) -> int | dict[int, int] | None:
        if self.long_tail == 1 or not len(label):
            return shots
        most = shots or int(np.bincount(label).max())
        steps = max(len(classes) - 1, 1)
        return {number: max(1, round(most * self.long_tail ** (-place / steps)))
                for place, number in enumerate(_order(classes, f"tail:{seed}"))}

    def _with_noise(self, drawn: Draw, rows: np.ndarray, label: np.ndarray, seed: int, classes: int) -> Draw:
        if not self.label_noise:
            return drawn
        true = dict(zip(rows.tolist(), label.tolist(), strict=True))
        wrong = {}
        for place, (row, key) in enumerate(zip(drawn.rows.tolist(), drawn.keys, strict=True)):
            number = digest(f"noise:{seed}:{key}".encode("utf-8", "surrogatepass"))
            if int.from_bytes(number[:8], "big") < self.label_noise * 2**64:
                step = 1 + int.from_bytes(number[8:], "big") % (classes - 1)
                wrong[place] = (true[row] + step) % classes
        return replace(drawn, wrong=wrong)

    def as_row(self, label: np.ndarray, drawn: Draw, seed: int, classes: Sequence[str]) -> dict[str, Any]:
        """What a result row says of a draw. label: the true ones of its rows."""
        counts = Counter(label.tolist())
        return {"support_counts": [counts[number] for number in range(len(classes))],
                "n_wrong_labels": len(drawn.wrong),
                "missing_classes": [classes[number] for number in sorted(self.absent(classes, seed))]}


BALANCED = Shape()


def _order(classes: Sequence[str], purpose: str) -> list[int]:
    """Positions of classes in an order that their names decide."""
    return sorted(range(len(classes)), key=lambda number: digest(
        f"{purpose}:{classes[number]}".encode("utf-8", "surrogatepass")))


def _by_class(drawn: Draw, rows: np.ndarray, label: np.ndarray) -> Draw:
    """The same draw, class by class."""
    true = dict(zip(rows.tolist(), label.tolist(), strict=True))
    order = sorted(range(len(drawn.rows)), key=lambda place: true[int(drawn.rows[place])])
    return Draw(drawn.rows[order], tuple(drawn.keys[place] for place in order))
