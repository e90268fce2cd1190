"""Which hyperparameters to take: the most probable ones, given labelled rows and a prior around the defaults.

Of all settings that are tried, the rule takes the one that minimises

    sum over rows of -log softmax(logits / T)[label]  +  sum over hyperparameters of min(1/2 log(value / default)^2, 4),

where T is the temperature that fits the setting's logits best. So a setting is judged by how well its logits tell the
classes apart, not by how sharp they are, and values other than the defaults need evidence: half a nat for a factor of
e, and never more than 4 nats, so that a default which is wrong by orders of magnitude can be left too. With few rows
the defaults stay, with many rows the prior is nothing. `docs/selection.md` has the study that chose the rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from onceclip.adapters.method import Value

OCTAVES = 6  # of mixing weights below the default
MOST = 4.0  # nats that leaving one default costs at most
UNLIKE = 0.5  # nats, for a value that has no ratio to its default
_REACH = math.log(1e12)  # of the search for log T, to both sides
_STEPS = 40  # of Newton's method, which mostly needs five
_CLOSE = 1e-6  # in log T


@dataclass(frozen=True)
class Weighed:
    """The weight that was chosen for `A + weight * B`.

    cost: what the rule minimises, there. accuracy: on the rows that chose it. low, high: the tried weights around it
    whose cost is less than half a nat higher.
    """

    weight: float
    cost: float
    accuracy: float
    low: float
    high: float


def calibrated_loss(logits: Tensor, label: Tensor) -> Tensor:
    """-log softmax(logits / T)[label] of every row (rows,), at the temperature T that suits all of them best.

    T is that of `best_temperature`: it minimises the sum plus (log T)^2 / 2, so that it stays finite where all rows are
    right. The latter is no part of the result.

    logits: (rows, classes). label: (rows,) int64.
    """
    lead = logits.double() - logits.double().gather(1, label.unsqueeze(1))
    low, high, log_temperature = -_REACH, _REACH, 0.0
    for _ in range(_STEPS):
        scaled = lead * math.exp(-log_temperature)
        share = scaled.softmax(dim=1)
        mean = (share * scaled).sum(dim=1)
        slope = log_temperature - float(mean.sum())
        low, high = (low, log_temperature) if slope > 0 else (log_temperature, high)
        curvature = 1 + float(((share * scaled.square()).sum(dim=1) - mean.square() + mean).sum())
        step = slope / curvature if curvature > 0 else math.inf
        last, log_temperature = log_temperature, log_temperature - step
        if not low < log_temperature < high:
            log_temperature = (low + high) / 2
        if abs(log_temperature - last) < _CLOSE:
            break
    return (lead * math.exp(-log_temperature)).logsumexp(dim=1)


def departure(values: Mapping[str, Value], defaults: Mapping[str, Value]) -> float:
    """What the prior charges for values that differ from the defaults of the same names, in nats.

    A number costs half the square of the logarithm of its ratio to the default, and no more than 4. What has no such
    ratio (zero, a text, true or false) costs as much as a factor of e where it differs.
    """
    return sum(_departure(values[name], default) for name, default in defaults.items())


def _departure(value: Value, default: Value) -> float:
    if value == default:
        return 0.0
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) and each > 0
                  for each in (value, default))
    return min(math.log(float(value) / float(default))**2 / 2, MOST) if numbers else UNLIKE


def weights_to_try(default: float, low: float, high: float) -> list[float]:
    """Mixing weights between two bounds: the default times powers of two, and the upper bound where it is finite.

    A default of zero, which has no multiples, is taken for a quarter of the bound, or for one.
    """
    centre = default or (high / 4 if math.isfinite(high) else 1.0)
    most = math.floor(math.log2(high / centre)) if math.isfinite(high) and high > 0 else 2 * OCTAVES
    tried = {default, *(centre * 2.0**power for power in range(-OCTAVES, most + 1))}
    if math.isfinite(high):
        tried.add(high)
    return sorted(weight for weight in tried if low <= weight <= high)


def best_weight(first: Tensor, second: Tensor, label: Tensor, default: float, low: float = 0.0,
                high: float = math.inf) -> Weighed:
    """Choose the weight of `first + weight * second` by the rule.

    Tried are powers of two times the default, then twice the middle, in logarithms, between the best one and its
    neighbours: a weight matters by its size, and accuracy is flat within a fifth of it. Among equals the one nearest to
    the default wins, so that without rows it stays.

    first, second: (rows, classes). label: (rows,) int64.
    """
    costs: dict[float, float] = {}

    def judge(weight: float) -> None:
        if weight not in costs:
            costs[weight] = (float(calibrated_loss(first + weight * second, label).sum())
                             + departure({"weight": weight}, {"weight": default}))

    for weight in weights_to_try(default, low, high):
        judge(weight)
    for _ in range(2):
        best = _least(costs, default)
        for between in _halfway(sorted(costs), best):
            judge(between)
    best = _least(costs, default)
    near = _around(costs, best)
    right = (first + best * second).argmax(dim=1) == label
    return Weighed(best, costs[best], float(right.double().mean()) if len(label) else 0.0, near[0], near[-1])


def _least(costs: Mapping[float, float], default: float) -> float:
    return min(costs, key=lambda weight: (costs[weight], abs(weight - default)))


def _halfway(tried: list[float], best: float) -> list[float]:
    """Geometric means of the best weight and what was tried on either side of it."""
    place = tried.index(best)
    neighbours = tried[max(place - 1, 0):place] + tried[place + 1:place + 2]
    return [math.sqrt(best * other) for other in neighbours if best * other > 0]


def _around(costs: Mapping[float, float], best: float) -> list[float]:
    """The run of tried weights around the best one that cost less than half a nat more, in order."""
    tried = sorted(costs)
    close: Callable[[float], bool] = lambda weight: costs[weight] < costs[best] + 0.5  # noqa: E731
    first = last = tried.index(best)
    while first > 0 and close(tried[first - 1]):
        first -= 1
    while last < len(tried) - 1 and close(tried[last + 1]):
        last += 1
    return tried[first:last + 1]
