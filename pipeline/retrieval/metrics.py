"""How high the relevant candidates of every query stand; ties count half, so that a constant score gains nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.pipeline.evaluation.statistics import row_interval

AT = (1, 5, 10)
_FEW = 8  # relevant candidates of a query up to which comparing with all is faster than sorting all


@dataclass(frozen=True)
class Ranks:
    """Of every query: (queries,) float64. rank: of the best relevant candidate. precision: average precision.
    gain: normalized discounted cumulative gain.
    """

    rank: np.ndarray
    precision: np.ndarray
    gain: np.ndarray

    @classmethod
    def together(cls, parts: list[Ranks]) -> Ranks:
        """The ranks of several blocks of queries as one."""
        return cls(*(np.concatenate([getattr(each, name) for each in parts])
                     for name in ("rank", "precision", "gain")))


def ranks_of(scores: Tensor, relevant: Tensor) -> Ranks:
    """Rank relevant candidates by scores.

    A candidate's rank is 1 + the number of higher scores + half the number of other equal ones. Where a query has
    several relevant ones, the best counts, and only others are ahead of it.
    scores: (queries, candidates). relevant: (queries, most) positions of candidates, each row filled with -1.
    """
    there = relevant >= 0
    own = scores.gather(1, relevant.clamp_min(0)).masked_fill(~there, -torch.inf)
    higher, equal = _counts(scores, own)
    higher_own, equal_own = _counts_sorted(own.sort(dim=1).values, own)
    rank = 1 + higher + (equal - 1) / 2
    among = 1 + higher_own + (equal_own - 1) / 2
    ahead = (1 + higher - higher_own + (equal - equal_own) / 2).masked_fill(~there, torch.inf)
    number = there.sum(dim=1)
    best = 1 / torch.log2(torch.arange(relevant.shape[1], dtype=torch.float64) + 2)
    gain = (1 / torch.log2(rank + 1)).masked_fill(~there, 0).sum(dim=1) / best.cumsum(0)[number - 1]
    precision = (among / rank).masked_fill(~there, 0).sum(dim=1) / number
    return Ranks(ahead.amin(dim=1).numpy(), precision.numpy(), gain.numpy())


def _counts(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """How many scores of each row are higher than, and how many equal to, some values (queries, values): float64."""
    if values.shape[1] > _FEW:
        return _counts_sorted(scores.sort(dim=1).values, values)
    rows, own = scores.numpy(), values.numpy()  # numpy counts eight times as fast as torch on a CPU
    pairs = [(np.count_nonzero(rows > each[:, None], axis=1), np.count_nonzero(rows == each[:, None], axis=1))
             for each in own.T]
    higher, equal = (torch.from_numpy(np.stack(each, axis=1)).double() for each in zip(*pairs, strict=True))
    return higher, equal


def _counts_sorted(rising: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    values = values.contiguous()
    left, right = torch.searchsorted(rising, values), torch.searchsorted(rising, values, right=True)
    return (rising.shape[1] - right).double(), (right - left).double()


def relevant_of(pointer: np.ndarray, start: int, stop: int) -> Tensor:
    """Consecutive candidates of every query of a block, filled with -1. pointer: (queries + 1,) where they begin."""
    sizes = np.diff(pointer[start:stop + 1])
    step = np.arange(sizes.max())
    return torch.from_numpy(np.where(step < sizes[:, None], pointer[start:stop, None] + step, -1))


def summary(ranks: Ranks, unit: np.ndarray | None) -> dict[str, Any]:
    """Scores of all queries as JSON values: recall at 1, 5 and 10 with 95 % bootstrap intervals, and means.

    unit: (queries,) items, which are drawn as a whole, with all their captions; None where every query is an item.
    """
    found: dict[str, Any] = {"queries": len(ranks.rank)}
    for most in AT:
        hit = ranks.rank <= most
        found |= {f"r{most}": float(hit.mean()), f"r{most}_interval": list(row_interval(hit, unit))}
    return found | {"median_rank": float(np.median(ranks.rank)), "mean_rank": float(ranks.rank.mean()),
                    "map": float(ranks.precision.mean()), "ndcg": float(ranks.gain.mean())}
