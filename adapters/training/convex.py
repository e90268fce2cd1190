"""Convex problems: methods whose solver is "lbfgs", by our own L-BFGS or by torch's, and ridge regression."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial

import torch
from torch import Tensor

from onceclip.adapters.cpu import threads_for
from onceclip.adapters.ops import reduced_products
from onceclip.adapters.training.loop import Run
from onceclip.adapters.training.stack import Parameters

_MAX_STEPS = 1000
_HISTORY = 8  # pairs of a step and the change of the gradient over it that L-BFGS keeps
_TOLERANCE = 2e-9  # least decrease that a step must promise, relative to the objective, or to 1 where it is lower
_SLOPE_LEFT, _FIRST_SLOPE_LEFT = 0.1, 0.01  # share of its first slope at which a line search ends; of the first search
_TRIALS = 8  # of a line search
_GROWTH = 5  # of the step size from one trial to the next, at most
_LINEAR_TOLERANCE = 1e-4  # relative difference up to which two changes count as equal
_LINEAR_ROWS = 8  # on which logits are tried
_RANK, _SAMPLE_ROWS = 32, 1024  # of the preconditioner, and rows that it is estimated from
_DECAY_ONLY = 0.1  # second moments, relative to decay times classes, up to which the preconditioner is the decay alone
_MIN_VARIANCE, _MIN_MOMENT = 1e-3, 1e-4  # lower bounds of what is divided by; of a moment relative to their sum
_EIGEN = 1024  # rows up to which one eigendecomposition costs less than the Cholesky factors of a usual search


def solve(run: Run, start: Parameters) -> Parameters:
    """Minimize the loss of a run's method over its parameters, from start values.

    `_minimize` takes mean cross-entropy of logits that are linear in the parameters, with or without a quadratic
    penalty; torch's L-BFGS takes any other loss. Matrices are multiplied in the parameters' type, also where a search
    asks for bfloat16.
    """
    with torch.enable_grad(), threads_for(run.task.work), reduced_products(None):
        if run.method.plain_loss and not run.method.values.get("smoothing"):
            regression = _Regression(run, start)
            if regression.is_linear():
                return regression.unflatten(_minimize(regression))
        return _solve_by_torch(run, start)


def _solve_by_torch(run: Run, start: Parameters) -> Parameters:
    parameters = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    rows, label = run.method.training_rows(run.task, run.prepared, 0)
    noise = run.noise()
    optimizer = torch.optim.LBFGS(parameters.values(), max_iter=_MAX_STEPS, history_size=20, tolerance_grad=1e-6,
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
        return {name: torch.full_like(value, math.nan) for name, value in start.items()}  # the step overflowed float32
    return {name: value.detach() for name, value in parameters.items()}


class _Regression:
    """Mean cross-entropy plus penalty, as a function of one vector that holds all parameters: (parameters,).

    start: the start values. logits: at the start, (rows, classes). label: (rows, 1).
    """

    def __init__(self, run: Run, start: Parameters) -> None:
        self._run, self._shapes = run, {name: value.shape for name, value in start.items()}
        self._rows, label = run.method.training_rows(run.task, run.prepared, 0)
        self.label = label.unsqueeze(1)
        self.start = torch.cat([value.detach().flatten() for value in start.values()])
        self._start_leaf = self.start.clone().requires_grad_()
        self._start_logits = self._head(self._start_leaf, self._rows)
        self.logits = self._start_logits.detach()
        zero = torch.zeros_like(self.start)
        with torch.no_grad():
            self._logits_at_zero = self._head(zero, self._rows) if self.start.any() else self.logits
        self._penalty_gradient_at_zero = self.penalty(zero)[1]

    def unflatten(self, vector: Tensor) -> Parameters:
        """The parameters in a vector, by name."""
        parts = vector.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def _head(self, vector: Tensor, rows: Tensor) -> Tensor:
        return self._run.method.training_head(self._run.prepared, self.unflatten(vector))(rows)

    def is_linear(self) -> bool:
        """Whether logits and the penalty's gradient are linear: two steps together change them by the sum of both."""
        one, few = torch.linspace(-1, 1, len(self.start)).to(self.start), slice(_LINEAR_ROWS)
        steps = one, one.square(), one + one.square()
        with torch.no_grad():
            logits = [self._head(each, self._rows[few]) - self._logits_at_zero[few] for each in steps]
        gradients = [self.penalty_gradient_change(each) for each in steps]
        decay = float(gradients[0] @ one / (one @ one))
        self._preconditioner = _Preconditioner(self._rows, decay, self.logits.shape[1])
        return all(float((both - first - second).norm()) <= _LINEAR_TOLERANCE * float(both.norm())
                   for first, second, both in (logits, gradients))

    @torch.no_grad()
    def logits_change(self, step: Tensor) -> Tensor:
        """By how much a step (parameters,) changes the logits: (rows, classes)."""
        return self._head(step, self._rows) - self._logits_at_zero

    def gradient(self, probability: Tensor) -> Tensor:
        """Gradient of the mean cross-entropy (parameters,). probability: of the classes, (rows, classes)."""
        share = 1 / len(self.label)
        target = probability.new_full(self.label.shape, -share)
        logits_gradient = (probability * share).scatter_add_(1, self.label, target)
        return torch.autograd.grad(self._start_logits, self._start_leaf, logits_gradient, retain_graph=True)[0]

    def penalty(self, vector: Tensor) -> tuple[float, Tensor]:
        """The penalty and its gradient (parameters,)."""
        leaf = vector.detach().requires_grad_()
        value = self._run.method.penalty(self._run.prepared, self.unflatten(leaf))
        if not isinstance(value, Tensor) or not value.requires_grad:
            return float(value), torch.zeros_like(leaf)
        return float(value.detach()), torch.autograd.grad(value, leaf)[0]

    def penalty_gradient_change(self, step: Tensor) -> Tensor:
        """By how much a step changes the penalty's gradient: (parameters,)."""
        return self.penalty(step)[1] - self._penalty_gradient_at_zero

    def precondition(self, gradient: Tensor, probability: Tensor) -> Tensor:
        """A gradient (parameters,) times roughly the inverse of the Hessian, so that fewer steps are needed."""
        variance = 1 - float(probability.flatten() @ probability.flatten()) / len(probability)
        parts = [self._preconditioner.divide(part, max(variance, _MIN_VARIANCE))
                 for part in self.unflatten(gradient).values()]
        return torch.cat([part.flatten() for part in parts])


