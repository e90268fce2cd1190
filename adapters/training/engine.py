"""The one place that trains: a list of runs in, their fitted parameters out.

A method is written for one run; which runs are trained together is decided here alone. Runs trained beside a run must
not change its numbers, in whichever process. So whether a run shares its steps depends on its own size only, even if
there is no other run; how many runs share a step depends on the machine's caches, and numbers do not depend on that.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from onceclip.adapters.cpu import narrow_dtype, threads_for
from onceclip.adapters.errors import MethodError
from onceclip.adapters.heads.packing import plugin_heads
from onceclip.adapters.ops import reduced_products
from onceclip.adapters.training.compile import CompiledStep, compiles
from onceclip.adapters.training.convex import solve
from onceclip.adapters.training.loop import Progress, Run, Training, no_progress, part_of
from onceclip.adapters.training.stack import OF_STEPS, Parameters, stackable, varying
from onceclip.adapters.training.trainable import Trainable

_STACKED_BELOW = {"cpu": 2**17}  # elements of a run's parameters: larger stacks would not fit into a core's caches
_STEP_ELEMENTS = {"cpu": 2**19, "cuda": 2**28}  # that one step of a stack works on
_MIN_STACK_ELEMENTS = 2**13  # of parameters: libraries sum smaller products in another order
_MAX_RUNS = {"cpu": 64, "cuda": 1024}
_NO_GRADIENT = "does not require grad", "not have been used in the graph"  # in what torch says


def train(runs: Sequence[Run], progress: Progress = no_progress, narrow: bool = False) -> list[Parameters]:
    """Train every run and give its parameters, in order.

    Runs that share a task and a seed, of which only float hyperparameters differ, are trained together where that is
    faster; the result is that of the runs one by one. Equal runs are trained once.
    progress: called now and then with the fraction that is done. narrow: multiply matrices in bfloat16, where that
    is faster, for a search whose winners are trained again; parameters and sums stay as they are.
    """
    results: list[Parameters] = [{} for _ in runs]
    groups: dict[Any, dict[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, run in enumerate(runs):
        groups[_group_key(run)][run.method.training_values].append(place)
    done = 0.0
    for group in groups.values():
        share = sum(map(len, group.values())) / len(runs)
        with reduced_products(narrow_dtype(runs[0].task.device.type) if narrow else None):
            trained = _train_group([runs[equal[0]] for equal in group.values()], part_of(progress, done, share))
        for equal, parameters in zip(group.values(), trained, strict=True):
            for place in equal:
                results[place] = parameters
        done += share
    if any(results):
        progress(1.0)
    return results


def finite(parameters: Parameters) -> bool:
    """Whether all parameters are finite, as they are unless a training diverged."""
    return all(math.isfinite(float(value.sum())) for value in parameters.values())


def require_finite(method: Trainable, parameters: Parameters) -> None:
    """Raise MethodError if the training of a run diverged."""
    if not finite(parameters):
        remedy = "lower --set learning_rate" if "learning_rate" in method.values else "choose other hyperparameters"
        raise MethodError(f"training of {method.name} diverged (its parameters are no longer finite): {remedy}")


def _group_key(run: Run) -> Any:
    """What runs must share to be trained together."""
    method = run.method
    free = varying(method) if stackable(method) else set()
    fixed = tuple((name, value) for name, value in method.training_values if name not in free)
    return id(run.task), id(run.prepared), run.seed, type(method), fixed


def _train_group(group: Sequence[Run], progress: Progress) -> list[Parameters]:
    first, start = group[0], group[0].start
    if isinstance(start, dict) and not start:
        return [{} for _ in group]
    if not (isinstance(start, dict) and all(isinstance(value, Tensor) and value.is_floating_point()
                                            for value in start.values())):
        raise MethodError(f"initial of {first.method.name} gives no floating tensors by name: give {{'weight': ...}}")
    if first.method.solver == "own":
        with threads_for(first.method.work(first.task)):
            return [first.method.solve(first.prepared, start, progress)]
    try:
        return [solve(first, start)] if first.method.solver == "lbfgs" else _descend(group, progress)
    except RuntimeError as error:
        if not any(each in str(error) for each in _NO_GRADIENT):
            raise
        raise MethodError(f"the loss of {first.method.name} does not depend on all parameters that its initial gives "
                          f"({', '.join(start)}): calculate it, or the training head, from each of them, and detach "
                          "none") from error


def _descend(group: Sequence[Run], progress: Progress) -> list[Parameters]:
    """Train the runs of a group by gradient descent, in stacks of a size that suits the device."""
    run, device = group[0], group[0].task.device.type
    if "epochs" not in run.method.values:
        raise MethodError(f"{run.method.name} is trained and does not say how: add **recipe(learning_rate, epochs) to "
                          "its hyperparameters")
    elements = sum(value.numel() * value.element_size() // 4 for value in run.start.values())
    compile_step = CompiledStep() if compiles(run, elements) else None
    shared = stackable(run.method) and stacks(elements, device)
    head = run.method.training_head(run.prepared, run.start) if shared else None
    alone = head is None or bool(plugin_heads(head))  # one from outside need not know of an axis of runs
    size = most = 1
    if head is not None and not alone:
        least, most = group_sizes(elements, _rows_of_step(run) * head.width, device)
        # Stacks of equal size; a compiled one has two runs at least, since code for a single run is other code.
        size = max(least, 1 if compile_step is None else 2, -(-len(group) // -(-len(group) // most)))
    results: list[Parameters] = []
    starts: dict[Any, Parameters] = {}
    # For the largest number of runs, whatever it is here: the last digits depend on threads and products.
    with threads_for(run.method.work(run.task) * most):
        for begin in range(0, len(group), size):
            runs = group[begin:begin + size]
            padded = [*runs, *[runs[-1]] * (size - len(runs))]  # by copies, which change nothing
            training = Training(padded, [_start(each, starts) for each in padded], alone, compile_step)
            share = part_of(progress, begin / len(group), len(runs) / len(group))
            results += training.run(share)[:len(runs)]
    return results


def _start(run: Run, known: dict[Any, Parameters]) -> Parameters:
    """Start values of a run, drawn once for those that differ in numbers of the optimizer alone."""
    key = tuple((name, value) for name, value in run.method.training_values if name not in OF_STEPS)
    if key not in known:
        known[key] = run.start
    return known[key]


def _rows_of_step(run: Run) -> int:
    count = len(run.task.support)
    return min(int(run.method.values.get("batch_size", 0)) or count, count)


def stacks(parameters: int, device: str) -> bool:
    """Whether runs with so many elements of parameters share their steps; on a GPU all do."""
    return parameters < _STACKED_BELOW.get(device, 2**63)


def group_sizes(parameters: int, activations: int, device: str) -> tuple[int, int]:
    """The smallest and the largest number of runs that share a step.

    parameters, activations: elements of one run, the latter of the largest intermediate tensor of a step.
    """
    kind = device if device in _STEP_ELEMENTS else "cuda"
    most = max(1, min(_MAX_RUNS[kind], _STEP_ELEMENTS[kind] // (parameters + activations)))
    return (min(most, -(-_MIN_STACK_ELEMENTS // parameters)) if kind == "cpu" else 1), most
