"""Many runs: in groups, over processes, a row for each as soon as it is there; rows that exist are not made again."""

from __future__ import annotations

import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from onceclip.adapters import MethodError
from onceclip.adapters.cpu import DEFAULT, decided, fast_products
from onceclip.adapters.selection.automatic import AUTOMATIC
from onceclip.adapters.selection.rule import RULE
from onceclip.adapters.training.compile import AUTO, USUAL, Compiling
from onceclip.pipeline.errors import DeviceError, ResultError
from onceclip.pipeline.runs.automatic import is_average, run_method
from onceclip.pipeline.runs.fit import fit_group
from onceclip.pipeline.runs.keep import NOTHING, Keep, has_kept, write_kept
from onceclip.pipeline.runs.results import ROWS, append_rows, by_run, file_name, read_rows, record_stores
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.runs.trackers import Log
from onceclip.pipeline.tasks.support import require_bank
from onceclip.pipeline.tasks.tasks import names_for
from onceclip.pipeline.words import counted, shots_of
from onceclip.pipeline.workers import Part, repeatable
from onceclip.pipeline.workers.devices import CPU, CUDA, is_gpu, training_device, visible_gpus
from onceclip.stores import Store, StoreMismatch, open_store, write_lock
from onceclip.stores.location import everywhere

if TYPE_CHECKING:
    from onceclip.pipeline.workers.cluster import Workers

MANY = 100  # runs from which starting further processes pays
GROUP_RUNS, ON_A_GPU = 64, 1024


@dataclass(frozen=True)
class Group:
    """Runs on one store that one process trains and scores together: of one draw.

    store: the path that the user gave. place: the same for a process with another working directory. fingerprint: the
    store's content. compile: whether steps are compiled, which the whole plan decides, so that a part of it, or what is
    left of it, gives the same numbers. device: that trains them, as for `fit`. keep: as there. products: how to
    multiply matrices, which the command decides for all its workers.
    """

    store: str
    place: str
    fingerprint: str
    specs: tuple[RunSpec, ...]
    compile: Compiling = USUAL
    device: str = CPU
    keep: Keep = NOTHING
    products: str = DEFAULT

    def __str__(self) -> str:
        first = self.specs[0]
        return (f"{counted(len(self.specs), 'run')} of {first.method} ({shots_of(first.shots_word)}, "
                f"seed {first.seed})")


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep. runs: (store, spec) in order, each once. groups: of those that are still to be done.

    repeated: number of those that were asked for again, such as a method named twice, and left out. outdated: number of
        runs to be done that have a row, of other defaults or of another rule that chose.
    """

    runs: tuple[tuple[str, RunSpec], ...]
    groups: tuple[Group, ...]
    outdated: int = 0
    repeated: int = 0

    @property
    def todo(self) -> int:
        """Number of runs still to be done."""
        return sum(len(group.specs) for group in self.groups)


def sweep(stores: Sequence[Store], specs: Sequence[RunSpec], folder: Path, local_workers: int = 0,
          progress: bool = False, workers: Workers | None = None, part: Part | None = None,
          compile: str = AUTO, retry_failed: bool = False, device: str = CPU,
          keep: Keep = NOTHING, log: Log | None = None) -> list[dict[str, Any]]:
    """Carry out all runs on all stores and give their rows, in the order of the runs.

    folder: its `results.jsonl` gets a row per run; a run whose row is there already, for this content and with the
    defaults and the rule of today, is not repeated.
    local_workers: processes of one thread each; 0 for one per core where there are many runs. A run whose training
    diverges has a row too, with its `error` and without accuracy.
    workers: what carries out the runs, in place of such processes. part: make this part of the runs only, whose rows go
    to a file of their own; what other parts have not made yet is left out of what is given. compile: "auto" compiles
    the steps of long trainings on a CPU, "on" all, "off" none. retry_failed: repeat runs whose row has an `error`.
    device: what trains, as for `fit`; with workers, which see one GPU each, none that has a number. keep: what is kept
    beside the rows, in files of the folder; runs without it are repeated. log: what is told of the rows, too.
    Raises WorkerError for runs that ended every process that took them; what was written stays, and the same call goes
    on. Raises StoreError if another sweep is writing to the file, DeviceError if there is no such device.
    """
    if workers is None:
        training_device(device)
    if (workers is not None or local_workers > 1) and ":" in device:
        raise DeviceError(f"--device {device}: each worker sees one GPU, whatever its number: use --device cuda")
    opened = {store.path: store for store in stores}
    name = file_name(ROWS, part)
    with write_lock(str(folder / name)):
        rows, others = known(folder), _of_others(part, stores, specs) if part else {}
        done = done_of(folder, rows, retry_failed, keep) | others
        plan = make_plan(stores, specs, done, compile, device, keep)
        record_stores(folder, stores)
        identities = [spec.identity(opened[path]) for path, spec in plan.runs]
        products = _products([rows[each] for each in identities if each in rows]) if plan.todo else DEFAULT
        with tqdm(total=len(plan.runs), initial=len(plan.runs) - plan.todo, unit="run", desc="sweep",
                  disable=None if progress and plan.todo else True) as bar:
            if progress and plan.repeated:
                bar.write(f"{counted(plan.repeated, 'run')} asked for more than once: each is made once", sys.stderr)
            if progress and plan.outdated:
                bar.write(f"{counted(plan.outdated, 'run')} made again: their rows are of other defaults, or another "
                          "rule chose them", sys.stderr)
            for made in rows_of_plan(plan, products, local_workers, workers):
                made = write_kept(folder, made, part)
                append_rows(folder, made, name)
                rows |= {row["run"]: row for row in made}
                bar.update(len(made))
                bar.set_postfix_str(f"{made[0]['method']}, {shots_of(made[0]['shots'])}")
                if log:
                    log.add(made)
        if log:
            log.close([rows[each] for each in identities if each in rows and each not in others], folder)
    return [rows[each] for each in identities if each in rows or not part]


def _of_others(part: Part, stores: Sequence[Store], specs: Sequence[RunSpec]) -> dict[str, Any]:
    """The runs of all other parts; decided by what was asked for alone, whatever of it has been done by now."""
    opened = {store.path: store for store in stores}
    groups = make_plan(stores, specs, {}).groups
    mine = set(part.share(range(len(groups))))
    return {spec.identity(opened[group.store]): None for number, group in enumerate(groups) if number not in mine
            for spec in group.specs}


def _products(rows: Sequence[Mapping[str, Any]]) -> str:
    """How to multiply matrices: as for the rows that a sweep has already, else the fastest way of this machine."""
    return next((row["products"] for row in rows if "products" in row), None) or fast_products()


def known(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of a results folder by the identity of their run."""
    return by_run(row for row in read_rows(folder) if "run" in row)


