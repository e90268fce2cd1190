"""How many threads a computation gets, and which matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from onceclip.adapters.products import fast_products

_SMALL = 2**26  # multiply-adds of one pass


@contextmanager
def threads_for(multiply_adds: int) -> Iterator[None]:
    """Give a small computation one thread, and any the fastest exact products.

    Threads that wait for each other at every small product can be many times slower than one, most of all on a
    machine whose other cores are busy.
    """
    fast_products()
    before = torch.get_num_threads()
    if multiply_adds < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
