"""What methods there are: equation, cost, hyperparameters, needs."""

from __future__ import annotations

import math
from typing import Any

from onceclip.adapters import METHODS, Hyperparameter, Method, method_class
from onceclip.pipeline.api.arguments import method_of

_SOLVERS = {"lbfgs": "L-BFGS to convergence", "own": "own solver"}


def methods(name: str | type[Method] | None = None) -> dict[str, Any]:
    """All methods, or one: equation, hyperparameters, presets, needs and source, as JSON values.

    name: of a method, MODULE:CLASS of your own, or the class.
    Raises UnknownName for a method that does not exist.

    Example:
        >>> [each["name"] for each in onceclip.methods()["methods"]][:2]
        ['zero-shot', 'template-selection']
        >>> onceclip.methods("gda")["family"]
        'closed form'
    """
    if name is not None:
        return _values(method_class(method_of(name)[0]))
    return {"methods": [_values(method) for method in METHODS.values()]}


def _values(method: type[Method]) -> dict[str, Any]:
    return {
        "name": method.name, "family": method.family, "summary": method.summary, "equation": method.equation,
        "source": method.source, "needs": method.needs, "needs_support": method.needs_support,
        "needs_text": method.needs_text, "inputs": list(method.inputs), "transfers": method.transfers,
        "trained": method.trained, "cost": cost(method),
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
