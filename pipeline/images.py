"""Decoding one image; whatever is wrong with it becomes one reason."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image, UnidentifiedImageError

from onceclip.pipeline.errors import BadImage

_EIGHT_BIT = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}


def decode(content: bytes) -> Image.Image:
    """Decode the bytes of an image file whole.

    Pixels of 16 bits are scaled to 8, which Pillow's own conversion would clip to white.
    Raises BadImage if they are not an image, are cut short, or would need more memory than Pillow allows.
    """
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
        if image.mode.startswith("I;16"):
            return image.convert("I").point([value // 256 for value in range(65536)], "L")
        if image.mode in _EIGHT_BIT:
            return image
    except UnidentifiedImageError as error:
        raise BadImage("not an image, or too damaged to tell which kind") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"too large ({error})") from error
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        raise BadImage(f"damaged ({str(error) or type(error).__name__})") from error
    raise BadImage(f"unsupported pixel format {image.mode}")


def prepare(content: bytes, preprocess: Callable[[Image.Image], Any]) -> Any:
    """Decode the bytes of an image file and hand the picture to an encoder's preprocessing.

    Raises BadImage if either cannot be done.
    """
    image = decode(content)
    try:
        return preprocess(image)
    except Exception as error:  # of shapes that no resize can take, among others
        raise BadImage(f"cannot be prepared for the encoder ({str(error) or type(error).__name__})") from error


@contextmanager
def decoding() -> Iterator[None]:
    """Make Pillow's warning about decompression bombs an error, and its remarks on odd files silent.

    Warning filters belong to the whole process, so this is entered once, around all threads that decode.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\..*")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
