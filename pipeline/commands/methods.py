"""`onceclip methods`: the methods listed or explained."""

from __future__ import annotations

import re
from typing import Any

import click

from onceclip.pipeline.commands.configuration import complete_methods
from onceclip.pipeline.commands.options import json_option, show


@click.command()
@click.argument("name", required=False, shell_complete=complete_methods)
@json_option
def methods(name: str | None, as_json: bool) -> None:
    """List the methods, or explain one.

    The list has each method's family, what a fit costs, whether it serves classes that it was not fitted on, and what
    it needs. With a NAME, or MODULE:CLASS of your own: equation, hyperparameters with what is tried, presets and
    source.
    """
    from onceclip.pipeline.api.catalogue import methods as describe

    values = describe(name)
    show(as_json, values, lambda: method_lines(values))


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
        result += ["", "Hyperparameters (--set NAME=VALUE):"]
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
        return " (chosen on validation rows without another training)"
    choices = f" ({' | '.join(setting['choices'])})" if "choices" in setting else ""
    if not setting["search"]:
        return choices
    return f"{choices} (tried on validation rows: {', '.join(map(_number, setting['search']))})"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
