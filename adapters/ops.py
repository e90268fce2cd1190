"""Unit vectors, copies of tensors elsewhere, and the matrix product that knows of a leading axis of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

_SHORTEST = 1e-12


def unit(vectors: Tensor) -> Tensor:
    """Scale vectors (..., dim) to length one."""
    if vectors.requires_grad and torch.is_grad_enabled():
        return _Unit.apply(vectors)[0]
    return normalize(vectors, dim=-1)


class _Unit(torch.autograd.Function):
    """The same with a derivative in three passes over memory instead of ten: training small adapters lives on it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(vectors: Tensor) -> tuple[Tensor, Tensor]:
        scale = vectors.norm(dim=-1, keepdim=True).clamp_min(_SHORTEST).reciprocal()
        return vectors * scale, scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
        vectors, scale = ctx.saved_tensors
        return (gradient - vectors * (vectors * gradient).sum(dim=-1, keepdim=True)) * scale


# torch looks it up at every call, which takes as long as a product.
_Unit.forward.__signature__ = signature(_Unit.forward)  # type: ignore[attr-defined]


def whole_precision(values: Tensor) -> Tensor:
    """Values in float32 where they are stored in half of it."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def mover(where: torch.device | torch.dtype | str) -> Callable[[Any], Any]:
    """A function that gives tensors on another device, or floating ones in another precision, and all else as it is."""
    def move(value: Any) -> Any:
        if not isinstance(value, Tensor) or (isinstance(where, torch.dtype) and not value.is_floating_point()):
            return value
        return value.to(where)

    return move


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


def class_sums(values: Tensor, label: Tensor, classes: int) -> Tensor:
    """Add up the rows of values (rows, ...) that have the same label (rows,): (classes, ...)."""
    return values.new_zeros(classes, *values.shape[1:]).index_add(0, label, values)


def place_in_class(label: Tensor, classes: int) -> Tensor:
    """Number of rows of the same label (rows,) that stand before each row: (rows,) int64."""
    order, count = label.argsort(stable=True), torch.bincount(label, minlength=classes)
    place = torch.empty_like(label)
    place[order] = torch.arange(len(label), device=label.device) - (count.cumsum(0) - count)[label[order]]
    return place


def best_of_classes(label: Tensor, score: Tensor, classes: int, most: int) -> Tensor:
    """Positions (n,) of the rows of highest score of each class, class by class, best first; of equals the first.

    label: (rows,) of the classes; score: (rows,). most: rows of a class that are kept.
    """
    order = score.argsort(descending=True, stable=True)
    order = order[place_in_class(label[order], classes) < most]
    return order[label[order].argsort(stable=True)]


def ties_of(rows: Tensor, group: Tensor | None) -> Tensor:
    """Numbers (n,), on the CPU, which rows (n, dim) share that know each other: copies, and those of one group.

    group: (n,) int64, -1 for a row of none; None where no row has one.
    """
    own = torch.arange(len(rows))
    copies = torch.tensor([hash(row.tobytes()) for row in rows.detach().cpu().numpy()], dtype=torch.int64)
    groups = own if group is None else torch.where(group.cpu() < 0, -1 - own, group.cpu())
    sets = [each.unique(return_inverse=True)[1] for each in (copies, groups)]
    found, before = own, own - 1
    while not torch.equal(found, before):  # a copy ties its group to another one
        before = found
        for each in sets:
            found = torch.full_like(own, len(own)).scatter_reduce(0, each, found, "amin")[each]
    return found


def are_tied(rows: Tensor, group: Tensor | None) -> bool:
    """Whether some row is known by another one, so that it says too much where it is left out; as of `ties_of`."""
    return len(ties_of(rows, group).unique()) < len(rows)