def done_of(folder: Path, rows: Mapping[str, dict[str, Any]], retry_failed: bool, keep: Keep) -> dict[str, Any]:
    """Those of the rows of a folder, by run, that count as done.

    retry_failed: leave out the ones that have an error. keep: leave out results without what is to be kept beside them.
    """
    there = rows.keys() if keep == NOTHING else has_kept(folder, keep, rows)
    return {run: row for run, row in rows.items() if (not retry_failed if "error" in row else run in there)}


def require_result(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise ResultError if there are rows and all of them are failures."""
    reasons = Counter(str(row["error"]) for row in rows if "error" in row)
    if rows and reasons.total() == len(rows):
        (reason, _), = reasons.most_common(1)
        raise ResultError(f"none of {counted(len(rows), 'run')} has a result; most often: {reason}; mend that, then "
                          "add --retry-failed to the same command")


def rows_of_plan(plan: Plan, products: str, local_workers: int = 0,
                 workers: Workers | None = None) -> Iterator[list[dict[str, Any]]]:
    """The rows of each group of a plan, as they come.

    products: as of `Group`. local_workers, workers: as for `sweep`.
    """
    if workers is None:
        device = plan.groups[0].device if plan.groups else CPU
        gpus = visible_gpus() if training_device(device).type == CUDA else []
        most = 1 if ":" in device else len(gpus) or os.cpu_count() or 1
        # What a notebook defines, no other process has.
        here = not repeatable() or any(each.specs[0].method.startswith("__main__:") for each in plan.groups)
        number = min(local_workers or (1 if here or plan.todo < MANY else most), len(plan.groups))
        if number > 1:
            from onceclip.pipeline.workers.cluster import local

            with local(number, gpus) as processes:
                yield from rows_of_plan(plan, products, workers=processes)
            return
    # The longest first, so that all workers end at about the same time.
    groups = [replace(group, products=products)
              for group in (sorted(plan.groups, key=_shots, reverse=True) if workers else plan.groups)]
    yield from workers.work(run_group, groups) if workers else map(run_group, groups)


def _shots(group: Group) -> float:
    shots = group.specs[0].shots
    return math.inf if shots is None else shots


def run_group(group: Group) -> list[dict[str, Any]]:
    """Carry out a group wherever this process is, and give its rows, which say the path that the user gave."""
    store, rows = _opened(group.place, group.fingerprint), []
    with decided(group.products):
        results = fit_group(store, group.specs, compile=group.compile, device=group.device, keep=group.keep)
    for spec, fitted in zip(group.specs, results, strict=True):
        row = ({"method": spec.method, "shots": spec.shots_word, "seed": spec.seed, "accuracy": None,
                "error": str(fitted), "fingerprints": spec.contents(store), "run": spec.identity(store),
                "asked": spec.as_values()} if isinstance(fitted, MethodError) else {**fitted.row, **fitted.kept})
        rows.append({**row, "store": group.store})
    return rows


@cache
def _opened(path: str, fingerprint: str) -> Store:
    """A store that this process has opened, with the columns that it has read."""
    store = open_store(path)
    if store.fingerprint != fingerprint:
        raise StoreMismatch(f"{path} has changed since the sweep began: run the same command again")
    return store


def make_plan(stores: Sequence[Store], specs: Iterable[RunSpec], done: Mapping[str, Any],
              compile: str = AUTO, device: str = CPU, keep: Keep = NOTHING) -> Plan:
    """Group the runs that are not done yet.

    done: result rows by the identity of their run. compile: "auto", "on" or "off". device, keep: as for `fit`.
    Raises what runs would raise for classes and banks that do not go with a store, before any of them.
    """
    specs = list(specs)
    _require_draws(stores, specs)
    asked = [(store.path, spec) for store in stores for spec in specs]
    opened = {store.path: store for store in stores}
    runs: dict[str, tuple[str, RunSpec]] = {}
    for path, spec in asked:
        runs.setdefault(spec.identity(opened[path]), (path, spec))
    together: dict[Any, list[RunSpec]] = defaultdict(list)
    outdated = 0
    for identity, (path, spec) in runs.items():
        old = identity in done and is_outdated(done[identity], spec)
        outdated += old
        if old or identity not in done:
            together[path, spec.seed, *spec.common].append(spec)
    # Runs that differ in inference alone are one fit.
    alike = Counter(method for method, *_ in {(spec.method, path, spec.alone.identity(opened[path]))
                                              for path, spec in runs.values()})
    most = ON_A_GPU if is_gpu(device) else GROUP_RUNS
    groups = [Group(path, everywhere(path), opened[path].fingerprint, tuple(members[start:start + most]),
                    Compiling(compile, alike[members[0].method]), device, keep)
              for (path, *_), members in together.items() for start in range(0, len(members), most)]
    return Plan(tuple(runs.values()), tuple(groups), outdated, len(asked) - len(runs))


def _require_draws(stores: Sequence[Store], specs: Sequence[RunSpec]) -> None:
    """Raise TaskError or StoreError for classes and banks that do not go with a store."""
    for spec in {(each.classes, each.missing, each.bank): each for each in specs}.values():
        for store in stores:
            names_for(store, spec)
            if spec.bank:
                require_bank(store, open_store(spec.bank))


def is_outdated(row: Mapping[str, Any] | None, spec: RunSpec) -> bool:
    """Whether a run would not have the hyperparameters of its row today, since defaults or the rule have changed."""
    if not row or "hyperparameters" not in row or spec.method == AUTOMATIC:
        return False
    if row["select"] != "fixed":
        return bool(row.get("rule") != RULE)
    if is_average(spec.method):
        return False
    values, method = row["hyperparameters"], run_method(spec.method)(**spec.values)
    return bool(values.keys() != method.values.keys() or any(
        values[name] != value for name, value in method.values.items() if name not in method.of_task))
