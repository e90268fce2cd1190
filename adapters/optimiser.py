"""Gradient steps for stacked runs, each with its own step size and decay."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.method import Method
from onceclip.adapters.schedule import Moment, step_size


class Optimiser:
    """AdamW, Adam or SGD on parameters with a leading axis of runs (none for a single run).

    methods: one per run, those of equal `rate_and_decay` next to each other: they share a step.
    """

    def __init__(self, methods: Sequence[Method], parameters: dict[str, Tensor]) -> None:
        self.method, self.parameters = methods[0], list(parameters.values())
        self.slices: list[tuple[slice | None, list[Tensor]]] = []
        groups: list[dict[str, Any]] = []
        start = 0
        for (rate, decay), members in groupby(methods, key=rate_and_decay):
            stop = start + len(list(members))
            where = None if len(methods) == 1 else slice(start, stop)
            views = [value.detach() if where is None else value.detach()[where] for value in self.parameters]
            self.slices.append((where, views))
            groups.append({"params": views, "lr": rate, "weight_decay": decay, "rate": rate})
            start = stop
        self.inner = _KINDS[self.method.optimiser](groups, self.method)

    def step(self, gradients: Sequence[Tensor], at: Moment) -> None:
        """Move the parameters against their gradients."""
        for where, views in self.slices:
            for view, gradient in zip(views, gradients, strict=True):
                # The fused steps read a gradient as if it were laid out like its parameter.
                view.grad = (gradient if where is None else gradient[where]).contiguous()
        for group in self.inner.param_groups:
            group["lr"] = step_size(self.method.schedule, group["rate"], at, self.method.warmup)
        self.inner.step()


def rate_and_decay(method: Method) -> tuple[float, float]:
    """What may differ between runs that step together."""
    return float(method.values.get("learning_rate", 0.0)), float(method.values.get("weight_decay", 0.0))


def _adamw(groups: list[dict[str, Any]], method: Method) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, eps=method.epsilon, fused=_fused(groups))


def _adam(groups: list[dict[str, Any]], method: Method) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, eps=method.epsilon, fused=_fused(groups))


def _sgd(groups: list[dict[str, Any]], method: Method) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=method.momentum)


def _fused(groups: list[dict[str, Any]]) -> bool:
    return groups[0]["params"][0].device.type in ("cpu", "cuda")


_KINDS = {"adamw": _adamw, "adam": _adam, "sgd": _sgd}
