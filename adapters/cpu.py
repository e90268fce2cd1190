"""How a CPU computes: number of threads, and the fastest way to multiply float32 matrices that is exact."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

DEFAULT, ONEDNN = "default", "onednn"
_ROWS, _WIDTH = 384, 768  # a product as in a ViT-B
_ROUNDS, _MOST = 4, 24  # more than the fewest where both ways look alike, as on a busy machine, which must not decide
_ALIKE = 0.6, 1.5  # of the default's time
_FASTER = 0.9  # of the default's time, so that noise alone never decides
_LOCK = threading.Lock()
_entered: list[str] = []  # the ways that blocks of code are in at the moment
_ERROR = 4.0  # times the default's error: other orders of summation stay below, bfloat16 is thousands of times above


def fast_products() -> str:
    """The name of the fastest exact way to multiply float32 matrices on this CPU, for `products` and for records.

    torch reaches oneDNN's kernels only where lower precision is allowed. On AMD these are about twice as fast as the
    default (MKL takes its AVX2 kernels there) and as exact; where the hardware has bfloat16 tiles they really round.
    So both are timed and compared with float64, once per process and in some 50 ms. Nothing changes on CUDA.
    """
    return _probed()


@contextmanager
def products(choice: str) -> Iterator[None]:
    """Multiply float32 matrices on a CPU in one way, DEFAULT or ONEDNN, and afterwards as before.

    The switch is the process's: threads that run at the same time have to take the same way.
    """
    with _LOCK:
        _entered.append(choice)
        set_products(choice)
    try:
        yield
    finally:
        with _LOCK:
            _entered.remove(choice)
            set_products(_entered[-1] if _entered else DEFAULT)


@cache
def _probed() -> str:
    if not _available():
        return DEFAULT
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waiting for other threads would be timed too
    try:
        return _choose()
    finally:
        set_products(DEFAULT)
        torch.set_num_threads(threads)


def _choose() -> str:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(rows, _WIDTH, generator=generator) for rows in (_ROWS, _WIDTH))
    exact = left.double() @ right.double()
    seconds = {DEFAULT: float("inf"), ONEDNN: float("inf")}
    error = dict.fromkeys(seconds, 0.0)
    for number in range(_MOST + 1):
        if number > _ROUNDS and not _ALIKE[0] < seconds[ONEDNN] / seconds[DEFAULT] < _ALIKE[1]:
            break
        for name in seconds:
            set_products(name)
            begun = time.perf_counter()
            product = left @ right
            if number:  # the first call also prepares
                seconds[name] = min(seconds[name], time.perf_counter() - begun)
            error[name] = _distance(product, exact)
    good = error[ONEDNN] <= _ERROR * error[DEFAULT] and seconds[ONEDNN] <= _FASTER * seconds[DEFAULT]
    return ONEDNN if good else DEFAULT


def _distance(product: Tensor, exact: Tensor) -> float:
    return ((product.double() - exact).norm() / exact.norm()).item()


def _available() -> bool:
    """Whether the switch exists and leaves CUDA alone: before torch 2.9 one switch served all devices."""
    return torch.backends.mkldnn.is_available() and (_own_switch() or not torch.cuda.is_available())


def _own_switch() -> bool:
    return hasattr(_switch(), "fp32_precision")


def _switch() -> Any:
    return getattr(torch.backends.mkldnn, "matmul", None)


def set_products(choice: str) -> None:
    """Multiply in one way from here on, DEFAULT or ONEDNN, exact or not; `products` is the way back, too."""
    if not _available():
        return
    if _own_switch():
        _switch().fp32_precision = "bf16" if choice == ONEDNN else "none"
    else:
        torch.set_float32_matmul_precision("medium" if choice == ONEDNN else "highest")


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
