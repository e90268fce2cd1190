"""The one place that trains: a list of runs in, their fitted parameters out.

A method writes its mathematics for one run. Here alone is decided which runs are trained together, and how.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from onceclip.adapters.convex import solve
from onceclip.adapters.descent import descend
from onceclip.adapters.errors import MethodError
from onceclip.adapters.method import Method
from onceclip.adapters.run_axis import reduced_products
from onceclip.adapters.stack import Parameters, calculated, stackable
from onceclip.adapters.threads import threads_for
from onceclip.adapters.training import Progress, Run, no_progress, part_of


def train(runs: Sequence[Run], progress: Progress = no_progress, narrow: bool = False) -> list[Parameters]:
    """Train every run and give its parameters, in order.

    Runs on one task with one seed that differ only in numbers are trained together where that is faster; the result is
    that of the runs one by one. Equal runs are trained once.
    progress: called now and then with the fraction that is done. narrow: multiply matrices in bfloat16, for a search
    whose winners are trained again; parameters and sums stay as they are.
    """
    results: list[Parameters] = [{} for _ in runs]
    groups: dict[Any, dict[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, run in enumerate(runs):
        groups[_common(run)][_own(run)].append(place)
    done = 0.0
    for group in groups.values():
        share = sum(map(len, group.values())) / len(runs)
        with reduced_products(torch.bfloat16 if narrow else None):
            trained = _train_group([runs[equal[0]] for equal in group.values()], part_of(progress, done, share))
        for equal, parameters in zip(group.values(), trained, strict=True):
            for place in equal:
                results[place] = parameters
        done += share
    if any(results):
        progress(1.0)
    return results


def finite(parameters: Parameters) -> bool:
    """Whether a training went well."""
    return all(math.isfinite(float(value.sum())) for value in parameters.values())


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
    return (id(run.task), id(run.prepared), run.seed, type(method), None if stackable(method) else _own(run),
            tuple((name, value) for name, value in _retrain(method).items() if name not in free))


def _own(run: Run) -> Any:
    return tuple(_retrain(run.method).items())


def _train_group(group: Sequence[Run], progress: Progress) -> list[Parameters]:
    first, start = group[0], group[0].start
    if not start:
        return [{} for _ in group]
    if first.method.solver == "lbfgs":
        return [solve(first, start)]
    if first.method.solver == "own":
        with threads_for(first.task.work):
            return [first.method.solve(first.prepared, start, progress)]
    return descend(group, progress)
