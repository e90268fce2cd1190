"""Image files to the pixels that the exported model takes, as `onceclip predict` makes them; NumPy and Pillow alone.

`pixels(["a.jpg", "b.png"])` gives float32 RGB (images, 3, height, width) from 0 to 1. `onceclip export --with-encoder`
wrote this file; it may be copied and changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

HOW: dict[str, Any] = {"size": [224, 224], "interpolation": "bicubic", "resize_mode": "shortest", "fill": 0,
                       "exif": False, "style": "open_clip"}


def pixels(files: Sequence[str | BinaryIO]) -> np.ndarray:
    """The pixels of image files: float32 (images, 3, height, width) from 0 to 1."""
    return np.stack([prepare(file) for file in files])


def prepare(file: str | BinaryIO) -> np.ndarray:
    """The pixels of one image file: resized, cropped or padded, then made RGB: float32 (3, height, width)."""
    with Image.open(file) as opened:
        opened.load()
        image: Image.Image = opened
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
            image = image.convert("I").point([value // 256 for value in range(65536)], "L")  # Pillow clips to white
        if HOW["style"] == "transformers":
            image = image.convert("RGB")
        if HOW["exif"] and opened.getexif().get(0x0112, 1) != 1:
            image = ImageOps.exif_transpose(image)
        image = _sized(image)
        return np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) / 255


def _sized(image: Image.Image) -> Image.Image:
    height, width = HOW["size"]
    wide, high = _resized(image.width, image.height)
    oblong = HOW["resize_mode"] == "shortest" and height != width
    if (wide, high) != image.size:
        name = "BICUBIC" if oblong else HOW["interpolation"].upper()
        image = image.resize((wide, high), getattr(Image.Resampling, name))
    if wide < width or high < height:
        across, down = max(width - wide, 0), max(height - high, 0)
        palette, bands = image.getpalette(), len(image.getbands())
        fill = HOW["fill"] if bands == 1 else (HOW["fill"],) * bands
        image = ImageOps.expand(image, (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2), fill)
        if image.mode == "P" and palette is not None:
            image.putpalette(palette)
    left, top = _margin(image.width - width), _margin(image.height - height)
    return image.crop((left, top, left + width, top + height))


def _resized(wide: int, high: int) -> tuple[int, int]:
    """Width and height before cropping or padding."""
    height, width = HOW["size"]
    if HOW["resize_mode"] == "squash":
        return width, height
    if HOW["resize_mode"] == "shortest" and height == width:
        longer = int(height * max(wide, high) / min(wide, high))
        return (height, longer) if wide <= high else (longer, height)
    ratio = (max if HOW["resize_mode"] == "longest" else min)(high / height, wide / width)
    return round(wide / ratio), round(high / ratio)


def _margin(spare: int) -> int:
    return spare // 2 if HOW["style"] == "transformers" else round(spare / 2)
