"""Convex problems, solved to convergence: logistic regressions, and what else has the solver "lbfgs"."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from onceclip.adapters.cpu import threads_for
from onceclip.adapters.ops import reduced_products
from onceclip.adapters.training.loop import Run
from onceclip.adapters.training.stack import Parameters

_STEPS = 1000
_PAIRS = 8  # of a step and the change of the gradient over it
_REMAINS = 2e-9  # of the objective, or of 1 where it is lower, that a step may still promise at the end
_FLAT, _FIRST = 0.1, 0.01  # of a line's slope that is left where its search ends, and of the first line's
_TRIALS = 8  # on a line
_FURTHER = 5  # times as far as the trial before, at most
_LINEAR = 1e-4  # of a change of logits, by which it may differ from the sum of its parts
_TRIED = 8  # rows on which that is seen
_DIRECTIONS, _SAMPLE = 32, 1024  # in which moments are told apart, and the rows that they are taken of
_MATTERS = 0.1  # share of a decay from which on the moments matter beside it
_UNSURE, _MOMENT = 1e-3, 1e-4  # what may be zero and is divided by is no less; the moment relative to all of them


def solve(run: Run, start: Parameters) -> Parameters:
    """Parameters at which the loss of a run's method is lowest, from start values.

    Mean cross-entropy of logits that are linear in the parameters, with a quadratic penalty or none, is left to
    `_lowest`, any other loss to torch's L-BFGS. Products are of the parameters' type, whatever a search asks for.
    """
    with torch.enable_grad(), threads_for(run.task.work), reduced_products(None):
        if run.method.plain_loss and not run.method.values.get("smoothing"):
            regression = _Regression(run, start)
            if regression.linear():
                return regression.named(_lowest(regression))
        return _by_loss(run, start)


def _by_loss(run: Run, start: Parameters) -> Parameters:
    parameters = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    rows, label = run.method.training_rows(run.task, run.prepared, 0)
    noise = run.noise()
    optimizer = torch.optim.LBFGS(parameters.values(), max_iter=_STEPS, history_size=20, tolerance_grad=1e-6,
                                  tolerance_change=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = run.method.loss(run.prepared, parameters, rows, label, noise)
        loss.backward()
        return loss

    try:
        optimizer.step(closure)
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        return {name: torch.full_like(value, math.nan) for name, value in start.items()}  # a step beyond float32
    return {name: value.detach() for name, value in parameters.items()}


class _Regression:
    """Mean cross-entropy plus penalty as a function of all parameters, which lie in one vector (parameters,).

    start: the vector to begin at. logits: there, (rows, classes). label: (rows, 1).
    """

    def __init__(self, run: Run, start: Parameters) -> None:
        self._run, self._shapes = run, {name: value.shape for name, value in start.items()}
        self._rows, label = run.method.training_rows(run.task, run.prepared, 0)
        self.label = label.unsqueeze(1)
        self.start = torch.cat([value.detach().flatten() for value in start.values()])
        self._leaf = self.start.clone().requires_grad_()
        self._graph = self._head(self._leaf, self._rows)
        self.logits = self._graph.detach()
        zero = torch.zeros_like(self.start)
        with torch.no_grad():
            self._at_zero = self._head(zero, self._rows) if self.start.any() else self.logits
        self._pull_at_zero = self.penalty(zero)[1]

    def named(self, vector: Tensor) -> Parameters:
        """The parameters that a vector holds."""
        parts = vector.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def _head(self, vector: Tensor, rows: Tensor) -> Tensor:
        return self._run.method.training_head(self._run.prepared, self.named(vector))(rows)

    def linear(self) -> bool:
        """Whether logits and the penalty's gradient are linear: two steps change them by the sum of both."""
        one, some = torch.linspace(-1, 1, len(self.start)).to(self.start), slice(_TRIED)
        steps = one, one.square(), one + one.square()
        with torch.no_grad():
            logits = [self._head(each, self._rows[some]) - self._at_zero[some] for each in steps]
        pulls = [self.pull_along(each) for each in steps]
        self._moments = _Moments(self._rows, float(pulls[0] @ one / (one @ one)), self.logits.shape[1])
        return all(float((both - first - second).norm()) <= _LINEAR * float(both.norm())
                   for first, second, both in (logits, pulls))

    @torch.no_grad()
    def logits_along(self, step: Tensor) -> Tensor:
        """Change of the logits (rows, classes) over a step (parameters,)."""
        return self._head(step, self._rows) - self._at_zero

    def gradient(self, probability: Tensor) -> Tensor:
        """Of the cross-entropy (parameters,), where the classes have these probabilities (rows, classes)."""
        share = 1 / len(self.label)
        wanted = probability.new_full(self.label.shape, -share)
        excess = (probability * share).scatter_add_(1, self.label, wanted)
        return torch.autograd.grad(self._graph, self._leaf, excess, retain_graph=True)[0]

    def penalty(self, vector: Tensor) -> tuple[float, Tensor]:
        """The penalty and its gradient (parameters,)."""
        leaf = vector.detach().requires_grad_()
        value = self._run.method.penalty(self._run.prepared, self.named(leaf))
        if not isinstance(value, Tensor) or not value.requires_grad:
            return float(value), torch.zeros_like(leaf)
        return float(value.detach()), torch.autograd.grad(value, leaf)[0]

    def pull_along(self, step: Tensor) -> Tensor:
        """Change of the penalty's gradient (parameters,) over a step."""
        return self.penalty(step)[1] - self._pull_at_zero

    def scaled(self, gradient: Tensor, probability: Tensor) -> Tensor:
        """A gradient (parameters,) over what the second derivatives are about, so that fewer steps find them."""
        unsure = 1 - float(probability.flatten() @ probability.flatten()) / len(probability)
        parts = [self._moments.divided(part, max(unsure, _UNSURE)) for part in self.named(gradient).values()]
        return torch.cat([part.flatten() for part in parts])


