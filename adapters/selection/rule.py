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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onceclip.adapters.heads.batched import elements_at_once
from onceclip.adapters.task import Rows
from onceclip.adapters.training.trainable import Value

RULE = "calibrated"  # what rows say chose their values; those of before say nothing
OCTAVES = 6  # of mixing weights below the default
MOST = 4.0  # nats that leaving one default costs at most
UNLIKE = 0.5  # nats, for a value that has no ratio to its default
LOGITS = 2**27  # elements of logits (rows, classes) that a choice is made on at most: 512 MiB in float32
_REACH = math.log(1e12)  # of the search for log T, to both sides
_STEPS = 60  # of Newton's method, which mostly needs five
_EXACT, _CLOSE = 1e-9, 0.03  # steps in log T that are the last: where T counts, and where only the loss does
_PIECE = 2**18  # logits that are looked at in one go: what a core's caches hold
_PASSES, _NEAR = 8, 1.0  # of Newton's method for a bound, and twice the nats from its end that are near enough
_FIRM = 10.0  # curvature of a loss from which it is as good as a parabola, and the prior hardly moves its end
_FLAT = 1e-9  # curvature by the weight at least, which is none where it changes nothing
_LOG2_E = math.log2(math.e)
_RISE = 1.0  # nats of a loss above the least cost from which it does not fall below that again


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


