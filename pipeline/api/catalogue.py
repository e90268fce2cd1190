"""What methods, strategies of inference and support sources there are, and how methods become one: what each needs."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onceclip.pipeline.api.arguments import method_of

if TYPE_CHECKING:
    from onceclip.adapters import Hyperparameter, Method
    from onceclip.adapters.inference import Inference
    from onceclip.adapters.support import SupportSource

_KINDS = ("methods", "inferences", "supports", "averages")
FILE = Path(__file__).with_name("methods.json")  # what `methods` gives, so that a list of them does not import torch
_ADAPTERS = Path(__file__).parents[2] / "adapters"
_SOLVERS = {"lbfgs": "L-BFGS to convergence", "own": "own solver"}


def methods(name: str | type[Method] | type[Inference] | None = None) -> dict[str, Any]:
    """All methods, strategies of inference, support sources and ways to average methods, or one of them.

    name: of a method, a strategy or a source (NAME:K where a method has that name too), MODULE:CLASS of your own, the
        class, or A+B or RULE:A+B for methods that are averaged, with or without the names of methods. Gives equation,
        hyperparameters, source and more as JSON values.
    Raises UnknownName for what does not exist.

    Example:
        >>> [each["name"] for each in onceclip.methods()["methods"]][:2]
        ['zero-shot', 'template-selection']
        >>> onceclip.methods("gda")["family"]
        'closed form'
        >>> onceclip.methods("stata")["sees"]
        'set'
    """
    if name is None or isinstance(name, str):
        found = _written() or _all()
        if name is None:
            return {kind: list(each.values()) for kind, each in found.items()}
        for each in found.values():
            if name in each:
                return dict(each[name])
        source, _, count = name.partition(":")
        if source in found["supports"] and count.isdecimal():
            return dict(found["supports"][source])
        if ("+" in name or f"{source}:A+B" in found["averages"]) and (average := _average(name, found["averages"])):
            return average
    from onceclip.adapters.inference import Inference

    kind = _kind(name)
    return _inference_values(kind) if issubclass(kind, Inference) else _values(kind)


def catalogue_text() -> str:
    """What `FILE` is to hold: all methods and strategies, and a digest of the code that says so."""
    parts = [f'{json.dumps(kind)}: {{\n' + ",\n".join(f"{json.dumps(name)}: {json.dumps(values)}"
                                                     for name, values in each.items()) + "}"
             for kind, each in _all().items()]
    return f'{{"code": "{_digest()}",\n' + ",\n".join(parts) + "}\n"


def _written() -> dict[str, dict[str, Any]] | None:
    """The methods and strategies by name as the file has them, unless the code is another one by now."""
    try:
        found = json.loads(FILE.read_text(encoding="utf-8"))
        return {kind: dict(found[kind]) for kind in _KINDS} if found["code"] == _digest() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _all() -> dict[str, dict[str, Any]]:
    from onceclip.adapters import METHODS, SUPPORTS
    from onceclip.adapters.inference import INFERENCES
    from onceclip.pipeline.runs.automatic import KINDS

    return {"methods": {name: _values(method) for name, method in METHODS.items()},
            "inferences": {name: _inference_values(each) for name, each in INFERENCES.items()},
            "supports": {name: _support_values(each) for name, each in SUPPORTS.items()},
            "averages": {_averaged(rule): {"name": _averaged(rule), "rule": rule, "summary": meaning}
                         for rule, meaning in KINDS.items()}}


def _averaged(rule: str) -> str:
    return f"{rule}:A+B" if rule else "A+B"


def _average(name: str, averages: dict[str, Any]) -> dict[str, Any] | None:
    """What the methods of a name like gda+lp++ become together; None for another name."""
    from onceclip.pipeline.runs.automatic import parts_of, run_method

    rule, members = parts_of(name)
    method = run_method(name)  # complains of members that cannot be averaged, and of one alone
    return {**averages[_averaged(rule)], "name": method.name, "members": members} if members else None


def _digest() -> str:
    """Identity of the code that decides what is told of a method or a strategy."""
    made = hashlib.blake2b(digest_size=16)
    for path in (Path(__file__), _ADAPTERS / "method.py", _ADAPTERS / "training" / "trainable.py",
                 _ADAPTERS / "ensembles.py", FILE.parents[1] / "runs" / "automatic.py",
                 *(path for room in ("methods", "inference", "support")
                   for path in sorted((_ADAPTERS / room).glob("*.py")))):
        made.update(path.name.encode() + path.read_bytes())
    return made.hexdigest()


def _kind(name: Any) -> type[Method] | type[Inference]:
    from onceclip.adapters import METHODS, SUPPORTS, Method, UnknownName, method_class
    from onceclip.adapters.errors import unknown
    from onceclip.adapters.inference import INFERENCES, Inference
    from onceclip.adapters.plugin import import_class
    from onceclip.adapters.training.trainable import Configurable

    if isinstance(name, type) and issubclass(name, Inference):
        return name
    if isinstance(name, str) and ":" in name:
        kind: type[Configurable] = import_class(name, Configurable)
        if issubclass(kind, Method | Inference):
            return kind
    elif isinstance(name, str) and name not in METHODS:
        if name not in INFERENCES:
            raise UnknownName(unknown("method, strategy or source", name, [*METHODS, *INFERENCES, *SUPPORTS]))
        return INFERENCES[name]
    return method_class(method_of(name)[0])


def _inference_values(inference: type[Inference]) -> dict[str, Any]:
    usual = inference()
    return {
        "name": inference.name, "summary": inference.summary, "equation": inference.equation,
        "source": inference.source, "sees": inference.sees, "prior": usual.prior, "fitted_on": usual.fitted_on,
        "transductive": usual.transductive, "leaves_classifier": inference.leaves_classifier,
        "hyperparameters": {name: _setting(setting) for name, setting in inference.hyperparameters.items()},
    }


def _support_values(source: type[SupportSource]) -> dict[str, Any]:
    return {
        "name": source.name, "summary": source.summary, "source": source.source, "needs": source.needs,
        "from_bank": source.from_bank,
        "hyperparameters": {name: _setting(setting) for name, setting in source.hyperparameters.items()},
    }


def _values(method: type[Method]) -> dict[str, Any]:
    return {
        "name": method.name, "family": method.family, "summary": method.summary, "equation": method.equation,
        "source": method.source, "needs": method.needs, "needs_support": method.needs_support,
        "needs_text": method.needs_text, "inputs": list(method.inputs), "transfers": method.transfers,
        "trained": method.trained, "cost": cost(method),
        "trainings_of_val": trainings(method),
        "hyperparameters": {name: _setting(setting, name == method.mixing, method.trained)
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


def _setting(setting: Hyperparameter, exact: bool = False, trained: bool = False) -> dict[str, Any]:
    values: dict[str, Any] = {"default": setting.default, "meaning": setting.meaning,
                              "search": "exact" if exact else list(setting.search),
                              "retrain": trained and setting.retrain}
    if setting.choices:
        values["choices"] = list(setting.choices)
    elif isinstance(setting.default, float | int) and not isinstance(setting.default, bool):
        values |= {"low": setting.low, "high": setting.high if math.isfinite(setting.high) else None}
    return values
