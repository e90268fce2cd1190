"""Identity of things: hashes over declared values, never over paths or times, and the keys of rows."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any
from urllib.parse import unquote_to_bytes

DIGEST_BYTES = 16


def canonical(values: Any) -> bytes:
    """The one JSON spelling of some values: sorted keys, no spaces, ASCII only.

    Raises ValueError or TypeError for values that JSON cannot hold, NaN among them.
    """
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def fingerprint(values: Any) -> str:
    """Hash of JSON values: 32 hexadecimal digits."""
    return digest(canonical(values)).hex()


def digest(content: bytes | memoryview) -> bytes:
    """Hash of some bytes, such as an image file: 16 bytes."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()

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


def line_of(text: str) -> str:
    """A text as a key or name of a store: one line, in which keys of a store stay as they are."""
    return text if text.isprintable() else encode_key(text).replace("%25", "%")


def decode_key(key: str) -> str:
    """Turn a key back into the path that `encode_key` was given."""
    return os.fsdecode(unquote_to_bytes(key)).replace("/", os.sep)
