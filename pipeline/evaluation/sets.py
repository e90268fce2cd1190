"""How often prediction sets hold the true class, and how large they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from onceclip.adapters.selection.conformal import SetRule


class SetTally:
    """Prediction sets of any number of rows, counted in bounded memory."""

    def __init__(self, rule: SetRule) -> None:
        self.rule, self.rows, self.covered, self.size, self.single = rule, 0, 0, 0, 0

    def add(self, logits: Tensor, label: Tensor, keys: np.ndarray) -> None:
        """Count rows in. logits: (rows, classes). label: (rows,) int64. keys: (rows,) of the images."""
        inside = self.rule.members(logits, list(map(str, keys)))
        size = inside.sum(dim=1)
        self.rows += len(label)
        self.covered += int(inside.gather(1, label[:, None]).sum())
        self.size += int(size.sum())
        self.single += int((size == 1).sum())

    def as_values(self) -> dict[str, Any]:
        """coverage: share of rows whose set holds their class. size: mean number of classes. single: share of one."""
        rows = max(self.rows, 1)
        return {**self.rule.as_values(), "coverage": self.covered / rows, "size": self.size / rows,
                "single": self.single / rows}
