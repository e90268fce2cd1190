"""What methods there are, for `onceclip methods`."""

from __future__ import annotations

from typing import Any

from onceclip.adapters import METHODS, Method, method_class


def describe(name: str | None = None) -> dict[str, Any]:
    """All methods, or one, as JSON values.

    Raises UnknownName for a method that does not exist.
    """
    if name is not None:
        return _values(method_class(name))
    return {"methods": [_values(method) for method in METHODS.values()]}


def _values(method: type[Method]) -> dict[str, Any]:
    return {
        "name": method.name, "family": method.family, "summary": method.summary, "equation": method.equation,
        "source": method.source, "needs_support": method.needs_support, "trained": method.trained,
        "select": method.select,
        "hyperparameters": {
            name: {"default": setting.default, "meaning": setting.meaning,
                   "search": "exact" if name == method.mixing else list(setting.search)}
            for name, setting in method.hyperparameters.items()},
    }


def lines(values: dict[str, Any]) -> list[str]:
    """The same for people to read."""
    if "methods" in values:
        rows = [(each["name"], each["family"], "trained" if each["trained"] else "no training", each["summary"])
                for each in values["methods"]]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
                for row in rows] + ["", "`onceclip methods NAME` shows equation, hyperparameters and source."]
    result = [f"{values['name']}: {values['summary']}", "", f"  {values['equation']}", "",
              f"Source: {values['source']}"]
    if values["hyperparameters"]:
        result += ["", f"Hyperparameters (--set NAME=VALUE; --select {values['select']} unless you say otherwise):"]
        width = max(map(len, values["hyperparameters"]))
        for name, setting in values["hyperparameters"].items():
            search = setting["search"]
            tried = " (found exactly on validation rows)" if search == "exact" else (
                f" (tried on validation rows: {', '.join(map(_number, search))})" if search else "")
            result.append(f"  {name.ljust(width)}  {_number(setting['default'])}  {setting['meaning']}{tried}")
    return result


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
