"""The one place that trains: a list of runs in, their fitted parameters out.

A method writes its mathematics for one run; how a list is executed is decided here alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.errors import MethodError
from onceclip.adapters.method import Method
from onceclip.adapters.task import Task
from onceclip.adapters.threads import threads_for

Parameters = dict[str, Tensor]
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Run:
    """One training: a method with its values, the task, what `Method.prepare` made of it, and a seed."""

    method: Method
    task: Task
    prepared: Any
    seed: int


def no_progress(fraction: float) -> None:
    """Watch nothing."""


def train(runs: Sequence[Run], progress: Progress = no_progress) -> list[Parameters]:
    """Train every run and give its parameters, in order.

    progress: called now and then with the fraction that is done.
    Raises MethodError if a training diverges.
    """
    return [_train_one(run, lambda part, done=index: progress((done + part) / len(runs)))  # type: ignore[misc]
            for index, run in enumerate(runs)]


def _train_one(run: Run, progress: Progress) -> Parameters:
    start = run.method.initial(run.prepared, torch.Generator().manual_seed(run.seed))
    if not start:
        return {}
    parameters = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    with torch.enable_grad(), threads_for(run.task.work):
        _SOLVERS[run.method.solver](run, parameters, progress)
    progress(1.0)
    if not all(torch.isfinite(value).all() for value in parameters.values()):
        remedy = "lower --set learning_rate" if "learning_rate" in run.method.values else "choose other hyperparameters"
        raise MethodError(f"training of {run.method.name} diverged (its parameters are no longer finite): {remedy}")
    return {name: value.detach() for name, value in parameters.items()}


def _loss(run: Run, parameters: Parameters, rows: Tensor, label: Tensor) -> Tensor:
    logits = run.method.training_head(run.prepared, parameters)(rows)
    return cross_entropy(logits, label) + run.method.penalty(run.prepared, parameters)


def _adamw(run: Run, parameters: Parameters, progress: Progress) -> None:
    method, support = run.method, run.task.support
    optimiser = torch.optim.AdamW(parameters.values(), lr=method.learning_rate, eps=method.epsilon,
                                  weight_decay=method.weight_decay)
    batch = method.batch_size or len(support)
    steps = method.epochs * -(-len(support) // batch)
    if not steps:
        return
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    # Start values and batch order come from two streams, so that one never shifts the other.
    order = torch.Generator().manual_seed(run.seed + 2**32)
    for epoch in range(method.epochs):
        rows, label = support.epoch(epoch), support.label
        if batch >= len(support):
            pieces: Sequence[Tensor | slice] = [slice(None)]
        else:
            pieces = torch.randperm(len(support), generator=order).to(label.device).split(batch)
        for piece in pieces:
            optimiser.zero_grad()
            _loss(run, parameters, rows[piece], label[piece]).backward()
            optimiser.step()
            schedule.step()
        progress((epoch + 1) / method.epochs)


def _lbfgs(run: Run, parameters: Parameters, progress: Progress) -> None:
    rows, label = run.task.support.stacked
    optimiser = torch.optim.LBFGS(parameters.values(), max_iter=1000, history_size=20, tolerance_grad=1e-6,
                                  tolerance_change=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = _loss(run, parameters, rows, label)
        loss.backward()
        return loss

    optimiser.step(closure)


_SOLVERS: dict[str, Callable[[Run, Parameters, Progress], None]] = {"adamw": _adamw, "lbfgs": _lbfgs}
