"""What every head is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import Tensor

_NONE = torch.empty(0, dtype=torch.float32)


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
        return next(_floating(self), _NONE).dtype

    @property
    def device(self) -> torch.device:
        """Where it computes: on the device of that tensor."""
        return next(_floating(self), _NONE).device


def _floating(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from _floating(each)
    elif isinstance(value, Head):
        yield from _floating(tuple(getattr(value, field.name) for field in fields(value)))  # type: ignore[arg-type]
