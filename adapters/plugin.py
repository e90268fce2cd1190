"""Methods, heads and functions from outside of onceclip, which are named MODULE:NAME.

What a user names is imported. What a file names is data: it is looked up among the modules that the user named.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from reprlib import repr as short
from types import ModuleType
from typing import Any, TypeGuard, TypeVar

from onceclip.adapters.errors import MethodError, UnknownName, unknown
from onceclip.errors import OnceclipError, failure_of

Kind = TypeVar("Kind")
_PACKAGE = __name__.partition(".")[0]


def is_plugin(kind: type) -> bool:
    """Whether a class is defined outside of onceclip."""
    return kind.__module__.partition(".")[0] != _PACKAGE


def full_name(kind: type) -> str:
    """The `name` of a class of onceclip, MODULE:CLASS of any other; one of a script is called alike in its workers."""
    if not is_plugin(kind):
        return str(kind.name)  # type: ignore[attr-defined]
    return f"{'__main__' if kind.__module__ == '__mp_main__' else kind.__module__}:{kind.__qualname__}"


def import_module(name: str, failure: type[OnceclipError] = MethodError) -> ModuleType:
    """Import a module that the user named, from the working directory or among what is installed.

    Raises the failure if it cannot be imported.
    """
    if not isinstance(name, str):
        raise failure(f"{short(name)} is no name of a module: give a text, such as 'my_methods'")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as for `python -m`: the user's file lies where they work
    try:
        return importlib.import_module(name)
    except Exception as error:  # a user's code may raise anything
        raise failure(f"cannot import {name!r} ({failure_of(error)}): name a module in this folder or of an "
                      "installed package") from error


def import_function(path: str, failure: type[OnceclipError]) -> tuple[Callable[..., Any], ModuleType]:
    """The function, or the class, that the user named as MODULE:FUNCTION, and its module.

    Raises the failure if there is none.
    """
    name, _, function = path.partition(":")
    module = import_module(name, failure)
    found = getattr(module, function, None)
    if not callable(found):
        raise failure(_missing(module, "function", function, callable))
    return found, module


def import_class(path: str, base: type[Kind]) -> type[Kind]:
    """The class that the user named as MODULE:CLASS.

    Raises MethodError if there is none, or it does not derive from the base.
    """
    return _class_in(import_module(path.partition(":")[0]), path, base)


def named_class(name: Any, base: type[Kind], known: Mapping[str, type[Kind]], what: str) -> type[Kind]:
    """The class of a name of a table, or that MODULE:CLASS names; a class that derives from the base is given back.

    what: a class is of, for people.
    Raises UnknownName with the nearest name if there is none, MethodError as `import_class`, and for anything else.
    """
    if isinstance(name, type) and issubclass(name, base):
        return name
    if not isinstance(name, str):
        raise MethodError(f"{short(name)} is no {what}: give a name, MODULE:CLASS, or a class that derives from "
                          f"{base.__name__}")
    if ":" in name:
        return import_class(name, base)
    if name not in known:
        raise UnknownName(unknown(what, name, known))
    return known[name]


def stored_class(path: str, base: type[Kind], modules: Iterable[str], where: str) -> type[Kind]:
    """The class that a file names as MODULE:CLASS, out of modules that are imported already.

    modules: those that the user named. where: the file, for the message.
    Raises MethodError for a class of any other module.
    """
    name = path.partition(":")[0]
    if name not in modules or name not in sys.modules:
        raise MethodError(f"{where} needs {path}, which is no part of onceclip: if you trust the code of {name}, add "
                          f"--import {name} (in Python modules=[{name!r}])")
    return _class_in(sys.modules[name], path, base)


def _class_in(module: ModuleType, path: str, base: type[Kind]) -> type[Kind]:
    def fits(value: Any) -> TypeGuard[type[Kind]]:
        return isinstance(value, type) and issubclass(value, base)

    name = path.partition(":")[2]
    found = vars(module).get(name)
    if fits(found):
        return found
    raise MethodError(_missing(module, "class", name, fits, f" that derives from {base.__name__}") + (
        "" if module.__name__ != "__main__" else "; other processes do not have what a notebook or a script defines: "
        "put the class into a file of its own"))


def _missing(module: ModuleType, what: str, name: str, fits: Callable[[Any], bool], kind: str = "") -> str:
    """One line that names the nearest of what a module defines that fits."""
    known = [each for each, value in vars(module).items()
             if not each.startswith("_") and fits(value) and getattr(value, "__module__", "") == module.__name__]
    return f"{module.__name__} has {unknown(what, name, known, kind)}"
