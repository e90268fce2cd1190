"""The best weight of `A + weight * B` for labelled rows, found exactly instead of on a grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixing:
    """weight: the middle of the widest best interval. accuracy: there. low, high: the interval's ends."""

    weight: float
    accuracy: float
    low: float
    high: float


def best_weight(first: Tensor, second: Tensor, label: Tensor, high: float, low: float = 0.0) -> Mixing:
    """Maximise the accuracy of `first + weight * second` over all real weights between low and high.

    A row is right on one open interval of weights: with dA = A_y - A_j and dB = B_y - B_j over the other
    classes j, its ends are the largest -dA/dB where dB > 0 and the smallest where dB < 0. Accuracy is a step
    function of the weight, so sorting the ends gives its maximum in O(rows classes + rows log rows).

    first, second: (rows, classes). label: (rows,) int64.
    Ties go to the middle of the widest best interval.
    """
    column = label.unsqueeze(1)
    gap_first = (first.gather(1, column) - first).double()
    gap_second = (second.gather(1, column) - second).double()
    crossing = -gap_first / gap_second
    infinity = crossing.new_tensor(float("inf"))
    other = torch.ones_like(crossing, dtype=torch.bool).scatter_(1, column, False)
    start = torch.where(other & (gap_second > 0), crossing, -infinity).amax(dim=1).clamp(min=low)
    end = torch.where(other & (gap_second < 0), crossing, infinity).amin(dim=1).clamp(max=high)
    never = (other & (gap_second == 0) & (gap_first <= 0)).any(dim=1)
    right = ~never & (start < end)

    ends = torch.cat([start[right], end[right], start.new_tensor([low, high])]).unique()
    # Number of right rows between neighbouring ends: those begun so far minus those ended.
    begun = torch.searchsorted(start[right].sort().values, ends[:-1], right=True)
    ended = torch.searchsorted(end[right].sort().values, ends[:-1], right=True)
    count = begun - ended
    width = torch.where(count == count.max(), ends.diff(), -infinity)
    best = int(width.argmax())
    begin, finish = float(ends[best]), float(ends[best + 1])
    middle = (begin + finish) / 2 if finish < float("inf") else 2 * begin + 1
    return Mixing(middle, float(count[best]) / len(label), begin, finish)
