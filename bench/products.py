"""The most that the machine multiplies in a second: the bound of all training."""

from __future__ import annotations

import time

import torch

from onceclip.adapters.cpu import threads_for

WIDTH = 1024


def peak(dtype: torch.dtype, rounds: int = 20) -> float:
    """Multiply-adds per second of one thread in a square product, with the fastest exact way for float32."""
    left, right = (torch.randn(WIDTH, WIDTH).to(dtype) for _ in range(2))
    best = float("inf")
    with threads_for(WIDTH**3):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for _ in range(rounds):
            begun = time.perf_counter()
            left @ right
            best = min(best, time.perf_counter() - begun)
        torch.set_num_threads(threads)
    return WIDTH**3 / best


def step_work(name: str, rows: int, dim: int, classes: int, keys: int) -> int:
    """Multiply-adds of the products of one step, forward and backward.

    linear: two products with the weights. clip-adapter: five with the quarter-width layers and two with the text.
    tip-adapter-f: two with the keys and one with the text.
    """
    return rows * dim * {"linear": 2 * classes, "clip-adapter": 5 * dim // 4 + 2 * classes,
                         "tip-adapter-f": 2 * keys + classes}[name]
