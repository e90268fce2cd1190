"""`onceclip methods`: the methods listed or explained."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import click

from onceclip.pipeline.commands.configuration import complete_methods
from onceclip.pipeline.commands.options import json_option, show

if TYPE_CHECKING:
    from onceclip.adapters import Hyperparameter, Method

_SOLVERS = {"lbfgs": "L-BFGS to convergence", "own": "own solver"}


@click.command()
@click.argument("name", required=False, shell_complete=complete_methods)
@json_option
def methods(name: str | None, as_json: bool) -> None:
    """List the methods, or explain one.

    The list has each method's family, what a fit costs, whether it serves classes that it was not fitted on, and what
    it needs. With a NAME, or MODULE:CLASS of your own: equation, hyperparameters with what is tried, presets and
    source.
    """
    values = describe(name)
    show(as_json, values, lambda: method_lines(values))


def describe(name: str | None = None) -> dict[str, Any]:
    """All methods, or one, as JSON values.

    Raises UnknownName for a method that does not exist.
    """
    from onceclip.adapters import METHODS, method_class

    if name is not None:
        return _values(method_class(name))
    return {"methods": [_values(method) for method in METHODS.values()]}


def _values(method: type[Method]) -> dict[str, Any]:
    return {
        "name": method.name, "family": method.family, "summary": method.summary, "equation": method.equation,
        "source": method.source, "needs": method.needs, "needs_support": method.needs_support,
        "needs_text": method.needs_text, "inputs": list(method.inputs), "transfers": method.transfers,
        "trained": method.trained, "cost": cost(method), "select": method.select,
        "trainings_of_val": trainings(method),
        "hyperparameters": {name: _setting(setting, name == method.mixing)
                            for name, setting in method.hyperparameters.items()},
        "presets": {name: dict(values) for name, values in method.presets.items()},
    }


def cost(method: type[Method]) -> str:
    """What one fit takes, in words: a training, one solve, or nothing but laying out the support."""
    if not method.trained:
        steps = method.hyperparameters.get("steps")
        solves = f"{steps.default} solves" if steps else "one solve"
        return solves if method.family == "closed form" else "no fit"
    if method.solver != "gradient":
        return _SOLVERS[method.solver]
    return f"{method.hyperparameters['epochs'].default} epochs"


def trainings(method: type[Method]) -> int:
    """Number of trainings, or of other settings compared, that `--select val` asks for."""
    searched = [setting for setting in method.hyperparameters.values()
                if setting.search and (setting.retrain or not method.trained)]
    return math.prod(len(setting.search) for setting in searched)


def _setting(setting: Hyperparameter, exact: bool) -> dict[str, Any]:
    values: dict[str, Any] = {"default": setting.default, "meaning": setting.meaning,
                              "search": "exact" if exact else list(setting.search), "retrain": setting.retrain}
    if setting.choices:
        values["choices"] = list(setting.choices)
    elif isinstance(setting.default, float | int) and not isinstance(setting.default, bool):
        values |= {"low": setting.low, "high": setting.high if math.isfinite(setting.high) else None}
    return values


def method_lines(values: dict[str, Any]) -> list[str]:
    """All methods, or one, for people to read."""
    return _list(values["methods"]) if "methods" in values else _one(values)


def _list(methods: list[dict[str, Any]]) -> list[str]:
    rows = [("method", "family", "cost", "new classes", "what it is"),
            *((each["name"], each["family"], each["cost"], "yes" if each["transfers"] else "no",
               each["summary"] + (f" (needs {_short(each['needs'])})" if each["needs"] else "")) for each in methods)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
            for row in rows] + ["", "`onceclip methods NAME` shows equation, hyperparameters, presets and source."]


def _short(needs: str) -> str:
    return re.split(r"[;,(]", needs)[0].strip()


def _one(values: dict[str, Any]) -> list[str]:
    tried = values["trainings_of_val"]
    unit = "trainings" if values["trained"] else "settings"
    result = [f"{values['name']}: {values['summary']}", "", f"  {values['equation']}", "",
              f"Source: {values['source']}",
              f"Family: {values['family']}. Fit: {values['cost']}"
              + (f"; {tried} {unit} with --select val." if tried > 1 else "."),
              "Serves other classes, too." if values["transfers"] else "Serves the classes that it was fitted on."]
    if values["needs"]:
        result.append(f"Needs: {values['needs']}.")
    if values["hyperparameters"]:
        result += ["", f"Hyperparameters (--set NAME=VALUE; --select {values['select']} unless you say otherwise):"]
        width = max(map(len, values["hyperparameters"]))
        result += [f"  {name.ljust(width)}  {_number(setting['default'])}  {setting['meaning']}{_tried(setting)}"
                   for name, setting in values["hyperparameters"].items()]
    if values["presets"]:
        result += ["", "Presets (--set preset=NAME):"]
        width = max(map(len, values["presets"]))
        result += [f"  {name.ljust(width)}  {', '.join(f'{key}={_number(value)}' for key, value in preset.items())}"
                   for name, preset in values["presets"].items()]
    return result


def _tried(setting: dict[str, Any]) -> str:
    if setting["search"] == "exact":
        return " (found exactly on validation rows)"
    choices = f" ({' | '.join(setting['choices'])})" if "choices" in setting else ""
    if not setting["search"]:
        return choices
    return f"{choices} (tried on validation rows: {', '.join(map(_number, setting['search']))})"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
