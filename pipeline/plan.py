"""Which runs a sweep makes, and which of them go together."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onceclip.adapters import method_class
from onceclip.adapters.method import Method
from onceclip.adapters.training.compile import AUTO, USUAL, Compiling
from onceclip.pipeline.devices import CPU, is_gpu
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.run import RunSpec
from onceclip.pipeline.words import counted
from onceclip.stores import Store

OWN = "own"  # the grid of every method's own search values
GROUP_RUNS, ON_A_GPU = 64, 1024


@dataclass(frozen=True)
class Group:
    """Runs on one store that one process trains and scores together: of one draw.

    fingerprint: the store's content. compile: whether steps are compiled, which the whole plan decides, so that a part
    of it, or what is left of it, gives the same numbers. device: that trains them, as for `fit`.
    """

    store: str
    fingerprint: str
    specs: tuple[RunSpec, ...]
    compile: Compiling = USUAL
    device: str = CPU


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep. runs: (store, spec) in order. groups: of those that are still to be done."""

    runs: tuple[tuple[str, RunSpec], ...]
    groups: tuple[Group, ...]

    @property
    def todo(self) -> int:
        """Number of runs still to be done."""
        return sum(len(group.specs) for group in self.groups)


def make_specs(methods: Sequence[str], shots: Sequence[int | None], seeds: Sequence[int],
               grids: Sequence[tuple[str, Sequence[str]]] = (), own: bool = False, **common: Any) -> list[RunSpec]:
    """Every method at every number of shots with every seed and all combinations of its grids' values.

    grids: (name, values), where the name may say for which method, as in `clip-adapter.ratio`. own: each method's own
        search values, too, for hyperparameters without a grid. common: further fields of RunSpec.
    Raises TaskError for a grid that no method has, UnknownName for a method that does not exist.

    Example:
        >>> specs = onceclip.make_specs(["zero-shot", "tip-adapter"], shots=[1, 4], seeds=[1, 2, 3])
        >>> len(specs)
        12
    """
    unused = {name for name, _ in grids}
    specs = []
    for name in methods:
        method = method_class(name)
        given: dict[str, Sequence[Any]] = {}
        for target, values in grids:
            for_method, _, hyperparameter = target.rpartition(".")
            if for_method in ("", name) and hyperparameter in method.hyperparameters:
                given[hyperparameter] = [method.hyperparameters[hyperparameter].parse(hyperparameter, value)
                                         for value in values]
                unused.discard(target)
        if own:
            given = {**{key: setting.search for key, setting in method.hyperparameters.items() if setting.search},
                     **given}
        for number, seed in itertools.product(shots, seeds):
            for values in itertools.product(*given.values()):
                specs.append(RunSpec(name, number, seed, dict(zip(given, values, strict=True)), **common))
    if unused:
        raise TaskError(f"--grid {min(unused)}: none of {', '.join(methods)} has such a hyperparameter; "
                        "`onceclip methods NAME` lists them")
    return specs


def make_plan(stores: Sequence[Store], specs: Iterable[RunSpec], done: Mapping[str, Any],
              compile: str = AUTO, device: str = CPU) -> Plan:
    """Group the runs that are not done yet.

    done: result rows by the identity of their run. compile: "auto", "on" or "off". device: as for `fit`.
    """
    specs = list(specs)
    runs = [(store.path, spec) for store in stores for spec in specs]
    opened = {store.path: store for store in stores}
    most = ON_A_GPU if is_gpu(device) else GROUP_RUNS
    together: dict[Any, list[RunSpec]] = defaultdict(list)
    for path, spec in runs:
        if spec.identity(opened[path]) not in done:
            together[path, spec.seed, *spec.common].append(spec)
    alike = Counter(spec.method for _, spec in runs)
    groups = [Group(key[0], opened[key[0]].fingerprint, tuple(members[start:start + most]),
                    Compiling(compile, alike[members[0].method]), device)
              for key, members in together.items() for start in range(0, len(members), most)]
    return Plan(tuple(runs), tuple(groups))


def shared(plan: Plan) -> list[str]:
    """What the groups share, in words, one line per method."""
    lines = []
    for name in dict.fromkeys(group.specs[0].method for group in plan.groups):
        groups = [group for group in plan.groups if group.specs[0].method == name]
        runs = sum(len(group.specs) for group in groups)
        lines.append(f"{name}: {counted(runs, 'run')} in {counted(len(groups), 'group')}; "
                     f"{_shared(method_class(name))}")
    return lines


def _shared(method: type[Method]) -> str:
    if not method.trained:
        return "a group is prepared once and scored in one pass"
    if method.solver == "lbfgs":
        return "a group is drawn once, solved run by run and scored in one pass"
    return "a group is drawn once, trained in stacks where that is faster, and scored in one pass"
