"""Many runs on one store: each writes its row as it ends, and rows that exist are not run again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from onceclip.pipeline.fit import RunSpec, fit
from onceclip.pipeline.results import append_row, read_rows
from onceclip.stores import Store
from onceclip.stores.fingerprint import fingerprint


def grid(methods: Sequence[str], shots: Sequence[int], seeds: Sequence[int],
         select: str | None = None) -> list[RunSpec]:
    """Every method at every number of shots with every seed."""
    return [RunSpec(method, number, seed, select=select) for method in methods for number in shots for seed in seeds]


def sweep(store: Store, specs: Sequence[RunSpec], folder: Path, progress: bool = False) -> list[dict[str, Any]]:
    """Carry out all runs and give their rows, in the order of the runs.

    folder: its `results.jsonl` gets a row per run; a run whose row is there already, for this store, is not repeated.
    """
    rows = {row.get("run"): row for row in read_rows(folder)}
    names = [_name(store, spec) for spec in specs]
    todo = [(name, spec) for name, spec in zip(names, specs, strict=True) if name not in rows]
    with tqdm(todo, unit="run", desc="fit", disable=None if progress and todo else True) as bar:
        for name, spec in bar:
            bar.set_postfix_str(f"{spec.method}, {spec.shots or 'all'} shots")
            row = {**fit(store, spec).row, "run": name}
            append_row(folder, row)
            rows[name] = row
    return [rows[name] for name in names]


def _name(store: Store, spec: RunSpec) -> str:
    """Identity of a run: what was asked for, of which content."""
    return fingerprint({"method": spec.method, "shots": spec.shots, "seed": spec.seed, "select": spec.select,
                        "values": dict(spec.values or {}), "text": store.text(spec.text).fingerprint,
                        "store": store.fingerprint})
