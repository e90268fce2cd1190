"""Orders of a stream: a seed each, and what the strategies that read streams reach in them."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import torch

from onceclip.pipeline.errors import TaskError

DEFAULT = (1, 2, 3)
_MOST = 1000


def parse_orders(text: str) -> tuple[int, ...]:
    """The seeds that a list such as "1-5" or "1,4,9" names.

    Raises TaskError for what is none, or names a seed twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,9})(?:\s*-\s*([0-9]{1,9}))?\s*", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not first <= last < first + _MOST:
            raise TaskError(f"no orders {text!r}: give seeds of permutations, such as 1-5 or 1,4,9")
        seeds += range(first, last + 1)
    if len({*seeds}) < len(seeds):
        raise TaskError(f"the orders {text!r} name a seed twice: give each once")
    return tuple(seeds)


def permutation(seed: int, rows: int) -> np.ndarray:
    """The order of a seed, by torch's generator on a CPU: (rows,) int64."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).numpy()


def order_hash(order: np.ndarray) -> str:
    """SHA-256 of a permutation, as little-endian int64."""
    return hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()
