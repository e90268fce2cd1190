"""Images into embeddings: decode processes and encoder threads at work at the same time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from onceclip.pipeline.decoding.batches import Batch
from onceclip.pipeline.decoding.decoders import Decoders
from onceclip.pipeline.decoding.preparation import ON_DEVICE
from onceclip.pipeline.decoding.views import Views
from onceclip.pipeline.encoders.encoder import Encoder
from onceclip.pipeline.sources import Content
from onceclip.pipeline.sources.record import as_seen

EMBEDDING = "embedding"
_THREADS_ON_DEVICE = 2  # one copies while the other computes
_SMALLEST = 8  # images per pass, however few there are
_MARGIN = 3  # batches in memory beside those that the threads have


class EncoderThreads(ThreadPoolExecutor):
    """Threads that run batches through one encoder, whose weights they share.

    On a CPU there is one per core, and torch computes with one thread in each: threads that share one matrix product
    wait for each other, and decoding on the same cores makes them wait long.
    """

    def __init__(self, encoder: Encoder, cores: int = 0) -> None:
        """cores: how many to use on a CPU, 0 for all."""
        self.encoder = encoder
        self.number = (cores or os.cpu_count() or 1) if encoder.device.type == "cpu" else _THREADS_ON_DEVICE
        super().__init__(self.number, "encode")
        self._torch_threads = torch.get_num_threads()

    def __enter__(self) -> Self:
        if self.encoder.device.type == "cpu":
            torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown(cancel_futures=True)
        torch.set_num_threads(self._torch_threads)


@dataclass(frozen=True)
class Encoded:
    """What became of some images.

    rows: their numbers. digests: (images, 16). reasons: why one is bad, else empty. good: places of the others.
    values: each output of the good ones, (good, ...) float32, or (good, views, ...). interrupted: as of `Batch`.
    """

    rows: np.ndarray
    digests: np.ndarray
    reasons: list[str]
    good: np.ndarray
    values: dict[str, np.ndarray]
    interrupted: Sequence[int] = ()


def encode(decoders: Decoders, threads: EncoderThreads, images: Iterable[tuple[int, Content]], count: int,
           batch_size: int = 0, outputs: Sequence[str] = (EMBEDDING,), tokens: str = "last",
           views: Views | None = None) -> Generator[Encoded, None, None]:
    """Read, decode and encode images, in their order.

    images: numbers, which come back, and contents. count: how many. batch_size: images (or views, or frames) per pass,
    0 for what suits the encoder. outputs, tokens: as of `Encoder.encode_images`. views: these instead of the plain
    image.
    """
    encoder, pictures = threads.encoder, views.drawn if views else max(1, threads.encoder.preparation.frames)
    if views:
        encoder.check_views()
    each = max(_SMALLEST, -(-count * pictures // threads.number))  # so that every thread has some
    size = max(1, (batch_size or min(encoder.batch_size, each)) // pictures)

    def one_pass(batch: Batch) -> Encoded:
        good = batch.good
        pixels = batch.pixels if len(good) == len(batch.rows) else batch.pixels[good]
        values = {}
        if len(good):
            values = encoder.encode_images(pixels.reshape(-1, *encoder.preparation.shape), outputs, tokens)
            if views:
                values = {name: given.reshape(len(good), pictures, *given.shape[1:])
                          for name, given in values.items()}
        return Encoded(np.array(batch.rows), batch.digests, batch.reasons, good, values, batch.interrupted)

    under_way: deque[tuple[Batch, Future[Encoded]]] = deque()

    def first() -> Encoded:
        batch, future = under_way.popleft()
        encoded = decoders.wait(future)
        decoders.release(batch)
        return encoded

    with ExitStack() as opened:
        device = None
        if encoder.preparation.decode in ON_DEVICE and views is None:
            from onceclip.pipeline.decoding.on_device import DeviceDecoder

            device = opened.enter_context(DeviceDecoder(encoder.preparation, encoder.device, threads.number))
        seen = ((row, as_seen(content, encoder.preparation.second)) for row, content in images)
        batches = opened.enter_context(closing(decoders.batches(seen, encoder.preparation, size,
                                                                threads.number + _MARGIN, views, device)))
        for batch in batches:
            under_way.append((batch, threads.submit(one_pass, batch)))
            if len(under_way) > threads.number:
                yield first()
        while under_way:
            yield first()
