"""Runs that are trained together: one tensor per parameter with a leading axis of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.functional import cross_entropy, log_softmax

from onceclip.adapters.errors import MethodError
from onceclip.adapters.heads import Head, pack, unpack
from onceclip.adapters.heads.batched import elements_at_once
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Trainable

_NEEDS_A_NUMBER = "__round__", "as an integer", ".item()", "control flow"  # in what Python and vmap say

Parameters = dict[str, Tensor]
_FIXED = {"epsilon", "momentum"}  # one number for all runs of a stack
OF_STEPS = {"learning_rate", "weight_decay", "clip"}  # of the optimizer, no part of the loss


def stackable(method: Trainable) -> bool:
    """Whether runs of a method may share their steps: trained by gradient, on the loss that a stack computes."""
    return method.solver == "gradient" and method.plain_loss and method.shares_steps


def varying(method: Trainable) -> set[str]:
    """Names of the float hyperparameters that may differ between the runs of a stack."""
    return {name for name, setting in method.hyperparameters.items()
            if setting.retrain and isinstance(method.values[name], float) and name not in _FIXED}


class Stack:
    """The loss of several runs of one method on one task, as a function of their stacked parameters.

    methods: one per run; only float hyperparameters differ. task, prepared: what they share.
    alone: whether it is a single run whose parameters have no leading axis. The numbers of a run in a stack do not
    depend on those beside it; they differ in the last digits from those of the run alone.
    """

    def __init__(self, methods: Sequence[Trainable], task: Task, prepared: Any, alone: bool = False) -> None:
        self.method, self.prepared, self.runs, self.alone = methods[0], prepared, len(methods), alone
        # All that may differ between runs, also where it does not: rounding must not depend on the other runs.
        self.numbers = {name: self._tensor([float(method.values[name]) for method in methods], task)
                        for name in varying(self.method) - OF_STEPS} if stackable(self.method) else {}
        self.smoothed = any(method.values.get("smoothing") for method in methods)
        self._shared: set[str] | None = None
        self._penalized = self.method.has_penalty

    def _tensor(self, numbers: list[float], task: Task) -> Tensor:
        return task.text.embedding.new_tensor(numbers[0] if self.alone else numbers)

    def join(self, parameters: Sequence[Parameters]) -> Parameters:
        """Stack the parameters of all runs, row by row in memory: the fused steps take that for granted."""
        if self.alone:
            return {name: value.detach().clone(memory_format=torch.contiguous_format)
                    for name, value in parameters[0].items()}
        return {name: torch.stack([each[name].detach() for each in parameters]) for name in parameters[0]}

    def split(self, parameters: Parameters) -> list[Parameters]:
        """The parameters of every run."""
        if self.alone:
            return [{name: value.detach() for name, value in parameters.items()}]
        return [{name: value[run].detach().clone() for name, value in parameters.items()} for run in range(self.runs)]

    def loss(self, parameters: Parameters, rows: Tensor, label: Tensor, generator: torch.Generator,
             numbers: Parameters | None = None, weight: Tensor | None = None) -> Tensor:
        """Loss of every run (runs,), or of the one alone ().

        numbers: hyperparameters as tensors, in place of the runs' own. weight: (n,), how much each row counts in the
        mean; None for one.
        """
        if self.alone and numbers is None and weight is None:
            loss = self.method.loss(self.prepared, parameters, rows, label, generator)
            if loss.ndim:  # whose sum would be as many times too steep
                raise MethodError(f"loss of {self.method.name} has the shape {tuple(loss.shape)}: give one number, "
                                  "such as the mean over the rows")
            return loss
        numbers = self.numbers if numbers is None else numbers
        if self.alone:  # with tensors as hyperparameters, where `Method.loss` reads Python numbers
            method = self.method.with_values(**numbers)
            log_probability = log_softmax(method.training_head(self.prepared, parameters)(rows), dim=1).T
        else:
            # With rows innermost: over a few classes that lie next to each other it takes up to thirty times as long.
            log_probability = log_softmax(self.head(parameters, numbers)(rows).transpose(1, 2).contiguous(), dim=1)
        target = label.expand(*log_probability.shape[:-2], 1, -1)
        loss = -_mean(log_probability.gather(-2, target), weight)
        if self.smoothed:
            smoothing = numbers["smoothing"]
            loss = (1 - smoothing) * loss - smoothing * _mean(log_probability, weight)
        if self._penalized and self.alone:
            loss = loss + method.penalty(self.prepared, parameters)
        elif self._penalized:
            loss = loss + self._map(lambda method, each: torch.as_tensor(method.penalty(self.prepared, each)),
                                    parameters, numbers)
        return loss

    def head(self, parameters: Parameters, numbers: Parameters | None = None) -> Head:
        """The head that training sees, of all runs."""
        if self.alone:
            return self.method.training_head(self.prepared, parameters)
        description: dict[str, Any] = {}
        tensors: Parameters = {}

        def make(method: Trainable, each: Parameters) -> Parameters:
            values, packed = pack(method.training_head(self.prepared, each), copy=False)
            description.update(values)
            tensors.update(packed)
            return packed

        if self._shared is None:
            self._shared = self._without_runs(make, parameters)
        # What all runs share is taken as it is, not repeated for each.
        tensors |= {name: value for name, value in self._map(make, parameters, numbers).items()
                    if name not in self._shared}
        return unpack(description, tensors)

    @torch.no_grad()
    def _without_runs(self, make: Callable[[Trainable, Parameters], Parameters], parameters: Parameters) -> set[str]:
        """Names of a head's tensors that all runs share; those of two runs come back repeated, without memory."""
        twice = ({name: torch.cat([value[:1], value[:1]]).detach() for name, value in values.items()}
                 for values in (parameters, self.numbers))
        return {name for name, value in self._map(make, *twice).items() if value.stride(0) == 0}

    def _map(self, function: Callable[[Trainable, Parameters], Any], parameters: Parameters,
             numbers: Parameters | None = None) -> Any:
        try:
            return vmap(lambda each, values: function(self.method.with_values(**values), each))(
                parameters, self.numbers if numbers is None else numbers)
        except (TypeError, RuntimeError) as error:
            if not any(each in str(error) for each in _NEEDS_A_NUMBER):
                raise
            raise MethodError(f"{self.method.name} uses a float hyperparameter as a count or in a condition, and here "
                              f"it is a tensor of several runs ({str(error).splitlines()[0]}): give it a default that "
                              "is a whole number, or only calculate with it") from error

    @torch.no_grad()
    def after_epoch(self, parameters: Parameters) -> Parameters:
        """The `state` of all runs after an epoch."""
        if self.alone:
            return self.method.after_epoch(self.prepared, parameters)
        return self._map(lambda method, each: method.after_epoch(self.prepared, each), parameters)

    @torch.no_grad()
    def scores(self, parameters: Parameters, rows: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Accuracy and mean cross-entropy of every run (runs,) on some rows.

        label: (n,), or (n, classes) bool where rows have several, any of which is right.
        """
        head = self.head(parameters)
        step = max(1, elements_at_once(rows.device.type) // (head.width * self.runs))
        right, loss = [], []
        for batch, own in zip(rows.split(step), label.split(step), strict=True):
            logits = head(batch)
            logits = logits if logits.ndim == 3 else logits.unsqueeze(0)
            best, target = logits.argmax(-1), own
            if own.ndim > 1:
                target = (own / own.sum(dim=1, keepdim=True)).to(logits)
                right.append(own.gather(1, best.T).T)
            else:
                right.append(best == own)
            loss.append(cross_entropy(logits.flatten(0, 1), torch.cat([target] * len(logits)), reduction="none")
                        .view(len(logits), -1))
        return tuple(torch.cat(each, dim=1).double().mean(dim=1) for each in (right, loss))  # type: ignore[return-value]


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of values (..., classes, n) over classes and rows. weight: (n,), how much each row counts, or None."""
    if weight is None:
        return values.mean(dim=(-2, -1))
    return (values.mean(dim=-2) * weight).sum(dim=-1) / weight.sum().clamp_min(torch.finfo(values.dtype).tiny)
