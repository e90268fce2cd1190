"""What is on disk: schema, writer, reader. numpy and zarr only.

Names are imported on first use: processes that only decode images need nothing of Zarr and start in half the time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onceclip.stores.errors import NotAStore, StoreDamaged, StoreError, StoreIncomplete, StoreMismatch

if TYPE_CHECKING:
    from onceclip.stores.lock import write_lock
    from onceclip.stores.schema import Output
    from onceclip.stores.store import Store, open_store
    from onceclip.stores.table import Table
    from onceclip.stores.text import StoredTower, TextSet
    from onceclip.stores.writer import StoreWriter

_MODULES = {"write_lock": "lock", "Output": "schema", "Store": "store", "open_store": "store", "Table": "table",
            "StoredTower": "text", "TextSet": "text", "StoreWriter": "writer"}

__all__ = [
    "NotAStore", "Output", "Store", "StoreDamaged", "StoreError", "StoreIncomplete", "StoreMismatch", "StoreWriter",
    "StoredTower", "Table", "TextSet", "open_store", "write_lock",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
