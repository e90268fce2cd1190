"""Images into embeddings: decode processes and encoding lanes at work at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np

from onceclip.pipeline.batches import Batch
from onceclip.pipeline.decoders import Decoders
from onceclip.pipeline.lanes import Lanes
from onceclip.pipeline.preparation import ON_DEVICE
from onceclip.pipeline.profile import Samples
from onceclip.pipeline.sources import Content
from onceclip.pipeline.views import Views

EMBEDDING = "embedding"
_SMALLEST = 8  # images per pass, however few there are
_MARGIN = 3  # batches in memory beside those that the lanes have


@dataclass(frozen=True)
class Encoded:
    """What became of some images.

    rows: their numbers. digests: (images, 16). reasons: why one is bad, else empty. good: places of the others.
    values: each output of the good ones, (good, ...) float32, or (good, views, ...).
    """

    rows: np.ndarray
    digests: np.ndarray
    reasons: list[str]
    good: np.ndarray
    values: dict[str, np.ndarray]


def encode(decoders: Decoders, lanes: Lanes, images: Iterable[tuple[int, Content]], count: int, batch_size: int = 0,
           outputs: Sequence[str] = (EMBEDDING,), tokens: str = "last", views: Views | None = None,
           samples: Samples | None = None) -> Generator[Encoded, None, None]:
    """Read, decode and encode images, in their order.

    images: numbers, which come back, and contents. count: how many. batch_size: images (or views) per pass, 0 for what
    suits the encoder. outputs, tokens: as of `Encoder.encode_images`. views: these instead of the plain image.
    """
    encoder, pictures = lanes.encoder, views.drawn if views else 1
    each = max(_SMALLEST, -(-count * pictures // lanes.number))  # so that every lane has some
    size = max(1, (batch_size or min(encoder.batch_size, each)) // pictures)

    def one_pass(batch: Batch) -> Encoded:
        good = batch.good
        pixels = batch.pixels if len(good) == len(batch.rows) else batch.pixels[good]
        values = {}
        if len(good):
            flat = pixels.reshape(-1, *encoder.preparation.shape)
            if samples:
                samples.add(flat, outputs, tokens)
            values = encoder.encode_images(flat, outputs, tokens)
            if views:
                values = {name: given.reshape(len(good), pictures, *given.shape[1:])
                          for name, given in values.items()}
        return Encoded(np.array(batch.rows), batch.digests, batch.reasons, good, values)

    under_way: deque[tuple[Batch, Future[Encoded]]] = deque()

    def first() -> Encoded:
        batch, future = under_way.popleft()
        encoded = decoders.wait(future)
        decoders.release(batch)
        return encoded

    with ExitStack() as opened:
        device = None
        if encoder.preparation.decode in ON_DEVICE and views is None:
            from onceclip.pipeline.device_decoder import DeviceDecoder

            device = opened.enter_context(DeviceDecoder(encoder.preparation, encoder.device, lanes.number))
        batches = opened.enter_context(closing(decoders.batches(images, encoder.preparation, size,
                                                                lanes.number + _MARGIN, views, device)))
        for batch in batches:
            under_way.append((batch, lanes.submit(one_pass, batch)))
            if len(under_way) > lanes.number:
                yield first()
        while under_way:
            yield first()
