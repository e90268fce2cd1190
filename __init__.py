"""Encode images and class prompts with CLIP once, then adapt thousands of times on the cached tensors."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onceclip.errors import OnceclipError

if TYPE_CHECKING:
    from onceclip.adapters import (
        APE,
        APET,
        CLAP,
        GDA,
        GDAEM,
        RLA,
        Classifier,
        ClipAdapter,
        ClipASelf,
        CrossModalAdapter,
        CrossModalLinearProbe,
        LinearProbe,
        LinearProbeAdamW,
        LinearProbePreproj,
        LpClip,
        LPPlusPlus,
        MetaAdapter,
        MultiModalAdapter,
        ProKeR,
        ProLIP,
        Rows,
        SgVA,
        Task,
        TaskRes,
        Text,
        TipAdapter,
        TipAdapterF,
        TipX,
        VtClip,
        WiseFT,
        ZeroShot,
        ZeroShotLinearProbe,
        best_merge,
        load_classifier,
        merge,
    )
    from onceclip.adapters.classifier import ClassifierModule
    from onceclip.adapters.methods import PromptWeights, TemplateSelection
    from onceclip.pipeline.encoders import EncoderSpec
    from onceclip.pipeline.evaluation.evaluate import evaluate
    from onceclip.pipeline.export import export
    from onceclip.pipeline.extraction.extract import extract
    from onceclip.pipeline.extraction.survey import ExtractOptions
    from onceclip.pipeline.runs.estimator import FewShotClassifier
    from onceclip.pipeline.runs.fit import fit
    from onceclip.pipeline.runs.run import RunSpec
    from onceclip.pipeline.runs.sweep import make_specs, sweep
    from onceclip.pipeline.tasks.tasks import make_task
    from onceclip.stores import Store, open_store

__version__ = "0.1.0"

_PUBLIC = {
    "open_store": "onceclip.stores",
    "Store": "onceclip.stores",
    "make_task": "onceclip.pipeline.tasks.tasks",
    "extract": "onceclip.pipeline.extraction.extract",
    "EncoderSpec": "onceclip.pipeline.encoders",
    "ExtractOptions": "onceclip.pipeline.extraction.survey",
    "fit": "onceclip.pipeline.runs.fit",
    "RunSpec": "onceclip.pipeline.runs.run",
    "make_specs": "onceclip.pipeline.runs.sweep",
    "sweep": "onceclip.pipeline.runs.sweep",
    "evaluate": "onceclip.pipeline.evaluation.evaluate",
    "Task": "onceclip.adapters",
    "Rows": "onceclip.adapters",
    "Text": "onceclip.adapters",
    "Classifier": "onceclip.adapters",
    "export": "onceclip.pipeline.export",
    "FewShotClassifier": "onceclip.pipeline.runs.estimator",
    "ClassifierModule": "onceclip.adapters.classifier",
    "load_classifier": "onceclip.adapters",
    "merge": "onceclip.adapters",
    "best_merge": "onceclip.adapters",
    "ZeroShot": "onceclip.adapters",
    "TemplateSelection": "onceclip.adapters.methods",
    "PromptWeights": "onceclip.adapters.methods",
    "LinearProbe": "onceclip.adapters",
    "LpClip": "onceclip.adapters",
    "LinearProbePreproj": "onceclip.adapters",
    "LinearProbeAdamW": "onceclip.adapters",
    "ZeroShotLinearProbe": "onceclip.adapters",
    "CLAP": "onceclip.adapters",
    "LPPlusPlus": "onceclip.adapters",
    "CrossModalLinearProbe": "onceclip.adapters",
    "WiseFT": "onceclip.adapters",
    "TaskRes": "onceclip.adapters",
    "ClipAdapter": "onceclip.adapters",
    "CrossModalAdapter": "onceclip.adapters",
    "RLA": "onceclip.adapters",
    "ProLIP": "onceclip.adapters",
    "ClipASelf": "onceclip.adapters",
    "MetaAdapter": "onceclip.adapters",
    "MultiModalAdapter": "onceclip.adapters",
    "SgVA": "onceclip.adapters",
    "VtClip": "onceclip.adapters",
    "TipAdapter": "onceclip.adapters",
    "TipAdapterF": "onceclip.adapters",
    "GDA": "onceclip.adapters",
    "GDAEM": "onceclip.adapters",
    "ProKeR": "onceclip.adapters",
    "TipX": "onceclip.adapters",
    "APE": "onceclip.adapters",
    "APET": "onceclip.adapters",
}

__all__ = [
    "APE", "APET", "CLAP", "GDA", "GDAEM", "RLA", "Classifier", "ClassifierModule", "ClipASelf", "ClipAdapter",
    "CrossModalAdapter", "CrossModalLinearProbe", "EncoderSpec", "ExtractOptions", "FewShotClassifier", "LPPlusPlus",
    "LinearProbe", "LinearProbeAdamW", "LinearProbePreproj", "LpClip", "MetaAdapter", "MultiModalAdapter",
    "OnceclipError", "ProKeR", "ProLIP", "PromptWeights", "Rows", "RunSpec", "SgVA", "Store", "Task", "TaskRes",
    "TemplateSelection", "Text", "TipAdapter", "TipAdapterF", "TipX", "VtClip", "WiseFT", "ZeroShot",
    "ZeroShotLinearProbe", "__version__", "best_merge", "evaluate", "export", "extract", "fit", "load_classifier",
    "make_specs", "make_task", "merge", "open_store", "sweep",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import onceclip` needs neither torch nor zarr."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'onceclip' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
