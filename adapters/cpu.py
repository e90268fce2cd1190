"""How a CPU computes: number of threads, and the fastest exact backend for products of float32 matrices."""

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
_ROWS, _WIDTH = 384, 768  # of the timed product, as in a ViT-B
_MIN_ROUNDS, _MAX_ROUNDS = 4, 24  # of timing; more than the fewest where both are about as fast, as on a busy machine
_SIMILAR = 0.6, 1.5  # ratios of times between which timing goes on
_FASTER = 0.9  # ratio of times that counts as faster, so that noise alone never decides
_MAX_ERROR = 4.0  # times the default's error: another order of summation stays below, bfloat16 is thousands above
_ONE_THREAD = 2**26  # multiply-adds below which one thread computes
_DEFAULT_PRODUCTS = 2**20  # multiply-adds below which calling oneDNN takes longer than it saves
_LOCK = threading.Lock()
_active: list[str] = []  # backends of the `products` blocks that are running
_decided: list[str] = []  # backends that another process chose; the last one counts


def fast_products() -> str:
    """The fastest exact backend for products of float32 matrices on this CPU, by the name that `products` takes.

    torch uses oneDNN's kernels only where lower precision is allowed. On an AMD EPYC (Zen 5) these are about twice as
    fast as the default and as exact; where the hardware has bfloat16 tiles (Intel's AMX) they really round. So both
    are timed and compared with float64, once per process and in some 50 ms, unless `decided` names one.
    Nothing changes on CUDA.
    """
    return _decided[-1] if _decided else _fastest()


@contextmanager
def decided(choice: str) -> Iterator[None]:
    """Have `fast_products` return the backend that another process chose, if it is exact on this CPU.

    Two processes that time for themselves may choose differently, and then their results differ in the last digits.
    """
    _decided.append(ONEDNN if choice == ONEDNN and _exact() else DEFAULT)
    try:
        yield
    finally:
        _decided.pop()


@contextmanager
def products(choice: str) -> Iterator[None]:
    """Multiply float32 matrices on a CPU with one backend, DEFAULT or ONEDNN, and afterwards as before.

    The setting belongs to the process: threads that run at the same time must use the same backend.
    """
    with _LOCK:
        _active.append(choice)
        set_products(choice)
    try:
        yield
    finally:
        with _LOCK:
            _active.remove(choice)
            set_products(_active[-1] if _active else DEFAULT)


@cache
def _fastest() -> str:
    return ONEDNN if _exact() and _faster() else DEFAULT


@cache
def _exact() -> bool:
    """Whether oneDNN's products are as exact as the default's."""
    if not _available():
        return False
    left, right = _factors()
    exact = left.double() @ right.double()
    error = {}
    for name in (DEFAULT, ONEDNN):
        with products(name):
            error[name] = _relative_error(left @ right, exact)
    return error[ONEDNN] <= _MAX_ERROR * error[DEFAULT]


def _faster() -> bool:
    """Whether oneDNN's products take less time than the default's."""
    factors = _factors()
    return _time_ratio((DEFAULT, *factors), (ONEDNN, *factors)) <= _FASTER


@cache
def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32, timed once per process: many lack the instructions."""
    left, right = _factors()
    choice = fast_products()
    return _time_ratio((choice, left, right), (choice, left.bfloat16(), right.bfloat16())) <= _FASTER


def _time_ratio(first: tuple[str, Tensor, Tensor], second: tuple[str, Tensor, Tensor]) -> float:
    """Time of the second product divided by that of the first, each a backend with two factors."""
    seconds = [float("inf")] * 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # else waiting for other threads would be timed too
    try:
        for number in range(_MAX_ROUNDS + 1):
            if number > _MIN_ROUNDS and not _SIMILAR[0] < seconds[1] / seconds[0] < _SIMILAR[1]:
                break
            for place, (choice, left, right) in enumerate((first, second)):
                with products(choice):
                    begun = time.perf_counter()
                    left @ right
                    if number:  # the first call also sets up the kernel
                        seconds[place] = min(seconds[place], time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    return seconds[1] / seconds[0]


@cache
def narrow_dtype(device: str) -> torch.dtype | None:
    """The type in which a search with --narrow multiplies; None, with one warning, where float32 is faster."""
    if device != "cpu" or fast_bfloat16():
        return torch.bfloat16
    logging.getLogger(__name__).warning("narrow: this processor multiplies bfloat16 no faster than float32, so the "
                                        "search stays in float32")
    return None


def _factors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_ROWS, _WIDTH, generator=generator), torch.randn(_WIDTH, _WIDTH, generator=generator)


def _relative_error(product: Tensor, exact: Tensor) -> float:
    return ((product.double() - exact).norm() / exact.norm()).item()


def _available() -> bool:
    """Whether oneDNN can be chosen without changing CUDA: before torch 2.9 one setting served all devices."""
    return torch.backends.mkldnn.is_available() and (_has_own_setting() or not torch.cuda.is_available())


def _has_own_setting() -> bool:
    return hasattr(_setting(), "fp32_precision")


def _setting() -> Any:
    return getattr(torch.backends.mkldnn, "matmul", None)


def set_products(choice: str) -> None:
    """Multiply with one backend from here on, DEFAULT or ONEDNN; `products` also restores the one before."""
    if not _available():
        return
    if _has_own_setting():
        _setting().fp32_precision = "bf16" if choice == ONEDNN else "none"
    else:
        torch.set_float32_matmul_precision("medium" if choice == ONEDNN else "highest")


@contextmanager
def threads_for(multiply_adds: int) -> Iterator[None]:
    """Run a small computation on one thread, and any with the fastest exact products.

    Several threads that wait for each other at every small product can be many times slower than one, most of all on a
    machine whose other cores are busy. multiply_adds: of one pass.
    """
    before = torch.get_num_threads()
    if multiply_adds < _ONE_THREAD:
        torch.set_num_threads(1)
    try:
        with products(DEFAULT if multiply_adds < _DEFAULT_PRODUCTS else fast_products()):
            yield
    finally:
        torch.set_num_threads(before)
