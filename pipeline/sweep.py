"""Many runs: in groups, over processes, a row for each as soon as it is there; rows that exist are not made again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from onceclip.adapters import MethodError
from onceclip.pipeline.fit import fit_group
from onceclip.pipeline.plan import Group, Plan, make_plan
from onceclip.pipeline.results import NAME, append_rows, read_rows
from onceclip.pipeline.run import RunSpec
from onceclip.pipeline.workers import work
from onceclip.stores import Store, StoreMismatch, open_store, write_lock

MANY = 100  # runs from which starting further processes pays


def sweep(stores: Sequence[Store], specs: Sequence[RunSpec], folder: Path, workers: int = 0,
          progress: bool = False) -> list[dict[str, Any]]:
    """Carry out all runs on all stores and give their rows, in the order of the runs.

    folder: its `results.jsonl` gets a row per run; a run whose row is there already, for this content, is not repeated.
    workers: processes of one thread each; 0 for one per core where there are many runs. A run whose training diverges
    has a row too, with its `error` and without accuracy.
    Raises WorkerError if a process dies; what was written stays, and the same call goes on. Raises StoreError if
    another sweep is writing to the folder.
    """
    opened = {store.path: store for store in stores}
    with write_lock(str(folder / NAME)):
        rows = known(folder)
        plan = make_plan(stores, specs, rows)
        with tqdm(total=len(plan.runs), initial=len(plan.runs) - plan.todo, unit="run", desc="sweep",
                  disable=None if progress and plan.todo else True) as bar:
            for made in carry_out(plan, workers):
                append_rows(folder, made)
                rows |= {row["run"]: row for row in made}
                bar.update(len(made))
                bar.set_postfix_str(f"{made[0]['method']}, {made[0]['shots']} shots")
    return [rows[spec.identity(opened[path])] for path, spec in plan.runs]


def known(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of a results folder by the identity of their run."""
    return {row["run"]: row for row in read_rows(folder) if "run" in row}


def carry_out(plan: Plan, workers: int = 0) -> Iterator[list[dict[str, Any]]]:
    """The rows of each group of a plan, as they come. workers: as for `sweep`."""
    number = workers or ((os.cpu_count() or 1) if plan.todo >= MANY else 1)
    yield from work(run_group, plan.groups, min(number, max(len(plan.groups), 1)))


def run_group(group: Group) -> list[dict[str, Any]]:
    """Carry out a group and give its rows."""
    store = _opened(group.store, group.fingerprint)
    rows = []
    for spec, fitted in zip(group.specs, fit_group(store, group.specs), strict=True):
        if isinstance(fitted, MethodError):
            rows.append({"method": spec.method, "shots": spec.shots or "all", "seed": spec.seed, "accuracy": None,
                         "error": str(fitted), "store": store.path, "run": spec.identity(store),
                         "asked": spec.as_values()})
        else:
            rows.append(fitted.row)
    return rows


@cache
def _opened(path: str, fingerprint: str) -> Store:
    """A store that this process has opened, with the columns that it has read."""
    store = open_store(path)
    if store.fingerprint != fingerprint:
        raise StoreMismatch(f"{path} has changed since the sweep began: run the same command again")
    return store
