"""A result row carried out again: the same run, or a refusal that says what has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onceclip.adapters.compiling import OFF, Compiling
from onceclip.pipeline.errors import ResultError
from onceclip.pipeline.fit import Fitted
from onceclip.pipeline.results import NAME, read_rows
from onceclip.pipeline.run import RunSpec
from onceclip.stores import Store

TOLERANCE = 0.005  # of the accuracy, on another machine or with other products


def read_row(reference: str) -> dict[str, Any]:
    """The row that FILE:N (from 1) or FILE:RUN names; FILE is a results folder, its file, or `result.json`.

    Raises ResultError if there is none, or it does not say what was asked for.
    """
    name, mark, which = reference.rpartition(":")
    path = Path(name if mark else reference)
    if not path.exists():
        raise ResultError(f"--from-row {reference}: {path} does not exist; give FILE:N, N from 1, or FILE:RUN")
    rows = read_rows(path if path.is_dir() else path.parent) if path.is_dir() or path.name == NAME else _lines(path)
    if which.isdecimal() and 1 <= int(which) <= len(rows):
        row = rows[int(which) - 1]
    else:
        row = next((each for each in rows if which and str(each.get("run", "")).startswith(which)), {})
    if not row:
        raise ResultError(f"--from-row {reference}: {path} has {len(rows)} rows and none is {which or 'named'}: give "
                          "FILE:N, N from 1, or FILE:RUN with the value of `run`")
    if "asked" not in row or row.get("accuracy") is None:
        raise ResultError(f"--from-row {reference}: the row has no result that could be repeated")
    return row


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} cannot be read as JSON lines ({error}): give a results folder or its "
                          f"{NAME}") from error


def spec_of(row: dict[str, Any], store: Store) -> RunSpec:
    """What a row asked for, if the store still has the content that it was made of.

    Raises ResultError if images, text or encoder have changed.
    """
    spec = RunSpec(**row["asked"])
    then, now = row["fingerprints"], {"encoder": store.encoder["fingerprint"], "store": store.fingerprint,
                                      "text": store.text(spec.text).fingerprint}
    changed = [name for name in now if now[name] != then[name]]
    if changed:
        details = ", ".join(f"{name} {then[name]}, now {now[name]}" for name in changed)
        raise ResultError(f"the row was made of another {' and '.join(changed)} than {store.path} has now ({details}): "
                          "replay it on the store that it names")
    return spec


def compiling_of(row: dict[str, Any]) -> Compiling:
    """How the steps of a row's training were decided on; rows of before there was a choice were not compiled."""
    return Compiling(**row.get("compiling", {"choice": OFF}))


def compare(row: dict[str, Any], again: Fitted) -> str:
    """Say that a run gave its row again.

    Raises ResultError if it drew other images or its accuracy differs by more than TOLERANCE.
    """
    for name in ("support", "val"):
        if row["fingerprints"][name] != again.row["fingerprints"][name]:
            raise ResultError(f"the replay drew other {name} images than the row: another version of onceclip drew "
                              f"them ({row['version']}, this is {again.row['version']})")
    difference = abs(row["accuracy"] - again.row["accuracy"])
    if difference > TOLERANCE:
        raise ResultError(f"the replay reached {again.row['accuracy']:.4f}, the row says {row['accuracy']:.4f}: more "
                          f"than {TOLERANCE} apart; compare their hyperparameters, `products` and `version`")
    return "the same accuracy as the row" if not difference else f"{difference:.5f} from the row's accuracy"
