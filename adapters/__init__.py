"""The mathematics: torch tensors in, classifier out. No files but saved adapters, no encoder, no command line.

Names are imported on first use: what only reads a configuration or says what is wrong with a name needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onceclip.adapters.classifier import Classifier, ClassifierModule, load_classifier
    from onceclip.adapters.errors import AdapterFileError, MethodError, UnknownName
    from onceclip.adapters.merging import best_merge, merge
    from onceclip.adapters.method import Method
    from onceclip.adapters.methods import METHODS, method_class
    from onceclip.adapters.methods.ape import APE
    from onceclip.adapters.methods.ape_t import APET
    from onceclip.adapters.methods.clap import CLAP
    from onceclip.adapters.methods.clip_a_self import ClipASelf
    from onceclip.adapters.methods.clip_adapter import ClipAdapter
    from onceclip.adapters.methods.coop import CoOp
    from onceclip.adapters.methods.cross_modal_adapter import CrossModalAdapter
    from onceclip.adapters.methods.cross_modal_lp import CrossModalLinearProbe
    from onceclip.adapters.methods.gda import GDA
    from onceclip.adapters.methods.gda_em import GDAEM
    from onceclip.adapters.methods.kgcoop import KgCoOp
    from onceclip.adapters.methods.linear_probe import LinearProbe
    from onceclip.adapters.methods.linear_probe_adamw import LinearProbeAdamW
    from onceclip.adapters.methods.linear_probe_preproj import LinearProbePreproj
    from onceclip.adapters.methods.lp_plus_plus import LPPlusPlus
    from onceclip.adapters.methods.lpclip import LpClip
    from onceclip.adapters.methods.meta_adapter import MetaAdapter
    from onceclip.adapters.methods.multi_modal_adapter import MultiModalAdapter
    from onceclip.adapters.methods.prograd import ProGrad
    from onceclip.adapters.methods.proker import ProKeR
    from onceclip.adapters.methods.prolip import ProLIP
    from onceclip.adapters.methods.prompt_weights import PromptWeights
    from onceclip.adapters.methods.rla import RLA
    from onceclip.adapters.methods.sgva import SgVA
    from onceclip.adapters.methods.taskres import TaskRes
    from onceclip.adapters.methods.template_selection import TemplateSelection
    from onceclip.adapters.methods.tip_adapter import TipAdapter
    from onceclip.adapters.methods.tip_adapter_f import TipAdapterF
    from onceclip.adapters.methods.tip_x import TipX
    from onceclip.adapters.methods.vt_clip import VtClip
    from onceclip.adapters.methods.wise_ft import WiseFT
    from onceclip.adapters.methods.zero_shot import ZeroShot
    from onceclip.adapters.methods.zs_lp import ZeroShotLinearProbe
    from onceclip.adapters.selection.automatic import fit_automatically
    from onceclip.adapters.selection.selection import POLICIES, Selection, fit_all, fit_selected
    from onceclip.adapters.support import SUPPORTS, SupportSource, support_source
    from onceclip.adapters.task import Pool, Rows, Task
    from onceclip.adapters.text import Text
    from onceclip.adapters.tower import TextTower
    from onceclip.adapters.training.trainable import Hyperparameter
    from onceclip.adapters.transfer import transfer

_MODULES = {name: module for module, names in {
    "classifier": ("Classifier", "ClassifierModule", "load_classifier"),
    "errors": ("AdapterFileError", "MethodError", "UnknownName"), "merging": ("best_merge", "merge"),
    "method": ("Method",), "methods": ("METHODS", "method_class"), "methods.ape": ("APE",),
    "methods.ape_t": ("APET",), "methods.clap": ("CLAP",), "methods.clip_a_self": ("ClipASelf",),
    "methods.clip_adapter": ("ClipAdapter",), "methods.coop": ("CoOp",), "methods.kgcoop": ("KgCoOp",),
     "methods.prograd": ("ProGrad",), "methods.cross_modal_adapter": ("CrossModalAdapter",),
    "methods.cross_modal_lp": ("CrossModalLinearProbe",), "methods.gda": ("GDA",), "methods.gda_em": ("GDAEM",),
    "methods.linear_probe": ("LinearProbe",), "methods.linear_probe_adamw": ("LinearProbeAdamW",),
    "methods.linear_probe_preproj": ("LinearProbePreproj",), "methods.lp_plus_plus": ("LPPlusPlus",),
    "methods.lpclip": ("LpClip",), "methods.meta_adapter": ("MetaAdapter",),
    "methods.multi_modal_adapter": ("MultiModalAdapter",), "methods.proker": ("ProKeR",),
    "methods.prolip": ("ProLIP",), "methods.prompt_weights": ("PromptWeights",), "methods.rla": ("RLA",),
    "methods.sgva": ("SgVA",), "methods.taskres": ("TaskRes",), "methods.template_selection": ("TemplateSelection",),
    "methods.tip_adapter": ("TipAdapter",), "methods.tip_adapter_f": ("TipAdapterF",), "methods.tip_x": ("TipX",),
    "methods.vt_clip": ("VtClip",), "methods.wise_ft": ("WiseFT",), "methods.zero_shot": ("ZeroShot",),
    "methods.zs_lp": ("ZeroShotLinearProbe",), "selection.automatic": ("fit_automatically",),
    "selection.selection": ("POLICIES", "Selection", "fit_all", "fit_selected"), "task": ("Pool", "Rows", "Task"),
     "support": ("SUPPORTS", "SupportSource", "support_source"), "tower": ("TextTower",),
    "text": ("Text",), "training.trainable": ("Hyperparameter",), "transfer": ("transfer",)}.items() for name in names}

__all__ = [
    "APE",
    "APET",
    "CLAP",
    "GDA",
    "GDAEM",
    "METHODS",
    "POLICIES",
    "RLA",
    "SUPPORTS",
    "AdapterFileError",
    "Classifier",
    "ClassifierModule",
    "ClipASelf",
    "ClipAdapter",
    "CoOp",
    "CrossModalAdapter",
    "CrossModalLinearProbe",
    "Hyperparameter",
    "KgCoOp",
    "LPPlusPlus",
    "LinearProbe",
    "LinearProbeAdamW",
    "LinearProbePreproj",
    "LpClip",
    "MetaAdapter",
    "Method",
    "MethodError",
    "MultiModalAdapter",
    "Pool",
    "ProGrad",
    "ProKeR",
    "ProLIP",
    "PromptWeights",
    "Rows",
    "Selection",
    "SgVA",
    "SupportSource",
    "Task",
    "TaskRes",
    "TemplateSelection",
    "Text",
    "TextTower",
    "TipAdapter",
    "TipAdapterF",
    "TipX",
    "UnknownName",
    "VtClip",
    "WiseFT",
    "ZeroShot",
    "ZeroShotLinearProbe",
    "best_merge",
    "fit_all",
    "fit_automatically",
    "fit_selected",
    "load_classifier",
    "merge",
    "method_class",
    "support_source",
    "transfer",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found  # in place of a module of that name, as `transfer` is
    return found
