"""The columns that say what every row of a store is, and the identity of their content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import repeat
from json.encoder import encode_basestring_ascii as quoted

import numpy as np

from onceclip.stores.fingerprint import DIGEST_BYTES, canonical
from onceclip.stores.schema import STORED

_PIECE = 1 << 16  # rows whose JSON is in memory at once


@dataclass(frozen=True)
class Table:
    """The columns that say what every row is; all have one entry per row, of whatever state.

    key: paths relative to the root. label: (rows,) int32, position in `Store.classes`, or -1.
    split: (rows,) int8, position in SPLITS, or -1. state: (rows,) int8. digest: (rows, 16) uint8.
    reason: why a row is bad, else empty. group: rows that belong together, such as the frames of a video; empty for
    none, and left out where no row has one.
    """

    key: np.ndarray
    label: np.ndarray
    split: np.ndarray
    state: np.ndarray
    digest: np.ndarray
    reason: np.ndarray
    group: np.ndarray = field(default_factory=lambda: np.empty(0, object))

    def __post_init__(self) -> None:
        if not len(self.group):
            object.__setattr__(self, "group", np.full(len(self.state), "", object))

    def __len__(self) -> int:
        return len(self.state)

    def fingerprint(self, encoder: str, classes: Sequence[str]) -> str:
        """Identity of the content: key, digest, split, class and, if there are any, group of every stored row.

        encoder: fingerprint of what made the embeddings.
        """
        rows = np.flatnonzero(self.state == STORED)
        order = rows[np.argsort(self.key[rows])]
        names = ["null", *map(quoted, classes)]
        grouped = bool((self.group[rows] != "").any())
        # As `canonical` spells {"encoder": ..., "rows": [[key, digest, split, class(, group)], ...]}, but in pieces.
        content = blake2b(b'{"encoder":%b,"rows":[' % canonical(encoder), digest_size=DIGEST_BYTES)
        size = 2 * DIGEST_BYTES
        for start in range(0, len(order), _PIECE):
            piece = order[start:start + _PIECE]
            digits = self.digest[piece].tobytes().hex()
            ends = (f",{quoted(group)}]" for group in self.group[piece].tolist()) if grouped else repeat("]")
            columns = zip(map(quoted, self.key[piece].tolist()), range(0, len(digits), size),
                          self.split[piece].tolist(), (np.maximum(self.label[piece], -1) + 1).tolist(), ends,
                          strict=False)
            entries = [f'[{key},"{digits[place:place + size]}",{split},{names[label]}{end}'
                       for key, place, split, label, end in columns]
            content.update((("," if start else "") + ",".join(entries)).encode("ascii"))
        content.update(b"]}")
        return content.hexdigest()
