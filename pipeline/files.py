"""Files by their names: on a disk or behind a URL, as text, JSON or images, and what a user named as code."""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from onceclip.errors import OnceclipError, one_line
from onceclip.pipeline.errors import BadImage, SourceError
from onceclip.stores.identity import encode_key
from onceclip.stores.location import is_url, local_path, reason_of, remote_folder, whole_file

if TYPE_CHECKING:
    from PIL import Image

RESULTS = "results.jsonl"  # rows of runs, in a results folder and beside an adapter
IMAGES = frozenset([
    ".apng", ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm",
    ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
])
VIDEOS = frozenset([
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv",
])
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the image, from its upper left corner
LARGEST_IMAGE = 2**30  # bytes: more than any image has that Pillow's limit of pixels lets through
_AHEAD = 4 << 20  # bytes fetched at once where a file is read in passing
_LENGTH = 8  # bytes that say how long a packed file is
_DEPTH = 64  # lists in lists of what `read_json` takes; results have four


def suffix(name: str) -> str:
    """The ending of a name from its last dot on, in lower case."""
    return os.path.splitext(name)[1].lower()


# Names in manifests, lists and archives are text in which bytes that are not UTF-8 are surrogates, whatever the locale;
# names of local files are as `os` has them.


def parent(place: str) -> str:
    """The folder that a file lies in."""
    if not is_url(place):
        return os.path.dirname(local_path(place)) or os.curdir
    return place.rpartition("/")[0]


def file_by_path(place: str) -> File:
    """A file by its path, as `os` has it, or its URL."""
    if not is_url(place):
        return LocalFile(place)
    folder, _, name = place.rpartition("/")
    return RemoteFile(folder, name)


def file_at(root: str, name: str) -> File:
    """A file by its name in a folder, its absolute path, or its URL."""
    if is_url(name):
        return file_by_path(name)
    if is_url(root):
        return RemoteFile(root.rstrip("/"), posixpath.normpath(name.lstrip("/")))
    return LocalFile(os.path.join(local_path(root), local_name(local_path(name))))


@contextmanager
def as_source_error(place: str) -> Iterator[None]:
    """Turn what reading a path or URL raises into a SourceError."""
    try:
        yield
    except OnceclipError:
        raise
    except FileNotFoundError as error:
        raise SourceError(f"{place} does not exist: correct its name") from error
    except Exception as error:  # every client has types of its own, most of them without a common base
        if is_url(place) and not isinstance(error, IsADirectoryError):
            raise SourceError(reason_of(place, error)) from error
        said = getattr(error, "strerror", None) or one_line(error)
        raise SourceError(f"{place} cannot be read ({said}): give a file that can") from error


def read_place(place: str) -> bytes:
    """The bytes of a file, of any size.

    Raises SourceError if it cannot be read.
    """
    with as_source_error(place):
        if not is_url(place):
            return Path(local_path(place)).read_bytes()
        files, path = remote_folder(place)
        return bytes(files.cat_file(path))


def read_text(place: str) -> str:
    """The text of a file, of any size; see `text_of`.

    Raises SourceError if it cannot be read, or is in UTF-16.
    """
    content = read_place(place)
    if content.startswith(("\ufeff".encode("utf-16-le"), "\ufeff".encode("utf-16-be"))):
        raise SourceError(f"{place} is text in UTF-16, such as Excel's \"Unicode text\": save it as UTF-8")
    return text_of(content)