class _Moments:
    """Second derivatives, roughly: second moments of rows times a factor that falls as rows are fitted, plus a decay.

    The moments are those around the mean, in the directions in which they are largest, and one number for all others.

    Source: Frangella, Tropp and Udell, Randomized Nystroem preconditioning, 2023.
    """

    def __init__(self, rows: Tensor, decay: float, classes: int) -> None:
        sample = rows[::-(-len(rows) // _SAMPLE)]
        sample = sample - sample.mean(dim=0)
        self._decay, self._classes, total = decay, classes, float(sample.square().sum()) / len(sample)
        # Without a decay there may be many solutions: steps along plain gradients lead to one with short weights.
        number = min(_DIRECTIONS, *sample.shape) if 0 < _MATTERS * decay * classes < total else 0
        probes = torch.randn(rows.shape[1], number, generator=torch.Generator().manual_seed(0)).to(sample)
        basis = torch.linalg.qr(sample.T @ (sample @ probes)).Q
        seen = sample @ basis
        moments, turn = torch.linalg.eigh(seen.T @ seen / len(sample))
        rest, least = (total - float(moments.sum())) / max(min(sample.shape) - number, 1), _MOMENT * (total or 1.0)
        self._basis, self._along, self._rest = basis @ turn, moments.clamp_min(least), max(rest, least)

    def divided(self, values: Tensor, unsure: float) -> Tensor:
        """Values (classes, dim) over these; others over the factor. unsure: mean of 1 - |p|^2 over the rows."""
        factor = unsure / 2 / self._classes
        if values.ndim != 2 or values.shape[1] != len(self._basis):
            return values / factor
        rest = 1 / (factor * self._rest + self._decay)
        return torch.addmm(values, values @ self._basis * (1 / (factor * self._along + self._decay) - rest),
                           self._basis.T, beta=rest)


def _lowest(regression: _Regression) -> Tensor:
    """Where a regression's loss is lowest, by L-BFGS.

    One product gives the logits everywhere on a line: its best point is searched without others, and a step takes two.

    Source: Liu and Nocedal, On the limited memory BFGS method for large scale optimization, 1989.
    """
    vector, logits, label = regression.start, regression.logits, regression.label
    height, pull = regression.penalty(vector)
    probability, history = logits.softmax(dim=1), _History(vector)
    step = before = torch.zeros_like(vector)
    for number in range(_STEPS):
        gradient = regression.gradient(probability).add_(pull)
        history.add(step, gradient - before)
        direction = history.direction(gradient, partial(regression.scaled, probability=probability))
        slope = float(gradient @ direction)
        likely = probability.gather(1, label).clamp_min(torch.finfo(probability.dtype).tiny)
        remains = _REMAINS * max(height - float(likely.log().mean()), 1.0) if number else 0.0
        if not -slope / 2 > remains:  # the first step is taken: also where a decay leaves little of it
            break
        along, pull_along = regression.logits_along(direction), regression.pull_along(direction)
        line = _Line(logits, along, float(along.gather(1, label).mean()), float(pull @ direction),
                     float(pull_along @ direction))
        size, probability = line.lowest(slope, _FLAT if number else _FIRST)
        height += size * line.pull + size**2 / 2 * line.bend
        step, before = size * direction, gradient
        vector, logits, pull = vector + step, torch.add(logits, along, alpha=size), pull + size * pull_along
    return vector


class _Line:
    """The loss along a line.

    logits, along: (rows, classes), at its start and their change over a step of size 1. wanted: mean of the latter at
    the labels. pull, bend: slope of the penalty at the start, and its change over such a step.
    """

    def __init__(self, logits: Tensor, along: Tensor, wanted: float, pull: float, bend: float) -> None:
        self.logits, self.along, self.wanted, self.pull, self.bend = logits, along, wanted, pull, bend

    def lowest(self, slope: float, left: float) -> tuple[float, Tensor]:
        """Size of a step to where the line is nearly flat and probabilities (rows, classes) there, by Newton's method.

        slope: at the start, below zero. left: of it, at most, at the end.
        """
        size, low, high = 1.0, 0.0, math.inf
        for trial in range(_TRIALS):
            probability = torch.add(self.logits, self.along, alpha=size).softmax(dim=1)
            here, bend = self._slope_and_bend(probability, size)
            if abs(here) <= left * -slope or trial == _TRIALS - 1:
                break
            low, high = (size, high) if here < 0 else (low, size)
            furthest = min(high, _FURTHER * size)
            size = size - here / bend if bend > 0 else furthest
            if not low < size < furthest:
                size = furthest if high == math.inf else (low + high) / 2
        return size, probability

    def _slope_and_bend(self, probability: Tensor, size: float) -> tuple[float, float]:
        rows, weighted = len(probability), probability * self.along
        mean = weighted.sum(dim=1)
        slope = float(mean.sum()) / rows - self.wanted
        bend = float(weighted.flatten() @ self.along.flatten() - mean @ mean) / rows
        return slope + self.pull + size * self.bend, bend + self.bend


class _History:
    """The last steps and by what the gradient changed over them: what is known of the second derivatives.

    Source: Byrd, Nocedal and Schnabel, Representations of quasi-Newton matrices, 1994, theorem 2.2.
    """

    def __init__(self, like: Tensor) -> None:
        self._steps, self._changes = (like.new_zeros(_PAIRS, len(like)) for _ in range(2))
        self._products = torch.zeros(_PAIRS, _PAIRS, dtype=torch.float64)  # of each step with each change
        self._count = 0

    def add(self, step: Tensor, change: Tensor) -> None:
        """Keep a step, unless it tells nothing, in place of the oldest."""
        product, place = float(step @ change), self._count % _PAIRS
        if product > 0:
            self._steps[place], self._changes[place] = step, change
            self._products[:, place] = _small(self._steps @ change)
            self._products[place] = _small(self._changes @ step)
            self._count += 1

    def direction(self, gradient: Tensor, scaled: Callable[[Tensor], Tensor]) -> Tensor:
        """Where to go from a gradient (parameters,). scaled: what would be gone there without any step."""
        if not self._count:
            return scaled(gradient).neg_()
        order = torch.arange(max(0, self._count - _PAIRS), self._count) % _PAIRS
        places, steps, changes = order.argsort(), self._steps[:len(order)], self._changes[:len(order)]
        triangle = self._products[order][:, order].triu()
        first = torch.linalg.solve(triangle, _small(steps @ gradient)[order])
        last = changes[order[-1]]
        scale = float(triangle[-1, -1]) / float(last @ scaled(last))
        kept = scaled(torch.addmv(gradient, changes.T, first[places].to(gradient), alpha=-1)).mul_(scale)
        second = torch.linalg.solve(triangle.T, triangle.diagonal() * first - _small(changes @ kept)[order])
        return torch.addmv(kept, steps.T, second[places].to(gradient)).neg_()


def _small(values: Tensor) -> Tensor:
    return values.to("cpu", torch.float64)
