"""Encode images and class prompts with CLIP once, then adapt thousands of times on the cached tensors."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "open_store": "onceclip.stores",
    "make_task": "onceclip.pipeline.tasks",
    "extract": "onceclip.pipeline.extract",
    "EncoderSpec": "onceclip.pipeline.encoders",
    "ExtractOptions": "onceclip.pipeline.extract",
    "fit": "onceclip.pipeline.fit",
    "RunSpec": "onceclip.pipeline.run",
    "evaluate": "onceclip.pipeline.evaluate",
    "load_classifier": "onceclip.adapters",
    "merge": "onceclip.adapters",
    "best_merge": "onceclip.adapters",
    "ZeroShot": "onceclip.adapters",
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

__all__ = ["OnceclipError", "__version__", *_PUBLIC]


class OnceclipError(Exception):
    """A failure that the user can mend: one line that says what, where and how."""


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import onceclip` needs neither torch nor zarr."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'onceclip' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
