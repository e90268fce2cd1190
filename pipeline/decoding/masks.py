"""An image file together with the file of its mask, for encoders that look at both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onceclip.pipeline.errors import BadImage
from onceclip.pipeline.files import packed, unpacked
from onceclip.pipeline.sources.record import Content

MASK = "mask"
_MARK = b"onceclip: an image and its mask\0"
_NO_MASK = "it has no mask, which the encoder looks at: give a manifest with a column mask"


@dataclass(frozen=True)
class WithMask:
    """The content of an image whose source names a mask; its bytes, and so its digest, are those of both files."""

    content: Any

    @property
    def _mask(self) -> Any:
        return getattr(self.content, "mask", None)

    @property
    def reading(self) -> str:
        """As of `Content`; what only this process can read is read by it, mask and all."""
        kinds = [getattr(each, "reading", "disk") for each in (self.content, self._mask)]
        return next((kind for kind in ("process", "network") if kind in kinds), "disk")

    def read(self) -> bytes:
        """The bytes of both files, which `parted` takes apart.

        Raises BadImage if one of them cannot be read, or the source names no mask.
        """
        if self._mask is None:
            raise BadImage(_NO_MASK)
        image = self.content.read()
        try:
            mask = self._mask.read()
        except BadImage as error:
            raise BadImage(f"its mask: {error}") from error.__cause__
        return packed(_MARK, [image, mask])


def as_seen(content: Content, second: str) -> Content:
    """What an encoder reads of an image. second: its second input, MASK, or empty for none."""
    return WithMask(content) if second else content


def parted(content: bytes) -> tuple[bytes, bytes]:
    """The bytes of an image and of its mask. Raises BadImage where they are of one file."""
    try:
        image, mask = unpacked(_MARK, content, 2)
    except ValueError:
        raise BadImage(_NO_MASK) from None
    return image, mask
