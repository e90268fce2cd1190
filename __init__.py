"""Encode images and class prompts with CLIP once, then adapt thousands of times on the cached tensors."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onceclip.errors import OnceclipError

if TYPE_CHECKING:
    from onceclip.adapters import load_classifier
    from onceclip.pipeline.api.adapters import evaluate, export, report
    from onceclip.pipeline.api.catalogue import methods
    from onceclip.pipeline.api.datasets import torch_dataset, write_draws
    from onceclip.pipeline.api.predictions import predict, suggest, zero_shot
    from onceclip.pipeline.api.retrieval import duplicates, retrieve, search
    from onceclip.pipeline.api.runs import fit, incremental, make_task, sweep
    from onceclip.pipeline.api.stores import add_text, add_tower, compact, extract, import_arrays, verify
    from onceclip.pipeline.api.tables import compare, results, table
    from onceclip.pipeline.decoding.preparation import Preparation
    from onceclip.pipeline.encoders import EncoderSpec
    from onceclip.pipeline.errors import BadImage
    from onceclip.pipeline.extraction.survey import ExtractOptions
    from onceclip.pipeline.runs.estimator import FewShotClassifier
    from onceclip.pipeline.runs.run import RunSpec
    from onceclip.pipeline.sources import Record
    from onceclip.stores import open_store

_PUBLIC = {name: f"onceclip.{module}" for module, names in {
    "adapters": ("load_classifier",), "stores": ("open_store",),
    "pipeline.api.adapters": ("evaluate", "export", "report"), "pipeline.api.catalogue": ("methods",),
    "pipeline.api.datasets": ("torch_dataset", "write_draws"),
    "pipeline.api.predictions": ("predict", "suggest", "zero_shot"),
    "pipeline.api.retrieval": ("duplicates", "retrieve", "search"),
    "pipeline.api.runs": ("fit", "incremental", "make_task", "sweep"),
    "pipeline.api.stores": ("add_text", "add_tower", "compact", "extract", "import_arrays", "verify"),
    "pipeline.api.tables": ("compare", "results", "table"),
    "pipeline.decoding.preparation": ("Preparation",), "pipeline.encoders": ("EncoderSpec",),
    "pipeline.errors": ("BadImage",), "pipeline.extraction.survey": ("ExtractOptions",),
    "pipeline.runs.estimator": ("FewShotClassifier",), "pipeline.runs.run": ("RunSpec",),
    "pipeline.sources": ("Record",)}.items() for name in names}

__all__ = [
    "BadImage", "EncoderSpec", "ExtractOptions", "FewShotClassifier", "OnceclipError", "Preparation", "Record",
    "RunSpec", "__version__", "add_text", "add_tower", "compact", "compare", "duplicates", "evaluate", "export",
    "extract", "fit", "import_arrays", "incremental", "load_classifier", "make_task", "methods", "open_store",
    "predict", "report", "results", "retrieve", "search", "suggest", "sweep", "table", "torch_dataset", "verify",
    "write_draws", "zero_shot"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import onceclip` needs neither torch nor zarr."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in ("adapters", "stores"):
        return importlib.import_module(f"onceclip.{name}")
    if name == "__version__":
        return importlib.import_module("onceclip.pipeline.words").version()
    places = () if name.startswith("_") else ("onceclip.adapters", "onceclip.stores", "onceclip.pipeline.runs.specs",
                                              "onceclip.pipeline.runs.sweep")
    found = [f": it is in {place}" for place in places if hasattr(importlib.import_module(place), name)]
    raise AttributeError(f"module 'onceclip' has no attribute {name!r}{''.join(found[:1])}")


def __dir__() -> list[str]:
    return sorted(__all__)
