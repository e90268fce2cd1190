"""The one place that trains: a list of runs in, their fitted parameters out.

A method writes its mathematics for one run. Here alone is decided which runs are trained together, and how.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from onceclip.adapters.compiling import compiles, required
from onceclip.adapters.errors import MethodError
from onceclip.adapters.groups import group_sizes, stacks
from onceclip.adapters.method import Method
from onceclip.adapters.run_axis import reduced_products
from onceclip.adapters.stack import Parameters, calculated, stackable
from onceclip.adapters.threads import threads_for
from onceclip.adapters.training import Progress, Run, Training, no_progress


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


def _common(run: Run) -> Any:
    """What runs must have in common to be trained together."""
    method, free = run.method, calculated(run.method)
    return (type(method), id(run.task), id(run.prepared), run.seed, None if stackable(method) else _own(run),
            tuple((name, value) for name, value in _retrain(method).items() if name not in free))


def _own(run: Run) -> Any:
    return tuple(_retrain(run.method).items())


def _train_group(runs: Sequence[Run], progress: Progress) -> list[Parameters]:
    first = runs[0]
    starts = [run.start() for run in runs]
    if not starts[0]:
        return starts
    if first.method.solver == "lbfgs":
        return [_lbfgs(first, starts[0])]
    if first.method.solver == "own":
        with threads_for(first.task.work):
            return [first.method.solve(first.prepared, starts[0], progress)]
    return _by_gradient(runs, starts, progress)


def _by_gradient(runs: Sequence[Run], starts: Sequence[Parameters], progress: Progress) -> list[Parameters]:
    """Train runs in pieces of the size that suits the device."""
    first, device = runs[0], runs[0].task.text.embedding.device.type
    elements = sum(value.numel() * value.element_size() // 4 for value in starts[0].values())
    compile = None
    if compiles(first, elements):
        from onceclip.adapters.compiled import CompiledStep

        compile = CompiledStep(required())
    alone = compile is None and not (stackable(first.method) and stacks(elements, device))
    size, most = (1, 1) if alone else _sizes(first, starts[0], elements, device, len(runs), compile is not None)
    results: list[Parameters] = []
    for start in range(0, len(runs), size):
        places = [min(place, len(runs) - 1) for place in range(start, start + size)]
        with threads_for(first.task.work * most):  # whatever their number: threads and products show in last digits
            training = Training([runs[place] for place in places], [starts[place] for place in places], alone, compile)
            results += training.run(_part(progress, start / len(runs), min(size, len(runs) - start) / len(runs)))
    return results[:len(runs)]


def _sizes(run: Run, start: Parameters, elements: int, device: str, count: int, compiled: bool) -> tuple[int, int]:
    """Number of runs in a piece, of pieces that are as equal as can be; and of the largest pieces that may be.

    What a piece lacks, copies of a run fill. compiled: code of a single run would not be that of several.
    """
    if not stacks(elements, device):
        return 1, 1
    rows = min(int(run.method.values.get("batch_size", 0)) or len(run.task.support), len(run.task.support))
    activations = rows * run.method.training_head(run.prepared, start).width
    least, most = group_sizes(elements, activations, device)
    return max(least, 1 + compiled, -(-count // -(-count // most))), most


def _lbfgs(run: Run, start: Parameters) -> Parameters:
    """Solve a convex problem to convergence."""
    parameters = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    rows, label = run.method.training_rows(run.task, run.prepared, 0)
    noise = run.noise()
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
