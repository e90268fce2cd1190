"""Heads as JSON and named tensors: the one format of saving, exporting and stacking."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import Tensor

from onceclip.adapters.errors import AdapterFileError
from onceclip.adapters.heads.attention import CrossModal, VisualGuide
from onceclip.adapters.heads.base import Head
from onceclip.adapters.heads.kernel import FourierFeatures, Kernel, KernelMachine
from onceclip.adapters.heads.linear import Columns, Linear, ProbabilityBilinear, Projected, Sum
from onceclip.adapters.heads.prompts import PromptMax, PromptWeighted
from onceclip.adapters.heads.residual import Bottleneck, Rectified

HEADS: dict[str, type[Head]] = {"linear": Linear, "kernel": Kernel, "bottleneck": Bottleneck, "sum": Sum,
                               "projected": Projected, "prompt-max": PromptMax, "prompt-weighted": PromptWeighted,
                               "columns": Columns, "rectified": Rectified, "cross-modal": CrossModal,
                               "visual-guide": VisualGuide,
                               "kernel-machine": KernelMachine, "fourier-features": FourierFeatures,
                               "probability-bilinear": ProbabilityBilinear}
_NAMES = {kind: name for name, kind in HEADS.items()}


def pack(head: Head, prefix: str = "", copy: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Split a head into a JSON description and its named tensors; copies of them, unless told otherwise."""
    description: dict[str, Any] = {"type": _NAMES[type(head)]}
    tensors: dict[str, Tensor] = {}

    def put(name: str, value: Any) -> Any:
        if isinstance(value, Head):
            inner, more = pack(value, f"{prefix}{name}.", copy)
            tensors.update(more)
            return inner
        if isinstance(value, Tensor):
            # A copy, because safetensors refuses two names for one memory.
            tensors[prefix + name] = value.detach().cpu().contiguous().clone() if copy else value
            return {"tensor": prefix + name}
        if isinstance(value, tuple):
            return [put(f"{name}.{index}", item) for index, item in enumerate(value)]
        return value

    for field in fields(head):  # type: ignore[arg-type]
        description[field.name] = put(field.name, getattr(head, field.name))
    return description, tensors


def unpack(description: dict[str, Any], tensors: dict[str, Tensor]) -> Head:
    """Rebuild a head from what `pack` made.

    Raises AdapterFileError for a head type that this version does not know.
    """
    values = dict(description)
    kind = values.pop("type")
    if kind not in HEADS:
        raise AdapterFileError(f"the adapter has a head of type {kind!r}, which this version of onceclip does not "
                               "know: install a newer version")

    def get(value: Any) -> Any:
        if isinstance(value, dict):
            return unpack(value, tensors) if "type" in value else tensors[value["tensor"]]
        return tuple(get(item) for item in value) if isinstance(value, list) else value

    return HEADS[kind](**{name: get(value) for name, value in values.items()})
