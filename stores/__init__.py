"""What is on disk: schema, writer, reader. numpy and zarr only."""

from onceclip.stores.errors import NotAStore, StoreDamaged, StoreError, StoreIncomplete, StoreMismatch
from onceclip.stores.lock import write_lock
from onceclip.stores.reader import Store, open_store
from onceclip.stores.schema import Output
from onceclip.stores.table import Table
from onceclip.stores.text import TextSet
from onceclip.stores.writer import StoreWriter

__all__ = [
    "NotAStore", "Output", "Store", "StoreDamaged", "StoreError", "StoreIncomplete", "StoreMismatch", "StoreWriter",
    "Table", "TextSet", "open_store", "write_lock",
]
