"""Gradient steps for runs that are trained together, each with its own step size and decay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from onceclip.adapters.training.trainable import Trainable

_DASSL_START = 1e-5
_BETAS = 0.9, 0.999
_NESTEROV = "nesterov"
_SGD = "sgd", _NESTEROV


@dataclass(frozen=True)
class Position:
    """Where in a training a step is. step, epoch: from 0. steps, epochs: their numbers."""

    step: int
    steps: int
    epoch: int
    epochs: int


def step_size(name: str, learning_rate: float | Tensor, position: Position, warmup: int = 0) -> float | Tensor:
    """The learning rate at a step of a training that starts with this one; of several runs (runs,) at once.

    cosine: `(1 + cos(pi step / steps)) / 2` of it. warmup: linear over `warmup` steps, then cosine to zero over the
        rest. constant: all of it.
    dassl: per epoch, the first one at 1e-5, then cosine over all epochs, counted from the second, so that the last
        still moves (Dassl's schedule as the configurations of CoOp, Zhou et al., IJCV 2022, set it).
    """
    if name == "constant":
        return learning_rate
    if name == "dassl":
        return learning_rate * _cosine((position.epoch - 1) / position.epochs) if position.epoch else _DASSL_START
    if name == "warmup" and position.step < warmup:
        return learning_rate * (position.step + 1) / warmup
    start = warmup if name == "warmup" else 0
    return learning_rate * _cosine((position.step - start) / max(position.steps - start, 1))


def _cosine(part: float) -> float:
    return (1 + math.cos(math.pi * part)) / 2


class StepNumbers(NamedTuple):
    """The numbers of one step, of every run (runs,) or of a run alone ().

    rate: learning rate. decay: weight decay. max_norm: length to which gradients are cut. mean_correction,
    square_correction: Adam's factors for its mean and for the root of its second moment, which start at zero; both ().
    """

    rate: Tensor
    decay: Tensor
    max_norm: Tensor
    mean_correction: Tensor
    square_correction: Tensor


class Optimizer:
    """AdamW, Adam, or SGD with either momentum, on parameters with a leading axis of runs (none for a run alone).

    methods: one per run. alone: whether the parameters have no such axis.
    `update` is the formulas, as a pure function of tensors; a run alone takes the functions behind torch's optimizers,
    which know one learning rate and make fewer passes over large parameters.
    """

    def __init__(self, methods: Sequence[Trainable], parameters: dict[str, Tensor], alone: bool) -> None:
        self.method, self.alone = methods[0], alone
        self.values = [value.detach() for value in parameters.values()]
        like = self.values[0]
        self.clips = any(method.values.get("clip") for method in methods)
        self.decays = any(method.values.get("weight_decay") for method in methods)
        self.rate, self.decay, self.max_norm = (
            self._per_run([float(method.values.get(name, 0.0)) or default for method in methods])
            for name, default in (("learning_rate", 0.0), ("weight_decay", 0.0), ("clip", math.inf)))
        self.steps = [torch.zeros((), device=like.device) for _ in self.values]
        self._count = 0

    @cached_property
    def moments(self) -> list[list[Tensor]]:
        """What it keeps between steps, in lists like the parameters; made by the first step."""
        kept = (1 if self.method.momentum else 0) if self.method.optimizer in _SGD else 2
        return [[torch.zeros_like(value) for value in self.values] for _ in range(kept)]

    def _per_run(self, numbers: list[float]) -> Tensor:
        return self.values[0].new_tensor(numbers[0] if self.alone else numbers)

    def numbers(self, position: Position) -> StepNumbers:
        """The numbers that `update` takes for the next step."""
        self._count += 1
        rate = step_size(self.method.schedule, self.rate, position, self.method.warmup)
        if not isinstance(rate, Tensor):
            rate = torch.full_like(self.rate, rate)
        corrections = (torch.full((), (1 - beta**self._count)**-power, dtype=rate.dtype, device=rate.device)
                       for beta, power in zip(_BETAS, (1, 0.5), strict=True))
        return StepNumbers(rate, self.decay, self.max_norm, *corrections)

    def step(self, gradients: Sequence[Tensor], position: Position) -> None:
        """Change the parameters against their gradients."""
        if not self.alone:
            self.update(self.values, gradients, self.moments, self.numbers(position))
            return
        # The fused steps read a gradient as if it were laid out like its parameter.
        gradients = [each.contiguous() for each in self._clipped(gradients, self.max_norm)]
        rate = float(step_size(self.method.schedule, float(self.rate), position, self.method.warmup))
        (self._sgd_alone if self.method.optimizer in _SGD else self._adam_alone)(gradients, rate)

    @torch.no_grad()
    def update(self, values: Sequence[Tensor], gradients: Sequence[Tensor], moments: Sequence[Sequence[Tensor]],
             numbers: StepNumbers) -> None:
        """Change values and moments in place. gradients: like the values. numbers: as `numbers` gave them."""
        clipped = self._clipped(gradients, numbers.max_norm)
        (self._sgd if self.method.optimizer in _SGD else self._adam)(values, clipped, moments, numbers)

    def _clipped(self, gradients: Sequence[Tensor], max_norm: Tensor) -> Sequence[Tensor]:
        """Gradients of every run no longer in all than its `clip`, as `torch.nn.utils.clip_grad_norm_` makes them."""
        if not self.clips:
            return gradients
        runs = max_norm.numel()
        length = torch.stack([each.reshape(runs, -1).norm(dim=1) for each in gradients], dim=1).norm(dim=1)
        factor = (max_norm / (length + 1e-6)).clamp(max=1.0)
        return [each * (factor[0] if self.alone else _shaped(factor, each)) for each in gradients]

    def _adam(self, values: Sequence[Tensor], gradients: Sequence[Tensor], moments: Sequence[Sequence[Tensor]],
              numbers: StepNumbers) -> None:
        """Adam (Kingma and Ba, ICLR 2015, algorithm 1) or AdamW (Loshchilov and Hutter, ICLR 2019, algorithm 2)."""
        for value, gradient, mean, square in zip(values, gradients, *moments, strict=True):
            if self.decays and self.method.optimizer == "adamw":
                value.mul_(1 - _shaped(numbers.rate * numbers.decay, value))
            elif self.decays:
                gradient = gradient + _shaped(numbers.decay, value) * value
            mean.lerp_(gradient, 1 - _BETAS[0])
            square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            length = square.sqrt().mul_(numbers.square_correction).add_(self.method.epsilon)
            value.addcmul_(mean / length, _shaped(numbers.rate * numbers.mean_correction, value), value=-1)

    def _sgd(self, values: Sequence[Tensor], gradients: Sequence[Tensor], moments: Sequence[Sequence[Tensor]],
             numbers: StepNumbers) -> None:
        """SGD with momentum, plain or Nesterov's, as `torch.optim.SGD` defines it."""
        momentum = self.method.momentum
        for place, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
            move = torch.addcmul(gradient, _shaped(numbers.decay, value), value) if self.decays else gradient
            if momentum:
                mean = moments[0][place].mul_(momentum).add_(move)
                move = torch.add(move, mean, alpha=momentum) if self.method.optimizer == _NESTEROV else mean
            value.addcmul_(move, _shaped(numbers.rate, value), value=-1)

    @torch.no_grad()
    def _adam_alone(self, gradients: list[Tensor], rate: float) -> None:
        function = adamw if self.method.optimizer == "adamw" else adam
        means, squares = self.moments
        function(self.values, gradients, means, squares, [], self.steps, lr=rate, eps=self.method.epsilon,
                 weight_decay=float(self.decay), amsgrad=False, maximize=False, beta1=_BETAS[0], beta2=_BETAS[1],
                 fused=self.values[0].device.type in ("cpu", "cuda"), foreach=False)

    @torch.no_grad()
    def _sgd_alone(self, gradients: list[Tensor], rate: float) -> None:
        means: list[Tensor | None] = list(self.moments[0]) if self.moments else [None] * len(gradients)
        sgd(self.values, gradients, means, lr=rate, momentum=self.method.momentum, dampening=0.0,
            weight_decay=float(self.decay), nesterov=self.method.optimizer == _NESTEROV, maximize=False, foreach=False)


def _shaped(number: Tensor, like: Tensor) -> Tensor:
    """One number per run (runs,) so that it multiplies (runs, ...); a single one as it is."""
    return number.view(-1, *[1] * (like.ndim - 1)) if number.ndim else number
