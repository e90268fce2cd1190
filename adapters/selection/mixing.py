"""The best weight of `A + weight * B` for labelled rows, found exactly instead of on a grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ELEMENTS = 2**17  # of one piece: what a core's cache holds


@dataclass(frozen=True)
class Mixing:
    """weight: the middle of the widest best interval. accuracy: there. low, high: the interval's ends."""

    weight: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Intervals:
    """The weights at which each row is right: those strictly between start and end, none unless start < end.

    start, end: (rows,) float64, minus and plus infinity where there is no bound. Where the row is never right, start is
        plus infinity or both are NaN.
    """

    start: Tensor
    end: Tensor

    def accuracy(self, weights: Tensor) -> Tensor:
        """Share of rows that are right at some weights (weights,)."""
        right = self.start < self.end
        begun = torch.searchsorted(self.start[right].sort().values, weights)
        ended = torch.searchsorted(self.end[right].sort().values, weights, right=True)
        return (begun - ended).double() / max(len(right), 1)


def intervals(first: Tensor, second: Tensor, label: Tensor) -> Intervals:
    """Find where every row of `first + weight * second` has its largest logit at its label.

    With dA = A_y - A_j and dB = B_y - B_j over the other classes j, the ends are the largest -dA/dB where dB > 0 and
    the smallest where dB < 0; where dB = 0 and dA <= 0 no weight helps.

    first, second: (rows, classes). label: (rows,) int64.
    Source: the same argument for one mixing weight is the line search of minimum error rate training (Och, ACL 2003).
    """
    step = max(1, _ELEMENTS // first.shape[1]) if first.device.type == "cpu" else max(len(label), 1)
    pieces = [_intervals(*piece)
              for piece in zip(first.split(step), second.split(step), label.split(step), strict=True)]
    start, end = (torch.cat([piece[side] for piece in pieces]).double() for side in (0, 1))
    return Intervals(start, end)


def _intervals(first: Tensor, second: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    column = label.unsqueeze(1)
    lead = first - first.gather(1, column)  # of the other classes at weight 0
    gain = (second.gather(1, column) - second).add_(0.0)  # of the label over them; adding 0 makes every zero positive
    # The label itself bounds nothing: its lead of -1 over a gain of 0 is minus infinity. A class that leads and that
    # no weight can catch gives plus infinity, one that is level with the label for ever NaN: never right.
    crossing = lead.scatter_(1, column, -1.0).div_(gain)
    # Infinity with the sign of the gain leaves a crossing alone on its side and takes it away on the other: many times
    # faster than a mask.
    aside = torch.copysign(gain.new_tensor(torch.inf), gain)
    return torch.minimum(crossing, aside).amax(dim=1), torch.maximum(crossing, aside).amin(dim=1)


def best_weight(first: Tensor, second: Tensor, label: Tensor, high: float, low: float = 0.0) -> Mixing:
    """Maximise the accuracy of `first + weight * second` over all real weights between low and high.

    A row is right on one open interval of weights. Accuracy is a step function of the weight, so sorting the ends of
    the intervals gives its maximum in O(rows classes + rows log rows).

    first, second: (rows, classes). label: (rows,) int64. low, high: may be equal, or infinite.
    Ties go to the middle of the widest best interval; in one without an end, to one beyond twice its other end.
    """
    found = intervals(first, second, label)
    start, end = found.start.clamp(min=low), found.end.clamp(max=high)  # NaN stays, and is smaller than nothing
    if low == high:
        right = (found.start < low) & (low < found.end)
        return Mixing(low, float(right.double().mean()) if len(right) else 0.0, low, high)
    right = start < end
    ends = torch.cat([start[right], end[right], start.new_tensor([low, high])]).unique()
    # Number of right rows between neighbouring ends: those begun so far minus those ended.
    begun = torch.searchsorted(start[right].sort().values, ends[:-1], right=True)
    ended = torch.searchsorted(end[right].sort().values, ends[:-1], right=True)
    count = begun - ended
    width = torch.where(count == count.max(), ends.diff(), -torch.inf)
    best = int(width.argmax())
    begin, finish = float(ends[best]), float(ends[best + 1])
    return Mixing(_middle(begin, finish), float(count[best]) / max(len(label), 1), begin, finish)


def _middle(begin: float, finish: float) -> float:
    if finish < torch.inf:
        return begin / 2 + finish / 2 if begin > -torch.inf else finish - abs(finish) - 1
    return begin + abs(begin) + 1 if begin > -torch.inf else 0.0
