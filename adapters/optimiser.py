"""Gradient steps for stacked runs, each with its own step size and decay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from onceclip.adapters.method import Method
from onceclip.adapters.schedule import Moment, step_size

_BETAS = 0.9, 0.999
_NESTEROV = "nesterov"
_SGD = "sgd", _NESTEROV
_ELEMENTS = {"cpu": 2**18}  # of the parameters that step together: what a core's cache holds; elsewhere all of them


@dataclass
class _Share:
    """Runs that step together: their part of every parameter, and what their optimiser keeps.

    where: which runs; None for a single one, whose parameters have no axis of runs. rate, decay: a number for one run,
    else tensors (runs,).
    """

    where: slice | None
    values: list[Tensor]
    rate: float | Tensor
    decay: float | Tensor
    moments: list[list[Tensor]] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    count: int = 0


class Optimiser:
    """AdamW, Adam, or SGD with either momentum, on parameters with a leading axis of runs (none for a single run).

    methods: one per run.
    A single run takes the functions behind torch's optimisers: small steps spend most of their time in the classes.
    They know one step size each, so that several runs step by the same formulas written out.
    """

    def __init__(self, methods: Sequence[Method], parameters: dict[str, Tensor]) -> None:
        self.method = methods[0]
        self.longest = [float(method.values.get("clip", 0.0)) for method in methods]
        values = [value.detach() for value in parameters.values()]
        each = sum(value.numel() for value in values) // len(methods)
        together = max(1, _ELEMENTS.get(values[0].device.type, each * len(methods)) // max(each, 1))
        self.shares = [_share(methods, values, start, together) for start in range(0, len(methods), together)]

    def step(self, gradients: Sequence[Tensor], at: Moment) -> None:
        """Move the parameters against their gradients."""
        if any(self.longest):
            gradients = self._clipped(gradients)
        for share in self.shares:
            own = [each if share.where is None else each[share.where] for each in gradients]
            size = step_size(self.method.schedule, share.rate, at, self.method.warmup)
            if isinstance(share.rate, Tensor):
                (self._sgd_together if self.method.optimiser in _SGD else self._adam_together)(share, own, size)
            else:
                # The fused steps read a gradient as if it were laid out like its parameter.
                own = [each.contiguous() for each in own]
                (self._sgd if self.method.optimiser in _SGD else self._adam)(share, own, float(size))

    def _clipped(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of every run no longer in all than its `clip`, as `torch.nn.utils.clip_grad_norm_` makes them."""
        runs = len(self.longest)
        length = torch.cat([each.reshape(runs, -1) for each in gradients], dim=1).norm(dim=1)
        longest = length.new_tensor([each or math.inf for each in self.longest])
        factor = (longest / (length + 1e-6)).clamp(max=1.0)
        return [each * factor.view(-1, *[1] * (each.ndim - 1)) if runs > 1 else each * factor[0] for each in gradients]

    @torch.no_grad()
    def _adam(self, share: _Share, gradients: list[Tensor], size: float) -> None:
        if not share.moments:
            share.moments = [[torch.zeros_like(value) for value in share.values] for _ in range(2)]
            share.steps = [torch.zeros((), device=value.device) for value in share.values]
        function = adamw if self.method.optimiser == "adamw" else adam
        first, second = share.moments
        function(share.values, gradients, first, second, [], share.steps, lr=size, eps=self.method.epsilon,
                 weight_decay=share.decay, amsgrad=False, maximize=False, beta1=_BETAS[0], beta2=_BETAS[1],  # type: ignore[arg-type]
                 fused=share.values[0].device.type in ("cpu", "cuda"), foreach=False)

    @torch.no_grad()
    def _sgd(self, share: _Share, gradients: list[Tensor], size: float) -> None:
        share.moments = share.moments or [[None] * len(gradients)]  # type: ignore[list-item]
        sgd(share.values, gradients, share.moments[0], lr=size, momentum=self.method.momentum, dampening=0.0,  # type: ignore[arg-type]
            weight_decay=share.decay, nesterov=self.method.optimiser == _NESTEROV, maximize=False, foreach=False)  # type: ignore[arg-type]

    @torch.no_grad()
    def _adam_together(self, share: _Share, gradients: list[Tensor], size: float | Tensor) -> None:
        """Adam (Kingma and Ba, ICLR 2015, algorithm 1) or AdamW (Loshchilov and Hutter, ICLR 2019, algorithm 2)."""
        share.moments = share.moments or [[torch.zeros_like(value) for value in share.values] for _ in range(2)]
        share.count += 1
        first, second = (1 - beta**share.count for beta in _BETAS)
        decayed = bool((torch.as_tensor(share.decay) != 0).any())
        for value, gradient, mean, square in zip(share.values, gradients, *share.moments, strict=True):
            if decayed and self.method.optimiser == "adamw":
                value.mul_(1 - _shaped(size * share.decay, value))
            elif decayed:
                gradient = gradient + _shaped(share.decay, value) * value
            mean.lerp_(gradient, 1 - _BETAS[0])
            square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            length = square.sqrt().mul_(second**-0.5).add_(self.method.epsilon)
            value.addcmul_(torch.div(mean, length, out=length), _shaped(size, value), value=-1 / first)

    @torch.no_grad()
    def _sgd_together(self, share: _Share, gradients: list[Tensor], size: float | Tensor) -> None:
        """SGD with momentum, plain or Nesterov's, as `torch.optim.SGD` defines it."""
        gradients = [torch.addcmul(gradient, _shaped(share.decay, value), value)
                     for gradient, value in zip(gradients, share.values, strict=True)]
        means, momentum = gradients, self.method.momentum
        if momentum and share.moments:
            means = [mean.mul_(momentum).add_(gradient)
                     for mean, gradient in zip(share.moments[0], gradients, strict=True)]
        share.moments = [means]
        ahead = self.method.optimiser == _NESTEROV
        for value, mean, gradient in zip(share.values, means, gradients, strict=True):
            move = torch.add(gradient, mean, alpha=momentum) if ahead else mean
            value.addcmul_(move, _shaped(size, value), value=-1)


def _share(methods: Sequence[Method], values: Sequence[Tensor], start: int, together: int) -> _Share:
    if len(methods) == 1:
        return _Share(None, list(values), _number(methods[0], "learning_rate"), _number(methods[0], "weight_decay"))
    where = slice(start, start + together)
    rate, decay = (values[0].new_tensor([_number(method, name) for method in methods[where]])
                   for name in ("learning_rate", "weight_decay"))
    return _Share(where, [value[where] for value in values], rate, decay)


def _number(method: Method, name: str) -> float:
    return float(method.values.get(name, 0.0))


def _shaped(number: float | Tensor, like: Tensor) -> Tensor:
    """One number per run (runs,) so that it multiplies (runs, ...)."""
    return torch.as_tensor(number, dtype=like.dtype, device=like.device).view(-1, *[1] * (like.ndim - 1))
