"""A result row carried out again: the same run, or a refusal that says what has changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from onceclip.adapters.inference import stored_inference_class
from onceclip.adapters.methods import stored_method_class
from onceclip.adapters.selection.rule import RULE
from onceclip.adapters.support import require_stored
from onceclip.adapters.training.compile import OFF, Compiling
from onceclip.pipeline.errors import ResultError, TaskError
from onceclip.pipeline.runs.automatic import is_average, member_names
from onceclip.pipeline.runs.fit import Fitted
from onceclip.pipeline.runs.results import NAME, read_rows
from onceclip.pipeline.runs.run import NO_INFERENCE, RunSpec
from onceclip.pipeline.tasks.draw_files import DrawFile, draw_file
from onceclip.pipeline.words import counted
from onceclip.pipeline.workers.devices import CPU, device_like
from onceclip.stores import Store
from onceclip.stores.location import local_copy

TOLERANCE = 0.005  # of the accuracy, on another machine or device, or with other products


def read_row(reference: str) -> dict[str, Any]:
    """The row that FILE:N names, N from 1; FILE is a results folder or its `results.jsonl`.

    Raises ResultError if there is none, or it does not say what was asked for.
    """
    name, _, number = reference.rpartition(":")
    name = name.removesuffix(f"/{NAME}") if name != NAME else "."
    with local_copy(name) as folder:
        if not name or not folder.is_dir():
            raise ResultError(f"--from-row {reference}: give FILE:N, where FILE is a results folder or its {NAME}, and "
                              "N the number of a row, from 1")
        rows = read_rows(folder)
    if not number.isdecimal() or not 1 <= int(number) <= len(rows):
        raise ResultError(f"--from-row {reference}: {name} has {counted(len(rows), 'row')}: give FILE:N, where N "
                          "is the number of one of them, from 1")
    row = rows[int(number) - 1]
    if "asked" not in row or _reached(row) is None:
        raise ResultError(f"--from-row {reference}: the row has no result that could be repeated")
    return row


def spec_of(row: dict[str, Any], store: Store, draws: str | Path | None = None) -> RunSpec:
    """What a row asked for, if the store still has the content that it was made of.

    draws: where the file that listed the row's draw lies now, or the folder of it; None for where it was.
    Raises ResultError if images, text or encoder have changed, MethodError for a method of a module that the user did
    not name.
    """
    asked = dict(row["asked"])
    if asked.get("inference", NO_INFERENCE) != NO_INFERENCE:
        stored_inference_class(str(asked["inference"]), "the row")  # which RunSpec would import
    require_stored(str(asked.get("support") or ""), "the row")  # likewise
    try:
        if asked.get("draws"):
            asked["draws"] = _listing(row, draws)
        name = str(asked.get("method"))
        if is_average(name):
            for member in member_names(name):
                stored_method_class(member, "the row")  # which RunSpec would import
            spec = RunSpec(**asked)
        else:
            method = stored_method_class(name, "the row")  # which RunSpec would import
            # The default policy was another one once: what the row says was used is what is repeated.
            spec = RunSpec(**{**asked, "select": asked.get("select") or row.get("select")})
            if row.get("rule") != RULE:  # chosen by another rule, among other defaults: the row's values are repeated
                spec = replace(spec, values=method.stored_values(row["hyperparameters"]))
    except TypeError as error:
        raise ResultError(f"the row's 'asked' is no run of onceclip ({error}): give another row") from error
    then, now = row.get("fingerprints", {}), spec.contents(store)
    changed = [name for name in now if now[name] != then.get(name)]
    if changed:
        details = ", ".join(f"{name} {then.get(name)}, now {now[name]}" for name in changed)
        raise ResultError(f"the row was made of another {' and '.join(changed)} than {store.path} has now ({details}): "
                          "replay it on the store that it names")
    return spec


def _listing(row: dict[str, Any], place: str | Path | None) -> DrawFile:
    """The file that listed the row's draw, found where it is now. Raises ResultError if it is not there or another."""
    then = DrawFile(**row["asked"]["draws"])
    shots = None if row["shots"] == "all" else row["shots"]
    try:
        now = draw_file(place or then.file, shots, row["seed"])
    except TaskError as error:
        raise ResultError(f"the row's draw was listed in {then.file} (digest {then.digest}): {error}; say where it is "
                          "now with --draws FILE|FOLDER") from error
    if now.digest != then.digest:
        raise ResultError(f"{now.file} is not what listed the row's draw: its digest is {now.digest}, that of "
                          f"{then.file} was {then.digest}; give that file with --draws")
    return now


def compiling_of(row: dict[str, Any]) -> Compiling:
    """How the steps of a row's training were decided on; rows of before there was a choice were not compiled."""
    found = row.get("compiling", {"choice": OFF})
    try:
        return Compiling(**found)
    except TypeError as error:
        raise ResultError(f"the row's 'compiling' is {found}, which onceclip never writes: give another row") from error


def device_of(row: dict[str, Any]) -> str:
    """The device that trained a row, or one like it, or the CPU where there is none."""
    return device_like(_trained_on(row))


def _trained_on(row: dict[str, Any]) -> str:
    return str(row.get("device", CPU))  # rows of before there was a choice were trained there


def compare(row: dict[str, Any], again: Fitted) -> str:
    """Say that a run gave its row again, and whether on another device.

    Raises ResultError if it drew other images or its accuracy differs by more than TOLERANCE.
    """
    for name in ("support", "val") if row.get("n_val") else ("support",):
        if row["fingerprints"].get(name) != again.row["fingerprints"][name]:
            raise ResultError(f"the replay drew other {name} images than the row: another version of onceclip drew "
                              f"them ({row.get('version')}, this is {again.row['version']})")
    then, now = _reached(row) or 0.0, _reached(again.row) or 0.0
    difference = abs(then - now)
    if difference > TOLERANCE:
        raise ResultError(f"the replay reached {now:.4f}, the row says {then:.4f}: more "
                          f"than {TOLERANCE} apart; compare their hyperparameters, `device`, `products` and `version`")
    result = "the same accuracy as the row" if not difference else f"{difference:.5f} from the row's accuracy"
    there, here = _trained_on(row), _trained_on(again.row)
    return result if there == here else f"{result}; trained on {here}, and the row on {there}"


def _reached(row: dict[str, Any]) -> float | None:
    """The test accuracy of a row, or that of before test images were fitted on."""
    return row.get("accuracy_before_refit") if row.get("accuracy") is None else row["accuracy"]
