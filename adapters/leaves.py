"""The tensors and plain values that an object is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

_PLAIN = (int, float, str, bytes, type, type(None))


def leaves(value: Any) -> list[Any]:
    """All tensors and plain values in an object, in the order of its fields; of what else there is, which it is.

    Two objects whose leaves are alike make the same computation.
    """
    return list(_leaves(value, set()))


def _leaves(value: Any, seen: set[int]) -> Iterator[Any]:
    if isinstance(value, (Tensor, *_PLAIN)):
        yield value
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    parts = (value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (tuple, list)) else
             vars(value).items() if hasattr(value, "__dict__") and not callable(value) else None)
    if parts is None:
        yield type(value), id(value)
        return
    yield type(value)
    for name, part in parts:
        yield name
        yield from _leaves(part, seen)


def kind(leaf: Any) -> Any:
    """What must be equal of two leaves: the form of a tensor, the type and value of all else."""
    return (tuple(leaf.shape), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else (type(leaf), leaf)