class _Preconditioner:
    """An approximation of the Hessian: the covariance of the rows, times a factor that falls as rows are fitted, plus
    the decay.

    Of the covariance it has the largest eigenvalues, and one number for all others.

    Source: Frangella, Tropp and Udell, Randomized Nystroem preconditioning, 2023.
    """

    def __init__(self, rows: Tensor, decay: float, classes: int) -> None:
        sample = rows[::-(-len(rows) // _SAMPLE_ROWS)]
        sample = sample - sample.mean(dim=0)
        self._decay, self._classes, total = decay, classes, float(sample.square().sum()) / len(sample)
        # Without a decay there may be many solutions: plain gradient steps lead to one with small weights.
        rank = min(_RANK, *sample.shape) if 0 < _DECAY_ONLY * decay * classes < total else 0
        probes = torch.randn(rows.shape[1], rank, generator=torch.Generator().manual_seed(0)).to(sample)
        basis = torch.linalg.qr(sample.T @ (sample @ probes)).Q
        projected = sample @ basis
        values, vectors = torch.linalg.eigh(projected.T @ projected / len(sample))
        rest, least = (total - float(values.sum())) / max(min(sample.shape) - rank, 1), _MIN_MOMENT * (total or 1.0)
        self._vectors, self._values, self._rest = basis @ vectors, values.clamp_min(least), max(rest, least)

    def divide(self, gradient: Tensor, variance: float) -> Tensor:
        """The gradient of weights (classes, dim) divided by the approximation; any other by the factor alone.

        variance: mean over the rows of 1 - |p|^2, where p are the probabilities of a row.
        """
        factor = variance / 2 / self._classes
        if gradient.ndim != 2 or gradient.shape[1] != len(self._vectors):
            return gradient / factor
        rest = 1 / (factor * self._rest + self._decay)
        return torch.addmm(gradient, gradient @ self._vectors * (1 / (factor * self._values + self._decay) - rest),
                           self._vectors.T, beta=rest)


def _minimize(regression: _Regression) -> Tensor:
    """The vector of parameters at which a regression's loss is lowest, by L-BFGS.

    Logits are linear, so one product gives them for every step size along a direction: a line search costs no further
    products, and a step takes two in all.

    Source: Liu and Nocedal, On the limited memory BFGS method for large scale optimization, 1989.
    """
    vector, logits, label = regression.start, regression.logits, regression.label
    penalty, penalty_gradient = regression.penalty(vector)
    probability, history = logits.softmax(dim=1), _History(vector)
    step = previous = torch.zeros_like(vector)
    for number in range(_MAX_STEPS):
        gradient = regression.gradient(probability).add_(penalty_gradient)
        history.add(step, gradient - previous)
        direction = history.direction(gradient, partial(regression.precondition, probability=probability))
        slope = float(gradient @ direction)
        likelihood = probability.gather(1, label).clamp_min(torch.finfo(probability.dtype).tiny)
        least = _TOLERANCE * max(penalty - float(likelihood.log().mean()), 1.0) if number else 0.0
        if not -slope / 2 > least:  # the first step is always taken: a large decay may leave little to gain
            break
        logits_change = regression.logits_change(direction)
        penalty_gradient_change = regression.penalty_gradient_change(direction)
        label_change = float(logits_change.gather(1, label).mean())
        penalty_slope = float(penalty_gradient @ direction)
        penalty_curvature = float(penalty_gradient_change @ direction)
        size, probability = _line_search(logits, logits_change, label_change, penalty_slope, penalty_curvature, slope,
                                         _SLOPE_LEFT if number else _FIRST_SLOPE_LEFT)
        penalty += size * penalty_slope + size**2 / 2 * penalty_curvature
        step, previous = size * direction, gradient
        vector, logits = vector + step, torch.add(logits, logits_change, alpha=size)
        penalty_gradient = penalty_gradient + size * penalty_gradient_change
    return vector


def _line_search(logits: Tensor, change: Tensor, label_change: float, penalty_slope: float, penalty_curvature: float,
                 slope: float, slope_left: float) -> tuple[float, Tensor]:
    """The step size at which the loss is nearly flat, by Newton's method, and probabilities (rows, classes) there.

    logits, change: (rows, classes), at size 0 and their change over size 1. label_change: mean of the change at the
    labels. penalty_slope, penalty_curvature: first and second derivative of the penalty by the size. slope: of the loss
    at size 0, negative. slope_left: share of it at which the search ends.
    """
    size, low, high = 1.0, 0.0, math.inf
    for trial in range(_TRIALS):
        probability = torch.add(logits, change, alpha=size).softmax(dim=1)
        weighted = probability * change
        mean = weighted.sum(dim=1)
        current = float(mean.sum()) / len(logits) - label_change + penalty_slope + size * penalty_curvature
        if abs(current) <= slope_left * -slope or trial == _TRIALS - 1:
            break
        curvature = float(weighted.flatten() @ change.flatten() - mean @ mean) / len(logits) + penalty_curvature
        low, high = (size, high) if current < 0 else (low, size)
        largest = min(high, _GROWTH * size)
        size = size - current / curvature if curvature > 0 else largest
        if not low < size < largest:
            size = largest if high == math.inf else (low + high) / 2
    return size, probability


class _History:
    """The last steps and the changes of the gradient over them, from which L-BFGS approximates the inverse Hessian.

    Source: Byrd, Nocedal and Schnabel, Representations of quasi-Newton matrices, 1994, theorem 2.2.
    """

    def __init__(self, like: Tensor) -> None:
        self._steps, self._changes = (like.new_zeros(_HISTORY, len(like)) for _ in range(2))
        self._products = torch.zeros(_HISTORY, _HISTORY, dtype=torch.float64)  # of each step with each change
        self._count = 0

    def add(self, step: Tensor, change: Tensor) -> None:
        """Keep a step in place of the oldest one, unless the curvature along it is not positive."""
        product, place = float(step @ change), self._count % _HISTORY
        if product > 0:
            self._steps[place], self._changes[place] = step, change
            self._products[:, place] = _in_float64(self._steps @ change)
            self._products[place] = _in_float64(self._changes @ step)
            self._count += 1

    def direction(self, gradient: Tensor, precondition: Callable[[Tensor], Tensor]) -> Tensor:
        """The search direction (parameters,). precondition: multiplies by an approximate inverse Hessian."""
        if not self._count:
            return precondition(gradient).neg_()
        order = torch.arange(max(0, self._count - _HISTORY), self._count) % _HISTORY
        places, steps, changes = order.argsort(), self._steps[:len(order)], self._changes[:len(order)]
        triangle = self._products[order][:, order].triu()
        first = torch.linalg.solve(triangle, _in_float64(steps @ gradient)[order])
        last = changes[order[-1]]
        scale = float(triangle[-1, -1]) / float(last @ precondition(last))
        middle = precondition(torch.addmv(gradient, changes.T, first[places].to(gradient), alpha=-1)).mul_(scale)
        second = torch.linalg.solve(triangle.T, triangle.diagonal() * first - _in_float64(changes @ middle)[order])
        return torch.addmv(middle, steps.T, second[places].to(gradient)).neg_()


def _in_float64(values: Tensor) -> Tensor:
    return values.to("cpu", torch.float64)


class Ridges:
    """Solutions for every ridge of one symmetric matrix M without negative eigenvalues, and one right side B.

    A small matrix is decomposed once into `Q diag(v) Q^T`: then every solution is `Q diag(1 / (v + ridge)) Q^T B`. On
    larger ones that takes some forty times as long as a Cholesky factor, more than the factors of a whole search.

    matrix: (n, n) float64. right: (n, columns) float64.
    """

    def __init__(self, matrix: Tensor, right: Tensor) -> None:
        self.matrix, self.right = matrix, right

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.matrix)
        return values.clamp(min=0), vectors, vectors.T @ self.right

    def solution(self, ridge: float) -> Tensor:
        """X (n, columns). ridge: more than zero."""
        if len(self.matrix) <= _EIGEN:
            values, vectors, projected = self._eigen
            return vectors @ (projected / (values + ridge).unsqueeze(1))
        return torch.cholesky_solve(self.right, self._factor(ridge))

    def inverse(self, ridge: float) -> Tensor:
        """The inverse of `M + ridge I` (n, n). ridge: more than zero."""
        if len(self.matrix) <= _EIGEN:
            values, vectors, _ = self._eigen
            return (vectors / (values + ridge)) @ vectors.T
        return torch.cholesky_inverse(self._factor(ridge))

    def _factor(self, ridge: float) -> Tensor:
        shifted = self.matrix.clone()
        shifted.diagonal().add_(ridge)
        return torch.linalg.cholesky(shifted)
