"""Row keys: a path relative to the root, as text of one line that any file system name survives."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote_to_bytes

# Control characters and line ends too, so that a key is always one line.
_ESCAPED = re.compile("[%\x00-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff]")


def encode_key(path: str) -> str:
    """Turn a relative path into a key: `%`, control characters and bytes that are not UTF-8 become `%XX`.

    The bytes of the name decide, whatever the locale makes of them.
    """
    text = os.fsencode(path).decode("utf-8", "surrogateescape")
    key = _ESCAPED.sub(lambda found: "".join(f"%{byte:02X}" for byte in
                                             found.group().encode("utf-8", "surrogateescape")), text)
    return key.replace(os.sep, "/")


def decode_key(key: str) -> str:
    """Turn a key back into the path that `encode_key` was given."""
    return os.fsdecode(unquote_to_bytes(key)).replace("/", os.sep)
