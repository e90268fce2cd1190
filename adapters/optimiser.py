"""Gradient steps for stacked runs, each with its own step size and decay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from onceclip.adapters.method import Method
from onceclip.adapters.schedule import Moment, step_size


@dataclass
class _Share:
    """The part of every parameter that belongs to runs of one learning rate and decay, and what its optimiser keeps."""

    learning_rate: float
    weight_decay: float
    where: slice | None  # among the runs; None for a single one
    values: list[Tensor]
    moments: list[list[Tensor]] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)


class Optimiser:
    """AdamW, Adam or SGD on parameters with a leading axis of runs (none for a single run).

    methods: one per run, those of equal `rate_and_decay` next to each other: they share a step.
    The functions behind torch's optimisers are called directly: small steps spend most of their time in the classes.
    """

    def __init__(self, methods: Sequence[Method], parameters: dict[str, Tensor]) -> None:
        self.method = methods[0]
        self.shares: list[_Share] = []
        start = 0
        for (rate, decay), members in groupby(methods, key=rate_and_decay):
            stop = start + len(list(members))
            where = None if len(methods) == 1 else slice(start, stop)
            values = [value.detach() if where is None else value.detach()[where] for value in parameters.values()]
            self.shares.append(_Share(rate, decay, where, values))
            start = stop

    def step(self, gradients: Sequence[Tensor], at: Moment) -> None:
        """Move the parameters against their gradients."""
        for share in self.shares:
            # The fused steps read a gradient as if it were laid out like its parameter.
            own = [(each if share.where is None else each[share.where]).contiguous() for each in gradients]
            rate = step_size(self.method.schedule, share.learning_rate, at, self.method.warmup)
            (self._sgd if self.method.optimiser == "sgd" else self._adam)(share, own, rate)

    @torch.no_grad()
    def _adam(self, share: _Share, gradients: list[Tensor], rate: float) -> None:
        if not share.moments:
            share.moments = [[torch.zeros_like(value) for value in share.values] for _ in range(2)]
            share.steps = [torch.zeros((), device=value.device) for value in share.values]
        function = adamw if self.method.optimiser == "adamw" else adam
        first, second = share.moments
        function(share.values, gradients, first, second, [], share.steps, lr=rate, eps=self.method.epsilon,
                 weight_decay=share.weight_decay, amsgrad=False, maximize=False, beta1=0.9, beta2=0.999,
                 fused=share.values[0].device.type in ("cpu", "cuda"), foreach=False)

    @torch.no_grad()
    def _sgd(self, share: _Share, gradients: list[Tensor], rate: float) -> None:
        share.moments = share.moments or [[None] * len(gradients)]  # type: ignore[list-item]
        sgd(share.values, gradients, share.moments[0], lr=rate, momentum=self.method.momentum, dampening=0.0,  # type: ignore[arg-type]
            weight_decay=share.weight_decay, nesterov=False, maximize=False, foreach=False)


def rate_and_decay(method: Method) -> tuple[float, float]:
    """What may differ between runs that step together."""
    return float(method.values.get("learning_rate", 0.0)), float(method.values.get("weight_decay", 0.0))
