"""The columns that say what every row of a store is, and the identity of their content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from onceclip.stores.content import content_of


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

    def parts(self, *names: str, size: int) -> Iterator[tuple[np.ndarray, ...]]:
        """Go through some columns, `size` rows of each at a time."""
        for start in range(0, len(self), size):
            yield tuple(getattr(self, name)[start:start + size] for name in names)

    def fingerprint(self, encoder: str, classes: Sequence[str]) -> str:
        """Identity of the content: key, digest, split, class and, if there are any, group of every stored row.

        encoder: fingerprint of what made the embeddings.
        """
        return content_of(self.parts, len(self), encoder, classes).fingerprint
