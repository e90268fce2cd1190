"""How a CPU computes: number of threads, and the fastest way to multiply float32 matrices that is exact."""

from __future__ import annotations

import logging
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
_decided: list[str] = []  # choices of another process; the last one counts
_ERROR = 4.0  # times the default's error: other orders of summation stay below, bfloat16 is thousands of times above


def fast_products() -> str:
    """The name of the fastest exact way to multiply float32 matrices on this CPU, for `products` and for records.

    torch reaches oneDNN's kernels only where lower precision is allowed. On an AMD EPYC (Zen 5) these are about twice
    as fast as the default and as exact; where the hardware has bfloat16 tiles (Intel's AMX) they really round.
    So both are timed and compared with float64, once per process and in some 50 ms, unless `decided` names one.
    Nothing changes on CUDA.
    """
    return _decided[-1] if _decided else _probed()


@contextmanager
def decided(choice: str) -> Iterator[None]:
    """Have `fast_products` return what another process chose, if it is exact on this CPU.

    Two processes that time for themselves can choose differently, and their results differ in the last digits.
    """
    _decided.append(ONEDNN if choice == ONEDNN and _exact() else DEFAULT)
    try:
        yield
    finally:
        _decided.pop()


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
    return ONEDNN if _exact() and _faster() else DEFAULT


@cache
def _exact() -> bool:
    """Whether oneDNN's products round no more than the default's."""
    if not _available():
        return False
    left, right = _factors()
    exact = left.double() @ right.double()
    error = {}
    for name in (DEFAULT, ONEDNN):
        with products(name):
            error[name] = _distance(left @ right, exact)
    return error[ONEDNN] <= _ERROR * error[DEFAULT]


def _faster() -> bool:
    """Whether oneDNN's products take less time than the default's."""
    factors = _factors()
    return _race((DEFAULT, *factors), (ONEDNN, *factors)) <= _FASTER


@cache
def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32, timed once per process: many have no instructions."""
    left, right = _factors()
    choice = fast_products()
    return _race((choice, left, right), (choice, left.bfloat16(), right.bfloat16())) <= _FASTER


def _race(*ways: tuple[str, Tensor, Tensor]) -> float:
    """Time that the second of two products takes, over that of the first."""
    seconds = [float("inf")] * len(ways)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waiting for other threads would be timed too
    try:
        for number in range(_MOST + 1):
            if number > _ROUNDS and not _ALIKE[0] < seconds[1] / seconds[0] < _ALIKE[1]:
                break
            for place, (choice, left, right) in enumerate(ways):
                with products(choice):
                    begun = time.perf_counter()
                    left @ right
                    if number:  # the first call also prepares
                        seconds[place] = min(seconds[place], time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    return seconds[1] / seconds[0]


@cache
def narrow_dtype(device: str) -> torch.dtype | None:
    """What a search may multiply in where it need not be exact; None, with one remark, where float32 is faster."""
    if device != "cpu" or fast_bfloat16():
        return torch.bfloat16
    logging.getLogger(__name__).warning("narrow: this processor multiplies bfloat16 no faster than float32, so the "
                                        "search stays in float32")
    return None


def _factors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_ROWS, _WIDTH, generator=generator), torch.randn(_WIDTH, _WIDTH, generator=generator)


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
