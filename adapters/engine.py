"""The one place that trains: a list of runs in, their fitted parameters out.

A method writes its mathematics for one run. Here alone is decided which runs are trained together, and how.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from onceclip.adapters.best import Best
from onceclip.adapters.errors import MethodError
from onceclip.adapters.groups import group_size
from onceclip.adapters.method import Method
from onceclip.adapters.optimiser import Optimiser
from onceclip.adapters.run_axis import reduced_products
from onceclip.adapters.schedule import Moment
from onceclip.adapters.stack import Parameters, Stack
from onceclip.adapters.stream import BLOCK, Stream
from onceclip.adapters.task import Task
from onceclip.adapters.threads import threads_for

Progress = Callable[[float], None]
_ORDER, _NOISE = 2**32, 2**33  # start values, batch order and noise come from streams of their own


@dataclass(frozen=True)
class Run:
    """One training: a method with its values, the task, what `Method.prepare` made of it, and a seed."""

    method: Method
    task: Task
    prepared: Any
    seed: int


def no_progress(fraction: float) -> None:
    """Watch nothing."""


def train(runs: Sequence[Run], progress: Progress = no_progress, narrow: bool = False) -> list[Parameters]:
    """Train every run and give its parameters, in order.

    Runs on one task with one seed that differ only in numbers are trained together where that is faster; the
    result is that of the runs one by one. Equal runs are trained once.
    progress: called now and then with the fraction that is done. narrow: multiply matrices in bfloat16, for a search
    whose winners are trained again; parameters and sums stay as they are.
    """
    results: list[Parameters] = [{} for _ in runs]
    together: dict[Any, dict[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, run in enumerate(runs):
        together[_common(run)][_own(run)].append(place)
    done = 0.0
    for members in together.values():
        places = list(members.values())
        group = [runs[equal[0]] for equal in places]
        share = sum(map(len, places)) / len(runs)
        with reduced_products(torch.bfloat16 if narrow else None):
            trained = _train_group(group, _part(progress, done, share))
        for equal, parameters in zip(places, trained, strict=True):
            for place in equal:
                results[place] = parameters
        done += share
    if any(results):
        progress(1.0)
    return results


def _part(progress: Progress, start: float, share: float) -> Progress:
    return lambda fraction: progress(start + fraction * share)


def finite(parameters: Parameters) -> bool:
    """Whether a training went well."""
    return all(bool(torch.isfinite(value).all()) for value in parameters.values())


def require_finite(method: Method, parameters: Parameters) -> None:
    """Raise MethodError if the training of a run diverged."""
    if not finite(parameters):
        remedy = "lower --set learning_rate" if "learning_rate" in method.values else "choose other hyperparameters"
        raise MethodError(f"training of {method.name} diverged (its parameters are no longer finite): {remedy}")


def _retrain(method: Method) -> dict[str, Any]:
    return {name: value for name, value in method.values.items() if method.hyperparameters[name].retrain}


def _calculated(method: Method) -> set[str]:
    """Names of the numbers that may differ within a group."""
    fixed = {"epsilon", "momentum"}
    return {name for name, value in _retrain(method).items() if isinstance(value, float) and name not in fixed}


def _common(run: Run) -> Any:
    """What runs must have in common to be trained together."""
    method, free = run.method, _calculated(run.method)
    alone = method.solver != "gradient" or type(method).loss is not Method.loss
    return (type(method), id(run.task), id(run.prepared), run.seed, _own(run) if alone else None,
            tuple((name, value) for name, value in _retrain(method).items() if name not in free))


def _own(run: Run) -> Any:
    return tuple(_retrain(run.method).items())


def _train_group(runs: Sequence[Run], progress: Progress) -> list[Parameters]:
    first = runs[0]
    starts = [run.method.initial(run.prepared, torch.Generator().manual_seed(run.seed)) for run in runs]
    if not starts[0]:
        return starts
    if first.method.solver == "lbfgs":
        return [_lbfgs(first, starts[0])]
    if first.method.solver == "own":
        with threads_for(first.task.work):
            return [first.method.solve(first.prepared, starts[0], progress)]
    steps = first.method.epochs * steps_per_epoch(first)
    with threads_for(first.task.work):  # timed as it will run
        size = group_size(lambda count: Training(runs[:count], starts[:count]), len(runs), steps, first.method,
                          first.task)
    results: list[Parameters] = []
    for start in range(0, len(runs), size):
        piece = slice(start, start + size)
        with threads_for(first.task.work * len(runs[piece])):
            training = Training(runs[piece], starts[piece])
            results += training.run(_part(progress, start / len(runs), len(runs[piece]) / len(runs)))
    return results


def steps_per_epoch(run: Run) -> int:
    """Number of steps of a run's epochs."""
    support, any_order = run.task.support, torch.Generator().manual_seed(0)
    if isinstance(support, Stream):
        whole, rest = divmod(len(support), BLOCK)
        sizes = [(whole, BLOCK), (1, rest)]
        return sum(count * len(run.method.batches(size, any_order)) for count, size in sizes if size)
    _, label = run.method.training_rows(run.task, run.prepared, 0)
    return len(run.method.batches(len(label), any_order))


