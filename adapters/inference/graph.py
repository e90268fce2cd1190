"""Graphs of nearest neighbours, found in blocks, and what spreads over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_ELEMENTS = 2**24  # similarities that are held at a time: 64 MiB in float32


def nearest(rows: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The largest cosines of each row with the other ones and their positions: two of (n, number), the largest first.

    rows: (n, dim), unit. number: at most as many as there are others. Every pair is multiplied once.
    """
    number = max(min(number, len(rows) - 1), 0)
    cosine = rows.new_full((len(rows), number), -torch.inf)
    index = torch.zeros(len(rows), number, dtype=torch.int64, device=rows.device)

    def merge(place: slice, block: Tensor, start: int) -> None:
        found, where = block.topk(min(number, block.shape[1]), dim=1)
        values, others = torch.cat([cosine[place], found], dim=1), torch.cat([index[place], where + start], dim=1)
        cosine[place], best = values.topk(number, dim=1)
        index[place] = others.gather(1, best)

    step = math.isqrt(_ELEMENTS)
    for start in range(0, len(rows), step):
        mine = slice(start, start + step)
        for other in range(start, len(rows), step):
            block = rows[mine] @ rows[other:other + step].T
            if other == start:
                block.fill_diagonal_(-torch.inf)
            else:
                merge(slice(other, other + step), block.T.contiguous(), start)
            merge(mine, block, other)
    return cosine, index


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows whose similarities with so many columns may be held at a time."""
    step = max(1, _ELEMENTS // max(columns, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def sparse(value: Tensor, index: Tensor, columns: int) -> Tensor:
    """The sparse matrix (n, columns) that has at each row the values (n, k) at the columns `index` (n, k)."""
    row = torch.arange(len(value), device=value.device).repeat_interleave(value.shape[1])
    return torch.sparse_coo_tensor(torch.stack([row, index.flatten()]), value.flatten(), (len(value), columns),
                                   check_invariants=False)


def symmetric(matrix: Tensor) -> Tensor:
    """A sparse matrix (n, n) plus its transpose, coalesced."""
    return (matrix + matrix.t()).coalesce()


def affinity(rows: Tensor, neighbours: int) -> Tensor:
    """`A + A^T` (n, n), sparse, with A the cosines of each unit row (n, dim) with its nearest others, never below 0."""
    value, index = nearest(rows, neighbours)
    return symmetric(sparse(value.clamp_min(0), index, len(rows)))


def normalized(matrix: Tensor) -> Tensor:
    """`D^-1/2 A D^-1/2` of a sparse symmetric matrix (n, n), D its sums; a node without edges stays without."""
    matrix = matrix.coalesce()
    row, column = matrix.indices()
    total = matrix.values().new_zeros(len(matrix)).index_add_(0, row, matrix.values())
    scale = torch.where(total > 0, total.clamp_min(torch.finfo(total.dtype).tiny).rsqrt(), 0.0)
    return torch.sparse_coo_tensor(matrix.indices(), matrix.values() * scale[row] * scale[column], matrix.shape,
                                   check_invariants=False).coalesce()


def propagated(matrix: Tensor, seeds: Tensor, alpha: float, tolerance: float,
               progress: Callable[[float], None]) -> tuple[Tensor, int]:
    """The solution F of `(I - alpha A) F = seeds` by conjugate gradients, all columns at a time, and the steps taken.

    matrix: (n, n), sparse, symmetric, with eigenvalues within -1 and 1. seeds: (n, columns).
    tolerance: largest norm of a column's residual, of its seed's.
    """
    solution, residual = torch.zeros_like(seeds), seeds.clone()
    direction = residual.clone()
    square = residual.square().sum(dim=0)
    goal = square * tolerance**2
    for step in range(1, _STEPS + 1):
        image = direction - alpha * torch.sparse.mm(matrix, direction)
        length = square / (direction * image).sum(dim=0).clamp_min(_TINY)
        solution += length * direction
        residual -= length * image
        before, square = square, residual.square().sum(dim=0)
        progress(step / _STEPS)
        if bool((square <= goal).all()):
            break
        direction.mul_(square / before.clamp_min(_TINY)).add_(residual)
    return solution, step


_STEPS, _TINY = 1000, 1e-30


def assign(first: Tensor, z: Tensor, graph: Tensor, weight: float, steps: int) -> Tensor:
    """Repeat `z <- softmax(first + weight * graph z)` in place; gives the last logits (n, classes).

    first: (n, classes), what each row says by itself. z: (n, classes). graph: (n, n), sparse and symmetric.
    """
    logits = torch.empty_like(first)  # one, because memory that is new at every step costs as much as a product
    for _ in range(steps):
        torch.addmm(first, graph, z, alpha=weight, out=logits)
        torch.softmax(logits, dim=1, out=z)
    return logits
