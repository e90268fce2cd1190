"""Runs that are trained together: one tensor per parameter with a leading axis of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.functional import cross_entropy, log_softmax

from onceclip.adapters.heads import Head, pack, unpack
from onceclip.adapters.method import Method
from onceclip.adapters.task import Task

Parameters = dict[str, Tensor]
_ELEMENTS = 2**24  # of the largest intermediate tensor where rows are only scored


class Stack:
    """The loss of several runs of one method on one task, as a function of their stacked parameters.

    methods: one per run; they differ in numbers that are only calculated with. task, prepared: what they share.
    A single run has no leading axis, and pays for none.
    """

    def __init__(self, methods: Sequence[Method], task: Task, prepared: Any) -> None:
        self.method, self.prepared, self.runs = methods[0], prepared, len(methods)
        self.differing = {name: task.text.embedding.new_tensor([float(method.values[name]) for method in methods])
                          for name, value in self.method.values.items()
                          if any(method.values[name] != value for method in methods)}
        self._penalised = type(self.method).penalty is not Method.penalty

    def join(self, parameters: Sequence[Parameters]) -> Parameters:
        """Stack the parameters of all runs, row by row in memory: the fused steps take that for granted."""
        if self.runs == 1:
            return {name: value.detach().clone(memory_format=torch.contiguous_format)
                    for name, value in parameters[0].items()}
        return {name: torch.stack([each[name].detach() for each in parameters]) for name in parameters[0]}

    def split(self, parameters: Parameters) -> list[Parameters]:
        """The parameters of every run."""
        if self.runs == 1:
            return [{name: value.detach() for name, value in parameters.items()}]
        return [{name: value[run].detach().clone() for name, value in parameters.items()} for run in range(self.runs)]

    def loss(self, parameters: Parameters, rows: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
        """Loss of every run (runs,), or of the single one ()."""
        if self.runs == 1:
            return self.method.loss(self.prepared, parameters, rows, label, generator)
        # With rows innermost: over a few classes that lie next to each other it takes up to thirty times as long.
        columns = self.head(parameters)(rows).transpose(1, 2).contiguous()
        wanted = label.view(1, 1, -1).expand(len(columns), 1, -1)
        likely = log_softmax(columns, dim=1)
        loss = -likely.gather(1, wanted).mean(dim=(1, 2))
        smoothing = self.differing.get("smoothing", float(self.method.values.get("smoothing", 0.0)))
        if isinstance(smoothing, Tensor) or smoothing:
            loss = (1 - smoothing) * loss - smoothing * likely.mean(dim=(1, 2))
        if self._penalised:
            loss = loss + self._map(lambda method, each: torch.as_tensor(method.penalty(self.prepared, each)),
                                    parameters)
        return loss

    def head(self, parameters: Parameters) -> Head:
        """The head that training sees, of all runs."""
        if self.runs == 1:
            return self.method.training_head(self.prepared, parameters)
        description: dict[str, Any] = {}

        def make(method: Method, each: Parameters) -> Parameters:
            values, tensors = pack(method.training_head(self.prepared, each), copy=False)
            description.update(values)
            return tensors

        tensors = self._map(make, parameters)
        # What all runs share comes back repeated, without memory of its own.
        return unpack(description, {name: value[0] if value.stride(0) == 0 else value
                                    for name, value in tensors.items()})

    def _map(self, function: Callable[[Method, Parameters], Any], parameters: Parameters) -> Any:
        return vmap(lambda each, values: function(self.method.with_values(**values), each))(parameters, self.differing)

    @torch.no_grad()
    def after_epoch(self, parameters: Parameters) -> Parameters:
        """The `state` of all runs after an epoch."""
        if self.runs == 1:
            return self.method.after_epoch(self.prepared, parameters)
        return self._map(lambda method, each: method.after_epoch(self.prepared, each), parameters)

    @torch.no_grad()
    def scores(self, parameters: Parameters, rows: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Accuracy and mean cross-entropy of every run (runs,) on some rows."""
        head = self.head(parameters)
        step = max(1, _ELEMENTS // (head.width * self.runs))
        logits = torch.cat([head(piece) for piece in rows.split(step)], dim=-2)
        logits = logits if logits.ndim == 3 else logits.unsqueeze(0)
        accuracy = (logits.argmax(-1) == label).double().mean(dim=1)
        loss = torch.stack([cross_entropy(each, label) for each in logits])
        return accuracy, loss
