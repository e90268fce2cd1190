"""A result row carried out again: the same run, or a refusal that says what has changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onceclip.adapters.methods import stored_method_class
from onceclip.adapters.training.compile import OFF, Compiling
from onceclip.pipeline.counting import counted
from onceclip.pipeline.devices import CPU, device_like
from onceclip.pipeline.errors import ResultError
from onceclip.pipeline.fit import Fitted
from onceclip.pipeline.results import NAME, by_run, read_rows
from onceclip.pipeline.run import RunSpec
from onceclip.stores import Store

RUN_DIGITS = 6  # of the 32 that name a run, at least
TOLERANCE = 0.005  # of the accuracy, on another machine or device, or with other products


def read_row(reference: str) -> dict[str, Any]:
    """The row that FILE:N (from 1) or FILE:RUN names; FILE is a results folder, its file, or `result.json`.

    Raises ResultError if there is none, or it does not say what was asked for.
    """
    name, mark, which = reference.rpartition(":")
    path = Path(name if mark else reference)
    if not path.exists():
        raise ResultError(f"--from-row {reference}: {path} does not exist; give FILE:N, N from 1, or FILE:RUN")
    rows = read_rows(path if path.is_dir() else path.parent) if path.is_dir() or path.name == NAME else _lines(path)
    row = _named(rows, which if mark else "")
    if row is None:
        named = f"{which!r} names no single one of them" if mark else "none is named"
        raise ResultError(f"--from-row {reference}: {path} has {counted(len(rows), 'row')} and {named}: give FILE:N, N "
                          f"from 1, or FILE:RUN with at least {RUN_DIGITS} characters of `run`")
    if "asked" not in row or row.get("accuracy") is None:
        raise ResultError(f"--from-row {reference}: the row has no result that could be repeated")
    return row


def _named(rows: Sequence[dict[str, Any]], which: str) -> dict[str, Any] | None:
    """The row of a number from 1, or that of the one run whose name is this or begins so."""
    runs = by_run(row for row in rows if "run" in row) if len(which) >= RUN_DIGITS else {}
    if which.isdecimal() and which not in runs:
        return rows[int(which) - 1] if 1 <= int(which) <= len(rows) else None
    found = [row for run, row in runs.items() if run.startswith(which)]
    return found[0] if len(found) == 1 else None


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        values = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} cannot be read as JSON lines ({error}): give a results folder or its "
                          f"{NAME}") from error
    return [value for value in values if isinstance(value, dict)]


def spec_of(row: dict[str, Any], store: Store) -> RunSpec:
    """What a row asked for, if the store still has the content that it was made of.

    Raises ResultError if images, text or encoder have changed, MethodError for a method of a module that the user did
    not name.
    """
    stored_method_class(row["asked"]["method"], "the row")  # which RunSpec would import
    spec = RunSpec(**row["asked"])
    then, now = row["fingerprints"], spec.contents(store)
    changed = [name for name in now if now[name] != then[name]]
    if changed:
        details = ", ".join(f"{name} {then[name]}, now {now[name]}" for name in changed)
        raise ResultError(f"the row was made of another {' and '.join(changed)} than {store.path} has now ({details}): "
                          "replay it on the store that it names")
    return spec


def compiling_of(row: dict[str, Any]) -> Compiling:
    """How the steps of a row's training were decided on; rows of before there was a choice were not compiled."""
    return Compiling(**row.get("compiling", {"choice": OFF}))


def device_of(row: dict[str, Any]) -> str:
    """The device that trained a row, or one like it, or the CPU where there is none."""
    return device_like(_trained_on(row))


def _trained_on(row: dict[str, Any]) -> str:
    return str(row.get("device", CPU))  # rows of before there was a choice were trained there


def compare(row: dict[str, Any], again: Fitted) -> str:
    """Say that a run gave its row again, and whether on another device.

    Raises ResultError if it drew other images or its accuracy differs by more than TOLERANCE.
    """
    for name in ("support", "val"):
        if row["fingerprints"][name] != again.row["fingerprints"][name]:
            raise ResultError(f"the replay drew other {name} images than the row: another version of onceclip drew "
                              f"them ({row['version']}, this is {again.row['version']})")
    difference = abs(row["accuracy"] - again.row["accuracy"])
    if difference > TOLERANCE:
        raise ResultError(f"the replay reached {again.row['accuracy']:.4f}, the row says {row['accuracy']:.4f}: more "
                          f"than {TOLERANCE} apart; compare their hyperparameters, `device`, `products` and `version`")
    result = "the same accuracy as the row" if not difference else f"{difference:.5f} from the row's accuracy"
    then, now = _trained_on(row), _trained_on(again.row)
    return result if then == now else f"{result}; trained on {now}, and the row on {then}"
