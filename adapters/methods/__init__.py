"""The methods, one file each. A new one joins by being named in `METHODS`."""

from __future__ import annotations

from onceclip.adapters.errors import UnknownName
from onceclip.adapters.method import Method, unknown
from onceclip.adapters.methods.clip_adapter import ClipAdapter
from onceclip.adapters.methods.gda import GDA
from onceclip.adapters.methods.linear_probe import LinearProbe
from onceclip.adapters.methods.tip_adapter import TipAdapter
from onceclip.adapters.methods.tip_adapter_f import TipAdapterF
from onceclip.adapters.methods.zero_shot import ZeroShot

METHODS: dict[str, type[Method]] = {method.name: method for method in (
    ZeroShot,
    LinearProbe,
    ClipAdapter,
    TipAdapter, TipAdapterF,
    GDA,
)}


def method_class(name: str) -> type[Method]:
    """Look a method up by its name.

    Raises UnknownName with the nearest name if there is none.
    """
    if name not in METHODS:
        raise UnknownName(unknown("method", name, METHODS))
    return METHODS[name]
