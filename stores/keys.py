"""Row keys: a path relative to the root, as text that any file system name survives."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote_to_bytes

_ESCAPED = re.compile("[%\udc80-\udcff]")


def encode_key(path: str) -> str:
    """Turn a relative path into a key: `%` and bytes that are not UTF-8 become `%XX`."""
    key = _ESCAPED.sub(lambda found: "".join(f"%{byte:02X}" for byte in os.fsencode(found.group())), path)
    return key.replace(os.sep, "/")


def decode_key(key: str) -> str:
    """Turn a key back into the path that `encode_key` was given."""
    return os.fsdecode(unquote_to_bytes(key)).replace("/", os.sep)
