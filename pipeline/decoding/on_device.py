"""Plain JPEGs decoded by torchvision on the encoder's device: nvJPEG on CUDA, libjpeg-turbo on a CPU."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Self

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transform

from onceclip.pipeline.decoding.preparation import JPEG_PIXELS, ON_DEVICE, Jpeg, Preparation
from onceclip.pipeline.errors import EncoderError


class DeviceDecoder:
    """Threads that decode, resize and crop plain JPEGs on a device, until the end of the `with` block.

    The pixels come back as bytes, as the decode processes give them; the encoder normalizes both in the same way.
    """

    def __init__(self, preparation: Preparation, device: torch.device, threads: int) -> None:
        """preparation: one that names the kind of device. device: the encoder's. threads: how many.

        Raises EncoderError if the device is of another kind, or torchvision cannot decode there.
        """
        kind = ON_DEVICE[preparation.decode]
        if kind == "cuda" and device.type != kind:
            raise EncoderError(f"images of this encoder are decoded by torchvision on cuda, and it runs on {device}, "
                               "where their pixels would differ: use --device cuda on a machine that has it")
        self._preparation, self._device = preparation, device if kind == "cuda" else torch.device("cpu")
        check_device(self._device)
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._stream = torch.cuda.Stream(self._device) if kind == "cuda" else None
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        self._opened.enter_context(_without_remarks())
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._opened.close()

    def submit(self, jpegs: list[Jpeg]) -> Future[list[np.ndarray | None]]:
        """Have plain JPEGs decoded: (height, width, 3) uint8 each, None for one that cannot be."""
        return self._pool.submit(self._decoded, jpegs)

    @torch.inference_mode()
    def _decoded(self, jpegs: list[Jpeg]) -> list[np.ndarray | None]:
        with torch.cuda.stream(self._stream):  # nothing on a CPU
            return [found for piece in _pieces(jpegs) for found in self._piece(piece)]

    def _piece(self, jpegs: Sequence[Jpeg]) -> list[np.ndarray | None]:
        """Some JPEGs together; one after the other if that fails, since no more is said than that one is to blame."""
        try:
            images = _decode([jpeg.content for jpeg in jpegs], self._device)
            pixels = torch.stack([self._fitted(image) for image in images]).permute(0, 2, 3, 1).cpu().numpy()
        except RuntimeError:  # of torch, for bytes that it cannot decode and for want of memory
            if len(jpegs) == 1:
                return [None]
            return [found for jpeg in jpegs for found in self._piece([jpeg])]
        return list(pixels)

    def _fitted(self, image: Tensor) -> Tensor:
        """An image (3, any, any) as the encoder wants it: resized, then cropped or padded; see `Preparation`."""
        preparation = self._preparation
        height, width = preparation.size
        wide, high = preparation.resized(image.shape[2], image.shape[1])
        if (high, wide) != tuple(image.shape[1:]):
            image = transform.resize(image, [high, wide], InterpolationMode(preparation.filter), antialias=True)
        across, down = max(width - wide, 0), max(height - high, 0)
        if across or down:
            border = [across // 2, down // 2, (across + 1) // 2, (down + 1) // 2]
            image = transform.pad(image, border, fill=preparation.fill)
        top, left = (preparation.margin(spare) for spare in (image.shape[1] - height, image.shape[2] - width))
        return image[:, top:top + height, left:left + width]


def check_device(device: torch.device) -> None:
    """Raise EncoderError if torchvision cannot decode JPEGs on a device; it is tried with a small one."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "jpeg")
    try:
        with _without_remarks():
            _decode([file.getvalue()] * 2, device)
    except (AttributeError, ImportError, RuntimeError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EncoderError(f"--decode torchvision: torchvision {torchvision.__version__} cannot decode JPEGs on "
                           f"{device} ({reason}): use --decode fast, or another torchvision (0.20 or newer)") from error


def _decode(contents: list[bytes], device: torch.device) -> list[Tensor]:
    """Images (3, height, width) uint8."""
    from torchvision.io import ImageReadMode, decode_jpeg  # torchvision will drop it: an ImportError of `check_device`

    files = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
    return decode_jpeg(files, ImageReadMode.RGB, device=device)


def _pieces(jpegs: Sequence[Jpeg]) -> Iterator[Sequence[Jpeg]]:
    """All of them in order, as many at once as may be in memory decoded."""
    begin = pixels = 0
    for end, jpeg in enumerate(jpegs):
        if end > begin and pixels + jpeg.pixels > JPEG_PIXELS:
            yield jpegs[begin:end]
            begin, pixels = end, 0
        pixels += jpeg.pixels
    yield jpegs[begin:]


def _without_remarks() -> ExitStack:
    """Leave out torchvision's remark that it will hand decoding over to another package."""
    filters = ExitStack()
    filters.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", "The image decoding", DeprecationWarning)
    return filters
