"""Several passes through one encoder at a time, each in a thread of its own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import torch

from onceclip.pipeline.encoders import Encoder

_ON_DEVICE = 2  # one copies while the other computes


class Lanes:
    """Threads that encode.

    On a CPU there is one per core, and torch has one thread for each: threads of one product wait for each other, and
    decoding on the same cores makes them wait long. They share the encoder's weights.
    """

    def __init__(self, encoder: Encoder, cores: int = 0) -> None:
        """cores: that it may use on a CPU, 0 for all."""
        self.encoder = encoder
        self.number = (cores or os.cpu_count() or 1) if encoder.device.type == "cpu" else _ON_DEVICE
        self.seconds = 0.0  # of all lanes together
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(self.number, "encode")
        self._threads_before = torch.get_num_threads()

    def __enter__(self) -> Self:
        if self.encoder.device.type == "cpu":
            torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads_before)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call a function in the next lane that is free."""
        return self._pool.submit(self._timed, function, *arguments)

    def _timed(self, function: Callable[..., Any], *arguments: Any) -> Any:
        begun = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            with self._lock:
                self.seconds += time.perf_counter() - begun