def text_of(content: bytes) -> str:
    """Text of which every byte can be found again, also those that are not UTF-8."""
    return content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def is_utf8(text: str) -> bool:
    """Whether what `text_of` gave, or a part of it, has no other bytes than UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def read_json(text: str) -> Any:
    """The values of a JSON text.

    Raises ValueError if it is none, names a key twice, of which one would be lost, or is nested so deeply that Python
    gives up at it.
    """
    try:
        values = json.loads(text, object_pairs_hook=no_key_twice)
    except RecursionError:
        raise ValueError(f"more than {_DEPTH} lists or objects in each other") from None
    level = [values]
    for _ in range(_DEPTH):
        level = [inner for each in level if isinstance(each, dict | list)
                 for inner in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return values
    raise ValueError(f"more than {_DEPTH} lists or objects in each other")


def no_key_twice(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of pairs.

    Raises ValueError where a key is there twice, of which one would be lost.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is named twice")
    return values


@contextmanager
def csv_file(path: Path) -> Iterator[Any]:
    """The writer of a CSV file, which has its name when it is whole; see `whole_file`."""
    with whole_file(path) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        yield csv.writer(text)


def local_name(text: str) -> str:
    """A name from a text, as `os` takes it.

    Raises UnicodeEncodeError if it cannot be the name of a file.
    """
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def key_of(text: str) -> str:
    """The key of a name from a text.

    Raises UnicodeEncodeError if it cannot be the name of a file.
    """
    return encode_key(local_name(text))


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this machine's disks, or `size` bytes of it from `start` on.

    boxes: parts of the image that its source gives, for views of them. mask: the file of its mask, where it names one.
    """

    path: str | os.PathLike[str]
    start: int = 0
    size: int | None = None
    boxes: tuple[Box, ...] = ()
    mask: File | None = None

    def read(self) -> bytes:
        """The bytes of the file.

        Raises BadImage if it cannot be read, is not a regular file, is empty, or has more than LARGEST_IMAGE bytes.
        """
        try:
            found = os.stat(self.path)
            if not stat.S_ISREG(found.st_mode):
                raise BadImage("not a regular file")
            _check_size(found.st_size if self.size is None else self.size)
            with self.stream() as file:
                file.seek(self.start)
                content = file.read(-1 if self.size is None else self.size)
        except OSError as error:
            raise BadImage(f"cannot be read ({error.strerror or error})") from error
        return _whole(content, self.size)

    def stream(self) -> BinaryIO:
        """The file, opened."""
        return open(self.path, "rb")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file under the URL of a folder, or `size` bytes of it from `start` on. boxes, mask: as of `LocalFile`."""

    root: str
    name: str
    start: int = 0
    size: int | None = None
    boxes: tuple[Box, ...] = ()
    mask: File | None = None

    @property
    def reading(self) -> str:
        """Where it is worth reading."""
        return "process" if self.root.startswith("memory:") else "network"

    def read(self) -> bytes:
        """The bytes of the file; no more of one that is too large than show that it is.

        Raises BadImage if it is not there, is empty, or has more than LARGEST_IMAGE bytes, SourceError if its storage
        does not answer.
        """
        try:
            files, path = self._place()
            size = LARGEST_IMAGE + 1 if self.size is None else self.size
            _check_size(self.size or 0)
            content = self._bytes(files, path, size)
            _check_size(len(content))
            return _whole(content, self.size)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise BadImage(f"cannot be read ({error.strerror or error})") from error
        except BadImage:
            raise
        except Exception as error:  # every client has types of its own, most of them without a common base
            raise SourceError(reason_of(f"{self.root}/{self.name}", error)) from error

    def _bytes(self, files: Any, path: str, size: int) -> bytes:
        try:
            return bytes(files.cat_file(path, start=self.start, end=self.start + size))
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            raise
        except Exception as error:
            # Of an empty file some storages have no part, not even one from its beginning.
            if self.size is None and "range" in str(error).lower() and files.size(path) == 0:
                return b""
            raise

    def stream(self) -> BinaryIO:
        """The file, opened."""
        files, path = self._place()
        return files.open(path, "rb", block_size=_AHEAD)

    def _place(self) -> tuple[Any, str]:
        files, base = remote_folder(self.root)
        return files, f"{base.rstrip('/')}/{self.name}"


File = LocalFile | RemoteFile


@dataclass(frozen=True, eq=False, slots=True)
class Pixels:
    """An image that is an array already: uint8, (height, width) or (height, width, 3).

    Raises SourceError for any other array.
    """

    values: np.ndarray

    def __post_init__(self) -> None:
        if self.values.dtype != np.uint8 or (self.values.ndim != 2 and self.values.shape[2:] != (3,)):
            raise SourceError(f"an image is an array of shape {self.values.shape} and type {self.values.dtype}: give "
                              "numbers from 0 to 255 as uint8, (height, width) or (height, width, 3)")

    def read(self) -> bytes:
        """The image as a PNM file, which holds the pixels as they are."""
        return pnm(self.values)


def eight_bit(image: Image.Image) -> Image.Image:
    """The same image; of one of 16 bits the upper 8, which Pillow's own conversion would clip to white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        return image.convert("I").point([value // 256 for value in range(65536)], "L")
    return image


def pnm(values: np.ndarray) -> bytes:
    """A PNM file of some pixels: uint8, (height, width) or (height, width, 3)."""
    kind = b"P6" if values.ndim == 3 else b"P5"
    height, width = values.shape[:2]
    return b"%b %d %d 255\n" % (kind, width, height) + np.ascontiguousarray(values, np.uint8).tobytes()


def packed(mark: bytes, parts: Sequence[bytes]) -> bytes:
    """Several files as one content: a mark of its kind, then each file, all but the last behind their lengths."""
    return mark + b"".join(len(part).to_bytes(_LENGTH, "little") + part for part in parts[:-1]) + parts[-1]


def unpacked(mark: bytes, content: bytes, number: int) -> list[bytes]:
    """The files, so many, of what `packed` gave. Raises ValueError for what has another mark."""
    if not content.startswith(mark):
        raise ValueError("another kind of content")
    parts, begin = list[bytes](), len(mark)
    for _ in range(number - 1):
        begin += _LENGTH
        end = begin + int.from_bytes(content[begin - _LENGTH:begin], "little")
        parts.append(content[begin:end])
        begin = end
    return [*parts, content[begin:]]


def _check_size(size: int) -> None:
    if size > LARGEST_IMAGE:
        raise BadImage(f"too large ({size:,} bytes; an image may have {LARGEST_IMAGE:,})")


def _whole(content: bytes, size: int | None) -> bytes:
    if size is not None and len(content) < size:
        raise BadImage("cut short")
    if not content:
        raise BadImage("empty file")
    return content


def import_name(name: str) -> Any:
    """What a user named as `module:name`, from the working directory or among what is installed."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as for `python -m`: the user's file lies where they work
    return resolve_name(name)
