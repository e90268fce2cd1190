"""What methods and strategies of inference there are: equation, cost, hyperparameters, needs."""

from __future__ import annotations

import math
from typing import Any

from onceclip.adapters import METHODS, Hyperparameter, Method, UnknownName, method_class
from onceclip.adapters.errors import unknown
from onceclip.adapters.inference import INFERENCES, Inference
from onceclip.adapters.plugin import import_class
from onceclip.adapters.training.trainable import Configurable
from onceclip.pipeline.api.arguments import method_of

_SOLVERS = {"lbfgs": "L-BFGS to convergence", "own": "own solver"}


def methods(name: str | type[Method] | type[Inference] | None = None) -> dict[str, Any]:
    """All methods and strategies of inference, or one of them: equation, hyperparameters and source, as JSON values.

    name: of a method or a strategy, MODULE:CLASS of your own, or the class.
    Raises UnknownName for what does not exist.

    Example:
        >>> [each["name"] for each in onceclip.methods()["methods"]][:2]
        ['zero-shot', 'template-selection']
        >>> onceclip.methods("gda")["family"]
        'closed form'
        >>> onceclip.methods("stata")["sees"]
        'set'
    """
    if name is None:
        return {"methods": [_values(method) for method in METHODS.values()],
                "inferences": [_inference_values(each) for each in INFERENCES.values()]}
    kind = _kind(name)
    return _inference_values(kind) if issubclass(kind, Inference) else _values(kind)


def _kind(name: Any) -> type[Method] | type[Inference]:
    if isinstance(name, type) and issubclass(name, Inference):
        return name
    if isinstance(name, str) and ":" in name:
        kind: type[Configurable] = import_class(name, Configurable)
        if issubclass(kind, Method | Inference):
            return kind
    elif isinstance(name, str) and name not in METHODS:
        if name not in INFERENCES:
            raise UnknownName(unknown("method or strategy", name, [*METHODS, *INFERENCES]))
        return INFERENCES[name]
    return method_class(method_of(name)[0])


def _inference_values(inference: type[Inference]) -> dict[str, Any]:
    usual = inference()
    return {
        "name": inference.name, "summary": inference.summary, "equation": inference.equation,
        "source": inference.source, "sees": inference.sees, "prior": usual.prior, "fitted_on": usual.fitted_on,
        "transductive": usual.transductive, "leaves_classifier": inference.leaves_classifier,
        "hyperparameters": {name: _setting(setting, False) for name, setting in inference.hyperparameters.items()},
    }


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
