"""What methods there are: equation, cost, hyperparameters, needs."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onceclip.pipeline.api.arguments import method_of

if TYPE_CHECKING:
    from onceclip.adapters import Hyperparameter, Method

FILE = Path(__file__).with_name("methods.json")  # what `methods` gives, so that a list of them does not import torch
_ADAPTERS = Path(__file__).parents[2] / "adapters"
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
    if name is None or (isinstance(name, str) and ":" not in name):
        found = _written() or _all()
        if name is None:
            return {"methods": list(found.values())}
        if name in found:
            return found[name]
    from onceclip.adapters import method_class

    return _values(method_class(method_of(name)[0]))


def catalogue_text() -> str:
    """What `FILE` is to hold: all methods, and a digest of the code that says so."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(values)}" for name, values in _all().items())
    return f'{{"code": "{_digest()}", "methods": {{\n{lines}}}}}\n'


def _written() -> dict[str, Any] | None:
    """The methods by name as the file has them, unless the code is another one by now."""
    try:
        found = json.loads(FILE.read_text(encoding="utf-8"))
        return dict(found["methods"]) if found["code"] == _digest() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _all() -> dict[str, Any]:
    from onceclip.adapters import METHODS

    return {name: _values(method) for name, method in METHODS.items()}


def _digest() -> str:
    """Identity of the code that decides what is told of a method."""
    made = hashlib.blake2b(digest_size=16)
    for path in (Path(__file__), _ADAPTERS / "method.py", _ADAPTERS / "training" / "trainable.py",
                 *sorted((_ADAPTERS / "methods").glob("*.py"))):
        made.update(path.name.encode() + path.read_bytes())
    return made.hexdigest()


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
