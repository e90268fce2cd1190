"""What every head is."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor


class Head:
    """Maps unit rows (rows, dim) to logits (rows, classes). A head is a frozen dataclass.

    name: what saved adapters call it.
    """

    name: ClassVar[str]

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
