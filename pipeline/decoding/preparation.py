"""How an encoder wants its images: the bytes of a file into pixels, by Pillow alone."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from onceclip.errors import one_line
from onceclip.pipeline.errors import BadImage
from onceclip.pipeline.files import eight_bit, import_name
from onceclip.pipeline.sources.record import parted
from onceclip.pipeline.sources.videos import frames_in

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZE_MODES = ("shortest", "longest", "squash")
DECODES = ("exact", "fast", "torchvision")
ON_DEVICE = {"torchvision-cpu": "cpu", "torchvision-cuda": "cuda"}  # "torchvision", with its kind
REDUCED = 2  # `fast` decodes a JPEG no smaller than this many times its size after resizing
# Never Pillow's own choice: it has formats that start other programs, such as Ghostscript for PostScript.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "HEIF", "ICO", "PCX", "SGI",
            "QOI", "PSD", "TGA")
_PNG_TEXT_BYTES = 2**26  # of text and color profiles, which nobody looks at; Pillow's own limit calls a PNG damaged
EIGHT_BIT = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
_BY_BAND = {"L", "RGB", "RGBX", "CMYK", "YCbCr"}  # resized as they are, each band by itself
_ORIENTATION = 0x0112
_END = b"\xff\xd9"  # of a whole JPEG
_JPEG_BYTES = 2**24
JPEG_PIXELS = 2**25  # of those that a device decodes together


@dataclass(frozen=True)
class Preparation:
    """The values that decide an encoder's pixels; small, and the same in every process.

    size: (height, width) in pixels. interpolation: "bicubic" or "bilinear". resize_mode: "shortest" (and crop),
    "longest" (and pad with `fill`) or "squash". mean, std: of the three channels, applied by the encoder.
    decode: "exact" gives the pixels of open_clip's own transform bit for bit; "fast" decodes JPEGs at reduced size
    and resizes no more than is kept; for those of ON_DEVICE a `DeviceDecoder` does what `jpeg` gives, and the rest is
    exact. exif: whether the camera's orientation is applied.
    custom: "module:function" of a preprocessing of its own, from a Pillow image to floats (3, height, width).
    second: "mask" where that takes the image and its mask, and gives floats (channels, height, width); else empty.
    frames: of a video that the encoder takes as one input, (frames, ...) pixels; 0 where it takes images.
    style: "open_clip", or "transformers", which makes images RGB before they are resized and rounds margins down.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill: int = 0
    decode: str = "exact"
    exif: bool = False
    custom: str | None = None
    style: str = "open_clip"
    second: str = ""
    channels: int = 3
    frames: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the pixels of one image, or of the frames of one video."""
        image = (self.channels, *self.size) if self.custom else (*self.size, 3)
        return (self.frames, *image) if self.frames else image

    @property
    def together(self) -> str:
        """What the encoder looks at together, in words, where that is more than an image file; else empty."""
        if self.frames:
            return f"{self.frames} frames of every video"
        return "a mask of every image" if self.second else ""

    @property
    def dtype(self) -> np.dtype:
        """Of pixels: uint8, or float32 from a preprocessing of its own, which normalizes by itself."""
        return np.dtype(np.float32 if self.custom else np.uint8)

    def pixels(self, content: bytes) -> np.ndarray:
        """The pixels of an image file: uint8 (height, width, 3), or float32 (3, height, width) from `custom`.

        Raises BadImage if the bytes are not an image, are cut short, or cannot be brought to size.
        """
        if self.frames:
            return np.stack([self.plain(self.open(frame)) for frame in frames_in(content, self.frames)])
        if not self.second:
            return self.plain(self.open(content))
        image, mask = parted(content)
        opened = self.open(image)
        try:
            shown = self.open(mask)
        except BadImage as error:
            raise BadImage(f"its mask: {error}") from error
        if opened.size != shown.size:
            raise BadImage(f"its mask has {' x '.join(map(str, shown.size))} pixels, and the image "
                           f"{' x '.join(map(str, opened.size))}")
        return self.plain(opened, shown.image)

    def open(self, content: bytes, whole: bool = False) -> Opened:
        """Decode the bytes of an image file.

        whole: at full size also where `decode` is "fast", as crops of it need it.
        Pixels of 16 bits are scaled to 8, which Pillow's own conversion would clip to white.
        A TIFF is turned by Pillow itself, as its tag says, also without `exif`.
        Raises BadImage if they are not an image, are cut short, or would need more memory than Pillow allows.
        """
        try:
            image: Image.Image = Image.open(io.BytesIO(content), formats=_formats())
            size = image.size
            if self.decode == "fast" and not whole and not self.custom:
                turned = self.exif and _orientation(image) >= 5
                least = tuple(REDUCED * side for side in self.resized(*(size[::-1] if turned else size)))
                image.draft(None, least[::-1] if turned else least)  # type: ignore[arg-type]
            image.load()
            if self.exif and _orientation(image) >= 5:  # asked only now: Pillow turns a TIFF when it is loaded
                size = size[::-1]
            image = eight_bit(image)
            if image.mode in EIGHT_BIT:
                if self.style == "transformers":
                    image = image.convert("RGB")
                turned = self.exif and _orientation(image) != 1
                return Opened(ImageOps.exif_transpose(image) if turned else image, size)
        except UnidentifiedImageError as error:
            raise BadImage("not an image, or too damaged to tell which kind") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise BadImage(f"too large ({error})") from error
        except MemoryError:  # of the machine's, so it says nothing of the image
            raise
        except Exception as error:  # Pillow's decoders raise many types for damaged files
            raise BadImage(f"damaged ({one_line(error)})") from error
        raise BadImage(f"unsupported pixel format {image.mode}")

    def jpeg(self, content: bytes) -> Jpeg | None:
        """A file that every decoder of JPEGs can be trusted with; None for any other, of which `open` says what it is.

        It is whole and baseline, grey or by its own words YCbCr, upright where that is asked for, and not too large.
        """
        if self.frames:
            return None
        try:
            image = Image.open(io.BytesIO(content), formats=("JPEG",))
            transform = image.info.get("adobe_transform", 1 if {"jfif", "exif"} & image.info.keys() else None)
            known = image.mode == "L" or (image.mode == "RGB" and transform == 1)
            if image.format != "JPEG" or not known or "progressive" in image.info:
                return None
            pixels = max(math.prod(image.size), math.prod(self.resized(*image.size)))
        except Exception:  # whatever it is, `open` meets it again
            return None
        upright = not self.exif or _orientation(image) == 1
        fits = len(content) <= _JPEG_BYTES and pixels <= JPEG_PIXELS
        return Jpeg(content, pixels) if upright and fits and content.endswith(_END) else None

    def plain(self, opened: Opened, *others: Image.Image) -> np.ndarray:
        """The pixels of a decoded image, as of `pixels`. others: its mask, where that is looked at.

        Raises BadImage if it cannot be brought to size.
        """
        try:
            return self.array(opened.image if self.custom else self._fitted(opened), *others)
        except Exception as error:  # of shapes that no resize can take, among others
            raise BadImage(f"cannot be prepared for the encoder ({one_line(error)})") from error

    def array(self, image: Image.Image, *others: Image.Image) -> np.ndarray:
        """The pixels of an image that has the right size already, or that `custom` will bring to it."""
        if not self.custom:
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
        values = np.asarray(_function(self.custom)(image, *others), self.dtype)
        if values.shape != (self.channels, *self.size):
            raise ValueError(f"{self.custom} gave an array of shape {values.shape}, not {(self.channels, *self.size)}")
        return values

    def _fitted(self, opened: Opened) -> Image.Image:
        """Resized, then cropped or padded, in the image's own mode (in the style of open_clip) or in RGB."""
        image, filter = opened.image, FILTERS[self.filter]
        height, width = self.size
        wide, high = self.resized(*opened.size)
        left, top = self.margin(wide - width), self.margin(high - height)
        if self.decode == "fast" and wide >= width and high >= height:
            across, down = image.width / wide, image.height / high
            box = (left * across, top * down, min((left + width) * across, image.width),
                   min((top + height) * down, image.height))
            return image.resize((width, height), filter, box)
        if (wide, high) != image.size:
            if left > 0 and image.mode in _BY_BAND:
                # Pillow resizes across, rounds to bytes, then down: what the crop drops need not be resized down.
                image = image.resize((wide, image.height), filter).crop((left, 0, left + width, image.height))
                left, wide = 0, width
            image = image.resize((wide, high), filter)
        if wide < width or high < height:
            image = _padded(image, width, height, self.fill)
            left, top = self.margin(image.width - width), self.margin(image.height - height)
        if image.size == (width, height):
            return image
        return image.crop((left, top, left + width, top + height))

    def margin(self, spare: int) -> int:
        """What a crop leaves on the left or above, of what it leaves altogether."""
        return spare // 2 if self.style == "transformers" else round(spare / 2)

    @property
    def filter(self) -> str:
        """How images are resized: to sizes that are not square open_clip uses bicubic, whatever is asked for."""
        oblong = self.resize_mode == "shortest" and self.size[0] != self.size[1]
        return "bicubic" if oblong else self.interpolation

    def resized(self, wide: int, high: int) -> tuple[int, int]:
        """Width and height after resizing, before cropping or padding, with open_clip's and torchvision's rounding."""
        height, width = self.size
        if self.resize_mode == "squash":
            return width, height
        if self.resize_mode == "shortest" and height == width:
            side = int(height * max(wide, high) / min(wide, high))
            return (height, side) if wide <= high else (side, height)
        ratio = (max if self.resize_mode == "longest" else min)(high / height, wide / width)
        return round(wide / ratio), round(high / ratio)