class Training:
    """Some runs on their way from start values to fitted parameters."""

    def __init__(self, runs: Sequence[Run], starts: Sequence[Parameters]) -> None:
        self.first, methods = runs[0], [run.method for run in runs]
        self.stack = Stack(methods, self.first.task, self.first.prepared)
        joined = self.stack.join(starts)
        self.state = {name: joined.pop(name) for name in self.first.method.state if name in joined}
        self.parameters = {name: value.requires_grad_() for name, value in joined.items()}
        self.optimiser = Optimiser(methods, self.parameters)
        self.steps = steps_per_epoch(self.first)
        self.order = torch.Generator().manual_seed(self.first.seed + _ORDER)
        self.noise = torch.Generator().manual_seed(self.first.seed + _NOISE)

    def run(self, progress: Progress = no_progress) -> list[Parameters]:
        """Carry out all epochs and give the parameters of every run: the last, or the best on validation rows."""
        method, task = self.first.method, self.first.task
        best = Best(self.stack, method, task)
        for epoch in range(method.epochs):
            self.epoch(epoch)
            if self.state:
                self.state = self.stack.after_epoch(self.parameters | self.state)
            progress((epoch + 1) / method.epochs)
            if best.seen(self.parameters | self.state, epoch):
                break
        return self.stack.split(best.chosen(self.parameters | self.state))

    def epoch(self, number: int, most: int | None = None) -> None:
        """Carry out one epoch, or the first `most` steps of it."""
        method, steps = self.first.method, self.steps
        for place, (rows, label) in enumerate(islice(self._batches(number), most)):
            with torch.enable_grad():
                loss = self.stack.loss(self.parameters | self.state, rows, label, self.noise)
                gradients = torch.autograd.grad(loss.sum(), list(self.parameters.values()))
            self.optimiser.step(gradients, Moment(number * steps + place, method.epochs * steps, number, method.epochs))

    def _batches(self, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Rows and labels of every step of an epoch."""
        method, support = self.first.method, self.first.task.support
        blocks = (support.blocks(self.order) if isinstance(support, Stream) else
                  [method.training_rows(self.first.task, self.first.prepared, number)])
        for rows, label in blocks:
            for piece in method.batches(len(label), self.order):
                yield _at(rows, piece), _at(label, piece)


def _at(values: torch.Tensor, piece: torch.Tensor | slice) -> torch.Tensor:
    return values[piece] if isinstance(piece, slice) else values.index_select(0, piece.to(values.device))


def _lbfgs(run: Run, start: Parameters) -> Parameters:
    """Solve a convex problem to convergence."""
    parameters = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    rows, label = run.method.training_rows(run.task, run.prepared, 0)
    noise = torch.Generator().manual_seed(run.seed + _NOISE)
    optimiser = torch.optim.LBFGS(parameters.values(), max_iter=1000, history_size=20, tolerance_grad=1e-6,
                                  tolerance_change=1e-9, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = run.method.loss(run.prepared, parameters, rows, label, noise)
        loss.backward()
        return loss

    with torch.enable_grad(), threads_for(run.task.work):
        optimiser.step(closure)
    return {name: value.detach() for name, value in parameters.items()}
