"""What every head is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import Tensor


class Head:
    """Maps unit rows (rows, dim) to logits (rows, classes). A head is a frozen dataclass.

    name: what saved adapters call it.
    """

    name: ClassVar[str]

    def __call__(self, rows: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} defines no __call__(rows)")

    @property
    def width(self) -> int:
        """Number of columns of the largest intermediate tensor: evaluation sizes its pieces by it."""
        raise NotImplementedError(f"{type(self).__name__} defines no width")

    @property
    def dtype(self) -> torch.dtype:
        """Floating type that it computes in: that of its first floating tensor, which may be one of an inner head."""
        values = tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return next(_dtypes(values), torch.float32)


def _dtypes(value: Any) -> Iterator[torch.dtype]:
    if isinstance(value, Head) or (isinstance(value, Tensor) and value.is_floating_point()):
        yield value.dtype
    elif isinstance(value, tuple):
        for each in value:
            yield from _dtypes(each)