@dataclass(frozen=True)
class Opened:
    """A decoded image, and the (width, height) that the file has at full size, upright if that was asked for."""

    image: Image.Image
    size: tuple[int, int]


@dataclass(frozen=True)
class Jpeg:
    """The bytes of a plain JPEG. pixels: how many it has, decoded or resized, whichever is more."""

    content: bytes
    pixels: int


_function = cache(import_name)


@cache
def _formats() -> tuple[str, ...]:
    """Those of _FORMATS that this Pillow can read, with pillow-heif where that is installed."""
    Image.init()
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF says nothing; the picture may be whole
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _padded(image: Image.Image, width: int, height: int, fill: int) -> Image.Image:
    """At least width x height, with borders of `fill` in every channel; the larger half is on the right and below."""
    across, down = max(width - image.width, 0), max(height - image.height, 0)
    border = (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2)
    bands = len(image.getbands())
    padded = ImageOps.expand(image, border, fill if bands == 1 else (fill,) * bands)
    if image.mode == "P":
        palette = image.getpalette()
        assert palette is not None
        padded.putpalette(palette)
    return padded


@contextmanager
def decoding() -> Iterator[None]:
    """Make Pillow's warning about decompression bombs an error, and its remarks on odd files silent.

    Warning filters and limits belong to the whole process, so this is entered once, around all threads that decode.
    """
    limit = PngImagePlugin.MAX_TEXT_CHUNK
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\..*")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        PngImagePlugin.MAX_TEXT_CHUNK = _PNG_TEXT_BYTES
        try:
            yield
        finally:
            PngImagePlugin.MAX_TEXT_CHUNK = limit
