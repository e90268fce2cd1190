"""How many threads a computation gets, and which matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from onceclip.adapters.products import DEFAULT, fast_products, products

_SMALL = 2**26  # multiply-adds of one pass
_TINY = 2**20  # below which the faster products are slower to begin


@contextmanager
def threads_for(multiply_adds: int) -> Iterator[None]:
    """Give a small computation one thread, and any the fastest exact products.

    Threads that wait for each other at every small product can be many times slower than one, most of all on a
    machine whose other cores are busy.
    """
    before = torch.get_num_threads()
    if multiply_adds < _SMALL:
        torch.set_num_threads(1)
    try:
        with products(DEFAULT if multiply_adds < _TINY else fast_products()):
            yield
    finally:
        torch.set_num_threads(before)
