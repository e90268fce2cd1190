"""Where the time of an extraction goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onceclip.pipeline.lanes import Lanes

_SECONDS = 3.0  # for measuring the encoder alone


@dataclass(frozen=True)
class Profile:
    """Seconds of an extraction, and its rates in images per second.

    read, decode, transform: of all decode processes together. encode: of all lanes. write: of the background writer.
    They run at the same time, so they do not add up to `wall`. rate: of the whole. encoder_rate: of the encoder alone,
    on the run's own batches, right after it.
    """

    images: int
    wall: float
    read: float
    decode: float
    transform: float
    encode: float
    write: float
    processes: int
    lanes: int
    rate: float
    encoder_rate: float

    def as_values(self) -> dict[str, Any]:
        """As JSON values, with the share of the encoder's own rate that was reached."""
        return {**asdict(self), "share": self.rate / self.encoder_rate if self.encoder_rate else None}


class Samples:
    """The first passes through the encoder, kept for measuring it alone."""

    def __init__(self, number: int) -> None:
        """number: of passes to keep, one per lane."""
        self._number, self._lock = number, threading.Lock()
        self._passes: list[tuple[np.ndarray, Sequence[str], str]] = []

    def add(self, pixels: np.ndarray, outputs: Sequence[str], tokens: str) -> None:
        """Keep the arguments of `Encoder.encode_images`, if there are too few yet."""
        with self._lock:
            if len(self._passes) < self._number:
                self._passes.append((pixels.copy(), outputs, tokens))

    def rate(self, lanes: Lanes) -> float:
        """Images per second of the encoder alone, on what was kept; 0 if that is nothing."""
        images, begun = 0, time.perf_counter()
        while self._passes and time.perf_counter() - begun < _SECONDS:
            for future in [lanes.submit(lanes.encoder.encode_images, *each) for each in self._passes]:
                future.result()
            images += sum(len(pixels) for pixels, _, _ in self._passes)
        return images / (time.perf_counter() - begun)
