"""The one place that trains: a list of runs in, their fitted parameters out.

A method writes its mathematics for one run. Here alone is decided which runs are trained together, and how.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from onceclip.adapters.compiling import required
from onceclip.adapters.convex import solve
from onceclip.adapters.descent import descend
from onceclip.adapters.errors import MethodError
from onceclip.adapters.groups import in_lockstep
from onceclip.adapters.method import Method
from onceclip.adapters.run_axis import reduced_products
from onceclip.adapters.stack import Parameters, calculated, stackable
from onceclip.adapters.threads import threads_for
from onceclip.adapters.training import Progress, Run, no_progress, part_of


def train(runs: Sequence[Run], progress: Progress = no_progress, narrow: bool = False) -> list[Parameters]:
    """Train every run and give its parameters, in order.

    Runs on one task with one seed that differ only in numbers are trained together where that is faster, on a GPU
    those on tasks and with seeds of their own too; the result is that of the runs one by one. Equal runs are trained
    once.
    progress: called now and then with the fraction that is done. narrow: multiply matrices in bfloat16, for a search
    whose winners are trained again; parameters and sums stay as they are.
    """
    results: list[Parameters] = [{} for _ in runs]
    together: dict[Any, dict[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, run in enumerate(runs):
        together[_common(run)][_own(run)].append(place)
    abreast: dict[Any, list[list[list[int]]]] = defaultdict(list)
    for members in together.values():
        group = list(members.values())
        abreast[_kind(runs[group[0][0]])].append(group)
    done = 0.0
    for groups in abreast.values():
        share = sum(len(equal) for group in groups for equal in group) / len(runs)
        with reduced_products(torch.bfloat16 if narrow else None):
            trained = _train_groups([[runs[equal[0]] for equal in group] for group in groups],
                                    part_of(progress, done, share))
        for equal, parameters in zip(chain(*groups), chain(*trained), strict=True):
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


def _kind(run: Run) -> Any:
    """What groups must have in common that may be trained side by side; `lockstep.bundles` looks at their tasks."""
    alone = not stackable(run.method) or not in_lockstep(run.task.device.type) or required()
    return _common(run) if alone else (run.task.device.type, len(run.task.support), *_common(run)[3:])


def _own(run: Run) -> Any:
    return tuple(_retrain(run.method).items())


def _train_groups(groups: Sequence[Sequence[Run]], progress: Progress) -> list[list[Parameters]]:
    """Train groups; where these are several, they are of a method with gradient steps."""
    first, start = groups[0][0], groups[0][0].start
    if not start:
        return [[{} for _ in group] for group in groups]
    if first.method.solver == "lbfgs":
        return [[solve(first, start)]]
    if first.method.solver == "own":
        with threads_for(first.task.work):
            return [[first.method.solve(first.prepared, start, progress)]]
    return descend(groups, progress)
