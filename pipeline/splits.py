"""Splits drawn at extraction where the folders give none: stratified, recorded, and stable when a folder grows."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from onceclip.stores.fingerprint import digest
from onceclip.stores.schema import NO_SPLIT, SPLITS, STORED

SHARES = {"train": 0.5, "val": 0.2, "test": 0.3}
SEED = 1
METHOD = "blake2b of seed and content, largest deficit first"


def draw_splits(label: np.ndarray, split: np.ndarray, state: np.ndarray, content: np.ndarray,
                seed: int = SEED) -> np.ndarray:
    """Give every labelled stored row without a split one, so that each class keeps the shares.

    label, split, state: (rows,). content: (rows, 16) digests; rows of equal content go to one split.
    Rows that have a split keep it. The order within a class is a hash of seed and content, so the draw depends
    neither on paths nor on the order of rows.
    """
    result = split.copy()
    usable = (state == STORED) & (label >= 0)
    known = {bytes(content[row]): result[row] for row in np.flatnonzero(usable & (split != NO_SPLIT))}
    twins: dict[bytes, list[int]] = defaultdict(list)
    for row in np.flatnonzero(usable & (split == NO_SPLIT)):
        twins[bytes(content[row])].append(int(row))
    order = sorted(twins, key=lambda each: digest(b"%d:" % seed + each))
    counts = np.zeros((int(label.max(initial=0)) + 1, len(SPLITS)))
    np.add.at(counts, (label[usable & (split != NO_SPLIT)], result[usable & (split != NO_SPLIT)]), 1)
    shares = np.array([SHARES[name] for name in SPLITS])
    for each in order:
        rows = twins[each]
        of_class = counts[label[rows[0]]]
        chosen = known.get(each, np.argmax(shares * (of_class.sum() + 1) - of_class))
        result[rows] = chosen
        np.add.at(counts, (label[rows], chosen), 1)
    return result
