"""One record per image, whatever the source."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from onceclip.pipeline.errors import BadImage, SourceError
from onceclip.pipeline.files import packed, unpacked

MASK = "mask"
_MARK = b"onceclip: an image and its mask\0"
_NO_MASK = "it has no mask, which the encoder looks at: give a manifest with a column mask"


class Content(Protocol):
    """Where the bytes of one image come from; a small value that can be sent to another process.

    It may have an attribute `boxes`, parts of the image (x0, y0, x1, y1) in pixels that are wanted as views, and an
    attribute `reading`: "network" if it is worth reading many at once, "process" if other processes
    cannot read it or would have to load much for it; else it is read, one by one, where it is decoded.
    """

    def read(self) -> bytes:
        """The bytes of an image file.

        Raises BadImage if there are none.
        """


@dataclass(frozen=True)
class Record:
    """One image of a source.

    key: as stored, mostly the path relative to the root. content: its bytes. label: class name, or None.
    split: "train", "val" or "test" where the source says so. group: what it belongs to (a video, a patient): images
    of one group never stand in two splits; empty for none.
    """

    key: str
    content: Content
    label: str | None = None
    split: str | None = None
    group: str = ""


@dataclass(frozen=True)
class Listing:
    """The images of a source, in the order of their rows, and what a user should know of them."""

    records: list[Record]
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SourceOptions:
    """How to list a source.

    root: folder or URL that the paths of a manifest or list are relative to; that of a torchvision data set.
    every, frames: every n-th frame of a video, or n frames of it. download: whether torchvision may fetch a data set.
    clip: frames of a video that an encoder takes as one row; 0 for rows of images. unlabelled: whether classes are left
    out. columns: those of a table of images by role, such as ("label", "species").
    """

    root: str | None = None
    every: int | None = None
    frames: int | None = None
    download: bool = False
    unlabelled: bool = False
    columns: tuple[tuple[str, str], ...] = ()
    clip: int = 0

    def __post_init__(self) -> None:
        if self.every and self.frames:
            raise SourceError("--every and --frames are two ways to choose the frames of a video: give one of them")


class Source:
    """A kind of place that images come from; a class without state, named in `SOURCES`.

    name: what messages call it. takes: names of the `SourceOptions` that say something to it.
    """

    name: ClassVar[str]
    takes: ClassVar[frozenset[str]] = frozenset()

    @staticmethod
    def recognises(text: str) -> bool:
        """Whether a text, as users give it, is a source of this kind."""
        raise NotImplementedError

    @staticmethod
    def list(text: str, options: SourceOptions) -> Listing:
        """List its images, in the order of their rows.

        Raises SourceError if that cannot be done.
        """
        raise NotImplementedError


def natural_order(name: str) -> tuple[str, str]:
    """Sorting key that puts folder 2 before folder 10; names of equal numbers, such as 1 and 01, have an order too."""
    return re.sub("[0-9]+", _number, name), name


def _number(found: re.Match[str]) -> str:
    digits = found.group().lstrip("0")
    return f"\0{len(digits):08x}{digits}"  # before any letter, and the longer the greater


def class_names(records: Iterable[Record]) -> list[str]:
    """Names of all classes, in natural order: folder 2 comes before folder 10."""
    return sorted({record.label for record in records if record.label is not None}, key=natural_order)


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
