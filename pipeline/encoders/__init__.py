"""Encoders: what a user names, how it is loaded, and what it computes.

Names are imported on first use: what only names an encoder needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onceclip.pipeline.encoders.encoder import Encoder
    from onceclip.pipeline.encoders.opening import check_spec, open_encoder
    from onceclip.pipeline.encoders.spec import DEMO, EncoderSpec

_MODULES = {"Encoder": "encoder", "check_spec": "opening", "open_encoder": "opening", "DEMO": "spec",
            "EncoderSpec": "spec"}

__all__ = ["DEMO", "Encoder", "EncoderSpec", "check_spec", "open_encoder"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
