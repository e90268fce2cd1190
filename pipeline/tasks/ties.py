"""Which images are the same picture as others, or of their group: what is known of one is known of all."""

from __future__ import annotations

import numpy as np

from onceclip.stores import Store
from onceclip.stores.identity import DIGEST_BYTES


def tied(store: Store, rows: np.ndarray) -> set[bytes | str]:
    """Digests and groups of some rows."""
    return {*_digests(store, rows), *store.column("group")[rows].tolist()} - {bytes(DIGEST_BYTES), ""}


def ties_of(store: Store, rows: np.ndarray, known: set[bytes | str]) -> tuple[np.ndarray, np.ndarray]:
    """Which rows have a known digest, and which of the others a known group: two of (n,) bool."""
    duplicate = np.fromiter((each in known for each in _digests(store, rows)), bool, len(rows))
    same_group = np.fromiter((each in known for each in store.column("group")[rows].tolist()), bool, len(rows))
    return duplicate, same_group & ~duplicate


def _digests(store: Store, rows: np.ndarray) -> list[bytes]:
    return store.column("digest")[rows].view(f"V{DIGEST_BYTES}").ravel().tolist()
