"""The mathematics: torch tensors in, classifier out. No files but saved adapters, no encoder, no command line.

Names are imported on first use: what only reads a configuration or says what is wrong with a name needs no torch. The
methods' classes are names of it, too; `methods/__init__.py` lists them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onceclip.adapters.classifier import Classifier, ClassifierModule, load_classifier
    from onceclip.adapters.ensembles import best_merge, ensemble, merge
    from onceclip.adapters.errors import AdapterFileError, MethodError, UnknownName
    from onceclip.adapters.method import Method
    from onceclip.adapters.methods import *  # noqa: F403
    from onceclip.adapters.methods import METHODS, method_class
    from onceclip.adapters.selection.automatic import fit_automatically
    from onceclip.adapters.selection.calibration import SetRule, set_rule
    from onceclip.adapters.selection.selection import POLICIES, Selection, fit_all, fit_selected
    from onceclip.adapters.support import SUPPORTS, SupportSource, support_source
    from onceclip.adapters.task import Pool, Rows, Task
    from onceclip.adapters.text import Text
    from onceclip.adapters.tower import TextTower
    from onceclip.adapters.training.trainable import Hyperparameter
    from onceclip.adapters.transfer import transfer

_MODULES = {name: module for module, names in {
    "classifier": ("Classifier", "ClassifierModule", "load_classifier"),
    "ensembles": ("best_merge", "ensemble", "merge"),
    "errors": ("AdapterFileError", "MethodError", "UnknownName"), "method": ("Method",),
    "methods": ("METHODS", "method_class"), "selection.automatic": ("fit_automatically",),
    "selection.calibration": ("SetRule", "set_rule"),
    "selection.selection": ("POLICIES", "Selection", "fit_all", "fit_selected"),
    "support": ("SUPPORTS", "SupportSource", "support_source"), "task": ("Pool", "Rows", "Task"), "text": ("Text",),
    "tower": ("TextTower",), "training.trainable": ("Hyperparameter",), "transfer": ("transfer",)}.items()
    for name in names}

__all__ = [
    "METHODS", "POLICIES", "SUPPORTS", "AdapterFileError", "Classifier", "ClassifierModule", "Hyperparameter", "Method",
    "MethodError", "Pool", "Rows", "Selection", "SetRule", "SupportSource", "Task", "Text", "TextTower", "UnknownName",
    "best_merge", "ensemble", "fit_all", "fit_automatically", "fit_selected", "load_classifier", "merge",
    "method_class", "set_rule", "support_source", "transfer",
]


def __getattr__(name: str) -> Any:
    place = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'methods')}")
    if name not in _MODULES and name not in place.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(place, name)
    globals()[name] = found  # in place of a module of that name, as `transfer` is
    return found
