"""Identity of an encoder, a text set or a draw: a hash over declared values, never over paths or times."""

from __future__ import annotations

import hashlib
import json
from typing import Any

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
