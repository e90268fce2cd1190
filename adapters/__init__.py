"""The mathematics: torch tensors in, classifier out. No files but saved adapters, no encoder, no command line."""

from onceclip.adapters.classifier import Classifier, load_classifier
from onceclip.adapters.errors import AdapterFileError, MethodError, UnknownName
from onceclip.adapters.method import Hyperparameter, Method, unknown
from onceclip.adapters.methods import METHODS, method_class
from onceclip.adapters.methods.clip_adapter import ClipAdapter
from onceclip.adapters.methods.gda import GDA
from onceclip.adapters.methods.linear_probe import LinearProbe
from onceclip.adapters.methods.tip_adapter import TipAdapter
from onceclip.adapters.methods.tip_adapter_f import TipAdapterF
from onceclip.adapters.methods.zero_shot import ZeroShot
from onceclip.adapters.selection import POLICIES, Selection, fit_selected
from onceclip.adapters.task import Rows, Task, Text

__all__ = [
    "GDA", "METHODS", "POLICIES", "AdapterFileError", "Classifier", "ClipAdapter", "Hyperparameter", "LinearProbe",
    "Method", "MethodError", "Rows", "Selection", "Task", "Text", "TipAdapter", "TipAdapterF", "UnknownName",
    "ZeroShot", "fit_selected", "load_classifier", "method_class",
]
