"""Which runs a sweep is asked for: methods, shots, seeds, and the values of grids."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from onceclip.adapters.inference import inference_class
from onceclip.adapters.selection.search import GRID
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.runs.automatic import is_average, run_method
from onceclip.pipeline.runs.run import NO_INFERENCE, RunSpec

OWN = "own"  # the grid of every method's own search values


def make_specs(methods: Sequence[str], shots: Sequence[int | None], seeds: Sequence[int],
               grids: Sequence[tuple[str, Sequence[str]]] = (), own: bool = False,
               inferences: Sequence[str] = (NO_INFERENCE,), inference_values: Sequence[tuple[str, str]] = (),
               batches: Mapping[str, Any] | None = None, **common: Any) -> list[RunSpec]:
    """Every method at every number of shots with every seed and all combinations of its grids' values.

    inferences: strategies, each of which reads the test rows with every classifier; "none" for each row by itself.
    inference_values: (name, value) of a hyperparameter, where the name may say of which strategy, as in `stata.alpha`.
    batches: fields of `Batches`, for all strategies.
    grids: (name, values), where the name may say for which method, as in `clip-adapter.ratio`. own: each method's own
        search values, too, for hyperparameters without a grid. common: further fields of RunSpec.
    Raises TaskError for a grid that no method has, UnknownName for a method that does not exist.
    """
    unused, specs = {name for name, _ in grids}, []
    readings = _readings(list(dict.fromkeys(inferences)), inference_values, batches)
    for name in methods:
        known = run_method(name).hyperparameters
        given = {key: [known[key].parse(key, value) for value in values]
                 for key, values in _own(grids, name, known, unused).items()}
        if own:
            given = {**{key: list(setting.search) for key, setting in known.items() if setting.search}, **given}
        # An average searches in its own way, so that its runs are the same whatever others of the sweep search by.
        further = {**common, "search": GRID.kind, "narrow": False} if is_average(name) else common
        for number, seed in itertools.product(shots, seeds):
            for values in itertools.product(*given.values()):
                specs += [RunSpec(name, number, seed, dict(zip(given, values, strict=True)), **further, **reading)
                          for reading in readings]
    _require_used("--grid", unused, methods)
    return specs


def values_of_each(methods: Sequence[str], values: Mapping[str, Any], option: str) -> list[dict[str, Any]]:
    """Those of some values that each method has; of METHOD.HYPERPARAMETER that method alone.

    Raises TaskError, which names the option, for a value that none has.
    """
    unused = {*values}
    found = [_own([*values.items()], name, run_method(name).hyperparameters, unused) for name in methods]
    _require_used(option, unused, methods)
    return found


def _readings(names: Sequence[str], values: Sequence[tuple[str, str]],
              batches: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Fields of RunSpec for each strategy. Raises TaskError for a value that no strategy has."""
    unused, readings = {target for target, _ in values}, []
    for name in names:
        own = {} if name == NO_INFERENCE else {
            "inference_values": _own(values, name, inference_class(name).hyperparameters, unused),
            "batches": batches or {}}
        readings.append({"inference": name, **own})
    _require_used("--inference-set", unused, names)
    if batches and all(name == NO_INFERENCE for name in names):
        raise TaskError("batches are for a strategy: add --inference")
    return readings


def _own(values: Sequence[tuple[str, Any]], name: str, known: Collection[str], unused: set[str]) -> dict[str, Any]:
    """Those of some values, each of HYPERPARAMETER or NAME.HYPERPARAMETER, that are for one that is known.

    name: of the method or strategy that is asked for. unused: loses those that are.
    What is said of this one alone counts more. Raises TaskError for what is said twice.
    """
    own = {}
    if twice := [target for target, number in Counter(target for target, _ in values).items() if number > 1]:
        raise TaskError(f"{twice[0]} is given twice: give it once, in a grid with all its values")
    for owner in ("", name):
        for target, value in values:
            whose, _, hyperparameter = target.rpartition(".")
            if whose == owner and hyperparameter in known:
                own[hyperparameter] = value
                unused.discard(target)
    return own


def _require_used(option: str, unused: set[str], names: Sequence[str]) -> None:
    if unused:
        raise TaskError(f"{option} {min(unused)}: none of {', '.join(names)} has such a hyperparameter; "
                        "`onceclip methods NAME` lists them")
