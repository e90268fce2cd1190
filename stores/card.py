"""The README.md inside a store, for people: no reader of the store looks at it."""

from __future__ import annotations

import re

from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from onceclip.stores.errors import StoreError
from onceclip.stores.identity import digest
from onceclip.stores.lock import write_lock
from onceclip.stores.storage import open_group

NAME = "README.md"
_MARK = re.compile(r"\n<!-- Written by onceclip, text ([0-9a-f]{32})\. [^\n]*-->\n$")


def write_card(path: str, text: str) -> None:
    """Write a text as the card of a store, in place of one that is as it was written.

    Raises StoreError if there is a card that a person wrote or changed, or the store can only be read.
    """
    with write_lock(path):
        place = open_group(path, mode="r+").store_path / NAME
        found = sync(place.get(default_buffer_prototype()))
        present = found.to_bytes().decode("utf-8", "replace") if found is not None else ""
        mark = _MARK.search(present)
        if found is not None and (mark is None or digest(present[:mark.start()].encode()).hex() != mark[1]):
            raise StoreError(f"{path} has a {NAME} that was written or changed by hand: move it away to have a new one")
        marked = (f"{text}\n<!-- Written by onceclip, text {digest(text.encode()).hex()}. Once the text is changed, "
                  "onceclip leaves it alone. -->\n")
        sync(place.set(default_buffer_prototype().buffer.from_bytes(marked.encode())))
