"""The one matrix product of all heads: it knows of a leading axis of runs, so that no method has to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_REDUCED: ContextVar[torch.dtype | None] = ContextVar("reduced", default=None)


@contextmanager
def reduced_products(dtype: torch.dtype | None) -> Iterator[None]:
    """Compute products in a narrower type; everything else, sums and parameters too, stays as it is."""
    token = _REDUCED.set(dtype)
    try:
        yield
    finally:
        _REDUCED.reset(token)


def narrow() -> torch.dtype | None:
    """The narrower type that products are computed in, if they are."""
    return _REDUCED.get()


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """`rows weight^T`: (n, d) times (o, d) gives (n, o).

    Either may have a leading axis of runs, (runs, n, d) and (runs, o, d); then so has the result. Rows that all runs
    share make one large product instead of many small ones.
    """
    dtype, narrower = rows.dtype, narrow()
    if narrower is not None:
        rows, weight = rows.to(narrower), weight.to(narrower)
    if weight.ndim == 3 and rows.ndim == 2:
        wide = weight.flatten(0, 1) @ rows.T  # rows innermost: what follows goes over them at full speed
        return wide.to(dtype).view(*weight.shape[:2], rows.shape[0]).transpose(1, 2)
    return (rows @ weight.transpose(-1, -2)).to(dtype)


def per_run(value: float | Tensor) -> float | Tensor:
    """A number, or one per run (runs,) so that it multiplies (runs, n, o)."""
    return value.view(-1, 1, 1) if isinstance(value, Tensor) and value.ndim == 1 else value
