"""Where the bytes of images are; light to import and to send, since other processes read them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np

from onceclip.pipeline.errors import BadImage, SourceError

_AHEAD = 4 << 20  # bytes fetched at once where a file is read in passing


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this machine's disks, or `size` bytes of it from `start` on."""

    path: str | os.PathLike[str]
    start: int = 0
    size: int | None = None

    def read(self) -> bytes:
        """The bytes of the file.

        Raises BadImage if it cannot be read, is not a regular file, or is empty.
        """
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                raise BadImage("not a regular file")
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
    """A file under the URL of a folder, or `size` bytes of it from `start` on."""

    root: str
    name: str
    start: int = 0
    size: int | None = None

    @property
    def reading(self) -> str:
        """Where it is worth reading."""
        return "process" if self.root.startswith("memory:") else "network"

    def read(self) -> bytes:
        """The bytes of the file.

        Raises BadImage if it is not there or is empty, SourceError if its storage does not answer.
        """
        try:
            files, path = self._place()
            part = {} if self.size is None else {"start": self.start, "end": self.start + self.size}
            return _whole(files.cat_file(path, **part), self.size)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise BadImage(f"cannot be read ({error.strerror or error})") from error
        except BadImage:
            raise
        except Exception as error:  # every client has types of its own, most of them without a common base
            raise unreachable(f"{self.root}/{self.name}", error) from error

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
    """An image that is an array already: uint8, (height, width) or (height, width, 3)."""

    values: np.ndarray

    def read(self) -> bytes:
        """The image as a PNM file, which holds the pixels as they are."""
        return pnm(self.values)


def pnm(values: np.ndarray) -> bytes:
    """A PNM file of some pixels: uint8, (height, width) or (height, width, 3)."""
    kind = b"P6" if values.ndim == 3 else b"P5"
    height, width = values.shape[:2]
    return b"%b %d %d 255\n" % (kind, width, height) + np.ascontiguousarray(values, np.uint8).tobytes()


@lru_cache(maxsize=64)
def remote_folder(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    from fsspec.core import url_to_fs

    # Listings that the client remembers would hide what others write.
    files, path = url_to_fs(url, use_listings_cache=False)
    return files, str(path)


def unreachable(url: str, error: Exception) -> SourceError:
    """What to say when the storage of a URL fails."""
    said = " ".join((str(error) or type(error).__name__).split())[:200]
    protocol = url.partition("://")[0]
    if isinstance(error, ImportError):
        remedy = "pip install onceclip[s3]" if protocol in ("s3", "s3a") else said
        return SourceError(f"{url}: the package for {protocol}:// is not installed: {remedy}")
    if "Protocol not known" in said:
        return SourceError(f"{url}: nothing is known of {protocol}:// URLs: give a path, s3://BUCKET/FOLDER or another "
                           "URL that fsspec knows")
    return SourceError(f"{url}: the storage cannot be read ({said}): check the address, the network and the "
                       "credentials (docs/remote.md), then run the command again")


def _whole(content: bytes, size: int | None) -> bytes:
    if size is not None and len(content) < size:
        raise BadImage("cut short")
    if not content:
        raise BadImage("empty file")
    return content
