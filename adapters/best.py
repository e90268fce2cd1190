"""The best parameters of a training by its validation rows."""

from __future__ import annotations

import torch

from onceclip.adapters.method import Method
from onceclip.adapters.stack import Parameters, Stack
from onceclip.adapters.task import Rows, Task


class Best:
    """Keeps what was best so far, run by run, where a method has `keep` set to "best" and the task validation rows.

    Ties go to the lower cross-entropy, then to the earlier epoch. With a `patience`, a run that has not become better
    for that many epochs is over: later epochs, which runs beside it may need, count no more.
    """

    def __init__(self, stack: Stack, method: Method, task: Task) -> None:
        self.stack, self.patience = stack, int(method.values.get("patience", 0))
        self.rows: Rows | None = task.val if method.values.get("keep") == "best" and task.val else None
        self.input = None if self.rows is None else method.rows_of(self.rows)
        runs, device = stack.runs, task.device
        self.accuracy = torch.full((runs,), -1.0, dtype=torch.float64, device=device)
        self.loss = torch.full((runs,), float("inf"), device=device)
        self.epoch = torch.zeros(runs, dtype=torch.int64, device=device)
        self.over = torch.zeros(runs, dtype=torch.bool, device=device)
        self.kept: Parameters = {}

    def seen(self, parameters: Parameters, epoch: int) -> bool:
        """Look at the parameters after an epoch; whether all runs are over."""
        if self.rows is None or self.input is None:
            return False
        accuracy, loss = self.stack.scores(parameters, self.input, self.rows.label)
        better = ~self.over & ((accuracy > self.accuracy) | ((accuracy == self.accuracy) & (loss < self.loss)))
        for name, value in parameters.items():
            if name not in self.kept:
                self.kept[name] = value.detach().clone()
            elif self.stack.alone:
                if better:
                    self.kept[name].copy_(value.detach())
            else:
                self.kept[name][better] = value.detach()[better]
        self.accuracy = torch.where(better, accuracy, self.accuracy)
        self.loss = torch.where(better, loss.to(self.loss.dtype), self.loss)
        self.epoch = torch.where(better, epoch, self.epoch)
        if self.patience:
            self.over |= epoch - self.epoch >= self.patience
        return bool(self.over.all())

    def chosen(self, last: Parameters) -> Parameters:
        """The best parameters, or the last where nothing is watched."""
        return self.kept or last
