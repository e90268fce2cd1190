"""The mathematics: torch tensors in, classifier out. No files but saved adapters, no encoder, no command line."""

from onceclip.adapters.classifier import Classifier, load_classifier
from onceclip.adapters.clip_adapter import ClipAdapter
from onceclip.adapters.errors import AdapterFileError, MethodError, UnknownName
from onceclip.adapters.gda import GDA
from onceclip.adapters.linear_probe import LinearProbe
from onceclip.adapters.method import Hyperparameter, Method, unknown
from onceclip.adapters.selection import POLICIES, Selection, fit_selected
from onceclip.adapters.task import Rows, Task, Text
from onceclip.adapters.tip_adapter import TipAdapter
from onceclip.adapters.tip_adapter_f import TipAdapterF
from onceclip.adapters.zero_shot import ZeroShot

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (ZeroShot, LinearProbe, ClipAdapter, TipAdapter, TipAdapterF, GDA)
}


def method_class(name: str) -> type[Method]:
    """Look a method up by its name.

    Raises UnknownName with the nearest name if there is none.
    """
    if name not in METHODS:
        raise UnknownName(unknown("method", name, METHODS))
    return METHODS[name]


__all__ = [
    "GDA", "METHODS", "POLICIES", "AdapterFileError", "Classifier", "ClipAdapter", "Hyperparameter", "LinearProbe",
    "Method", "MethodError", "Rows", "Selection", "Task", "Text", "TipAdapter", "TipAdapterF", "UnknownName",
    "ZeroShot", "fit_selected", "load_classifier", "method_class",
]