def some_rows(rows: Rows, classes: int) -> Rows:
    """The rows, or every second, third, ... of so many that their logits would have more than 2**27 elements."""
    step = -(-len(rows) * classes // LOGITS)
    return rows if step <= 1 else rows.at(slice(None, None, step))


def calibrated_loss(logits: Tensor, label: Tensor) -> Tensor:
    """-log softmax(logits / T)[label] of every row (rows,), at the temperature T that suits all of them best.

    T is that of `best_temperature`: it minimises the sum plus (log T)^2 / 2, so that it stays finite where all rows are
    right. The latter is no part of the result.

    logits: (rows, classes). label: (rows,) int64.
    """
    return _calibrate(label, lambda: _leads(logits, label, torch.float64), 0.0, _EXACT)[0]


def accuracy(logits: Tensor, label: Tensor) -> float:
    """Share of rows whose highest logit (rows, classes) is that of the label (rows,)."""
    return float((logits.argmax(dim=1) == label).double().mean())


def best_temperature(logits: Tensor, label: Tensor) -> float:
    """Find the temperature T with which `softmax(logits / T)` is the most likely for labelled rows.

    It minimises the sum of -log softmax(logits / T)[label] over the rows, plus (log T)^2 / 2. The latter takes log T
    for a draw of N(0, 1), so that T stays finite where all rows are right, or all wrong; it loses its weight as rows
    are added, and without rows T is 1.

    logits: (rows, classes). label: (rows,) int64.
    Source: On Calibration of Modern Neural Networks (Guo et al., ICML 2017), section 4.2, temperature scaling.
    """
    return math.exp(_calibrate(label, lambda: _leads(logits, label, torch.float64), 0.0, _EXACT)[2])


def _leads(logits: Tensor, label: Tensor, dtype: torch.dtype, more: Tensor | None = None,
           weight: float = 0.0) -> Iterator[Tensor]:
    """How far all classes are ahead of the label (n, classes), piece by piece, by `logits + weight * more`."""
    step = _step(logits)
    for start in range(0, max(len(label), 1), step):
        piece = slice(start, start + step)
        values = logits[piece].to(dtype)
        own = label[piece].unsqueeze(1)
        if more is None:
            yield values - values.gather(1, own)
        else:
            values = torch.add(values, more[piece], alpha=weight)
            yield values.sub_(values.gather(1, own))


def _step(logits: Tensor) -> int:
    """Number of rows whose logits are looked at in one go."""
    return max(1, (_PIECE if logits.device.type == "cpu" else elements_at_once("cuda")) // logits.shape[1])


def _calibrate(label: Tensor, leads: Callable[[], Iterator[Tensor]], start: float,
               close: float) -> tuple[Tensor, float, float]:
    """Losses of all rows (rows,) at their best temperature, their sum, and its logarithm, by Newton's method in bounds.

    leads: gives what `_leads` does; it is changed. start: first guess of the logarithm. close: length of the last step,
    over which the sum alone is extrapolated.
    """
    low, high, log_temperature = -_REACH, _REACH, start
    # Filled in place: small tensors kept between large ones would cut up the memory that the large ones leave.
    loss, mean, square = moments = label.new_empty((3, len(label)), dtype=torch.float64)
    for _ in range(_STEPS):
        done = 0
        for lead in leads():
            moments[:, done:done + len(lead)] = _moments(lead.mul_(math.exp(-log_temperature)))
            done += len(lead)
        slope = log_temperature - float(mean.sum())
        low, high = (low, log_temperature) if slope > 0 else (log_temperature, high)
        curvature = 1 + float((square - mean.square() + mean).sum())
        step = slope / curvature if curvature > 0 else math.inf
        if abs(step) < close or high - low < close:
            break
        log_temperature -= step
        if not low < log_temperature < high:
            log_temperature = (low + high) / 2
    step = step if abs(step) < close else 0.0
    total = float(loss.sum()) + step * float(mean.sum()) + (curvature - 1) / 2 * step**2
    return loss, total, log_temperature - step


def _moments(scaled: Tensor) -> Tensor:
    """log sum exp of every row of leads (n, classes), their mean and mean square under its softmax: (3, n) float64."""
    most = scaled.amax(dim=1, keepdim=True)
    share = (scaled - most).mul_(_LOG2_E).exp2_()  # four times as fast as exp on some CPUs
    total = share.sum(dim=1).double()
    mean = share.mul_(scaled).sum(dim=1).double() / total
    square = share.mul_(scaled).sum(dim=1).double() / total
    return torch.stack([most.squeeze(1).double() + total.log(), mean, square])


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
                high: float = math.inf, near: tuple[float, float] | None = None) -> Weighed:
    """Choose the weight of `first + weight * second` by the rule.

    Tried are powers of two times the default, then twice the middle, in logarithms, between the best one and its
    neighbours: a weight matters by its size, and accuracy is flat within a fifth of it. Among equals the one nearest to
    the default wins, so that without rows it stays. At the best temperatures the loss has one valley, since it is
    convex in 1 / T and weight / T: once it has risen above the least cost, nothing better lies beyond.

    first, second: (rows, classes). label: (rows,) int64. near: a weight and log T to begin with, in place of the
    default and 0, from where it takes less time.
    """
    losses: dict[float, float] = {}
    costs: dict[float, float] = {}
    begin, log_temperature = near or (default, 0.0)

    def loss_of(weight: float) -> float:
        nonlocal log_temperature
        if weight not in losses:
            _, losses[weight], log_temperature = _calibrate(
                label, lambda: _leads(first, label, first.dtype, second, weight), log_temperature, _CLOSE)
            costs[weight] = losses[weight] + departure({"weight": weight}, {"weight": default})
        return losses[weight]

    tried = weights_to_try(default, low, high)
    place = min(range(len(tried)), key=lambda place: abs(tried[place] - begin))
    for way in (tried[place:], tried[place::-1]):
        for weight in way:
            if loss_of(weight) > min(costs.values()) + _RISE:
                break
    for _ in range(2):
        for between in halfway(sorted(costs), _least(costs, default)):
            loss_of(between)
    best = _least(costs, default)
    pieces = zip(first.split(_step(first)), second.split(_step(first)), label.split(_step(first)), strict=True)
    right = sum(int((one + best * other).argmax(dim=1).eq(own).sum()) for one, other, own in pieces if len(own))
    return Weighed(best, costs[best], right / max(len(label), 1), *_around(costs, best))


@dataclass
class Race:
    """Finds the best weights of settings that are given one by one, and passes over those that cannot win.

    A pass over the rows gives the loss and its first two derivatives by the logarithms of 1 / T and of the weight, and
    Newton's method goes on from where the last setting ended: mostly one pass says that a setting is too dear. Only
    others are searched with `best_weight`. The one that wins is the one that wins without.

    label: (rows,). default, low, high: of the weight. best: the least cost so far.
    """

    label: Tensor
    default: float
    low: float = 0.0
    high: float = math.inf
    best: float = math.inf
    point: tuple[float, float] = 0.0, 0.0  # logarithms of 1 / T and of the weight, where the last setting ended

    def weigh(self, first: Tensor, second: Tensor, charge: float = 0.0) -> Weighed:
        """What `best_weight` finds, with a charge for the setting's other values in its cost.

        The cost of a setting that was passed over is one that it does not get below, and its accuracy is NaN.
        """
        near = None
        if self.default > 0 and self.best < math.inf:
            least = self._bound(first, second)
            if least + charge > self.best:
                weight = math.exp(self.point[1])
                return Weighed(weight, least + charge, math.nan, weight, weight)
            near = math.exp(self.point[1]), -self.point[0]
        found = best_weight(first, second, self.label, self.default, self.low, self.high, near)
        found = replace(found, cost=found.cost + charge)
        self.best = min(self.best, found.cost)
        self.point = self.point[0], math.log(found.weight or self.default or 1.0)
        return found

    def _bound(self, first: Tensor, second: Tensor) -> float:
        """A cost that no weight gets below, minus infinity where none is known; `point` is then close to the best."""
        default = math.log(self.default)
        low = max(math.log(self.low) if self.low else -math.inf, default - OCTAVES * math.log(2))
        high = min(math.log(self.high), default + 2 * OCTAVES * math.log(2))
        sharpness, weight = self.point
        for _ in range(_PASSES):
            loss, slope, bend = _derivatives(first, second, self.label, math.exp(sharpness), math.exp(weight))
            slope[0] += sharpness
            matrix = [bend[0] + 1, bend[1], max(bend[2], _FLAT)]
            outwards = (weight <= low and slope[1] > 0) or (weight >= high and slope[1] < 0)
            if outwards:  # at a bound that the loss would leave
                slope[1], matrix[1] = 0.0, 0.0
            whole = max(matrix[0] * matrix[2] - matrix[1]**2, matrix[0] * _FLAT)
            steps = ((matrix[2] * slope[0] - matrix[1] * slope[1]) / whole,
                     (matrix[0] * slope[1] - matrix[1] * slope[0]) / whole)
            gain = slope[0] * steps[0] + slope[1] * steps[1]  # twice what the step should give
            if not math.isfinite(gain):  # logits that are not: the next setting begins anew
                self.point = 0.0, default
                return -math.inf
            ahead = min(max(weight - steps[1], low), high)
            held = whole / matrix[0]  # of the loss by the weight, at the best temperatures
            departed = min(held / (1 + held) * (ahead - default)**2 / 2, MOST)
            least = loss - gain - max(sharpness**2, (sharpness - steps[0])**2) / 2 + departed
            sharpness -= min(max(steps[0], -1.0), 1.0)
            weight = min(max(weight - min(max(steps[1], -1.0), 1.0), low), high)
            self.point = sharpness, weight
            if gain < _NEAR:
                return least if bend[0] > _FIRM and (held > _FIRM or outwards) else -math.inf
        return -math.inf


def _derivatives(first: Tensor, second: Tensor, label: Tensor, sharpness: float,
                 weight: float) -> tuple[float, list[float], list[float]]:
    """The loss of `sharpness (first + weight second)`, its slopes and its bends by the logarithms of both factors.

    The bends are the variances and the covariance: those of the loss at a point where its slopes vanish.
    """
    loss, slope, bend, by_weight = 0.0, [0.0, 0.0], [0.0, 0.0, 0.0], sharpness * weight
    for start in range(0, len(label), _step(first)):
        piece = slice(start, start + _step(first))
        other, own = second[piece], label[piece].unsqueeze(1)
        other = other - other.gather(1, own)  # what all classes have alike would drown their differences
        lead = torch.add(first[piece], other, alpha=weight)
        lead.sub_(lead.gather(1, own)).mul_(sharpness)
        most = lead.amax(dim=1, keepdim=True)
        share = (lead - most).mul_(_LOG2_E).exp2_()
        total = share.sum(dim=1, keepdim=True)
        loss += float((most.double() + total.double().log()).sum())
        share.div_(total)
        both = [share * lead, share.mul_(other)]
        mean, part = (each.sum(dim=1) for each in both)
        slope[0] += float(mean.sum())
        slope[1] += by_weight * float(part.sum())
        bend[0] += float(both[0].flatten() @ lead.flatten() - mean @ mean)
        bend[1] += by_weight * float(both[0].flatten() @ other.flatten() - mean @ part)
        bend[2] += by_weight**2 * float(both[1].flatten() @ other.flatten() - part @ part)
    return loss, slope, bend


def _least(costs: Mapping[float, float], default: float) -> float:
    return min(costs, key=lambda weight: (costs[weight], abs(weight - default)))


def halfway(tried: Sequence[float], best: float) -> list[float]:
    """Geometric means of the best number and what was tried on either side of it, in order; none beside zero."""
    place = tried.index(best)
    neighbours = [*tried[max(place - 1, 0):place], *tried[place + 1:place + 2]]
    return [math.sqrt(best * other) for other in neighbours if best * other > 0]


def _around(costs: Mapping[float, float], best: float) -> tuple[float, float]:
    """The ends of the run of tried weights around the best one that cost less than half a nat more."""
    tried = sorted(costs)
    place, close = tried.index(best), [costs[weight] < costs[best] + 0.5 for weight in tried]
    first = max((number + 1 for number in range(place) if not close[number]), default=0)
    last = min((number for number in range(place + 1, len(tried)) if not close[number]), default=len(tried)) - 1
    return tried[first], tried[last]
