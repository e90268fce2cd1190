"""Files that a source names: on this machine or behind a URL, relative to a folder or not."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.sources.contents import File, LocalFile, RemoteFile, remote_folder, unreachable
from onceclip.stores.identity import encode_key

# Names in manifests, lists and archives are text in which bytes that are not UTF-8 are surrogates, whatever the locale;
# names of local files are as `os` has them.


def is_url(place: str) -> bool:
    """Whether a place is a URL of something else than this machine's disks."""
    return "://" in place and not place.startswith(("file://", "local://"))


def local_place(place: str) -> str:
    """The path that a file:// URL means; anything else as it is."""
    return remote_folder(place)[1] if place.startswith(("file://", "local://")) else place


def parent(place: str) -> str:
    """The folder that a file lies in."""
    if not is_url(place):
        return os.path.dirname(local_place(place)) or os.curdir
    return place.rpartition("/")[0]


def file_at(root: str, name: str) -> File:
    """A file by its name in a folder, its absolute path, or its URL."""
    if is_url(name):
        folder, _, name = name.rpartition("/")
        return RemoteFile(folder, name)
    if is_url(root):
        return RemoteFile(root.rstrip("/"), posixpath.normpath(name.lstrip("/")))
    return LocalFile(os.path.join(local_place(root), local_name(local_place(name))))


def read_place(place: str) -> bytes:
    """The bytes of a file, of any size.

    Raises SourceError if it cannot be read.
    """
    try:
        if not is_url(place):
            return Path(local_place(place)).read_bytes()
        files, path = remote_folder(place)
        return bytes(files.cat_file(path))
    except FileNotFoundError as error:
        raise SourceError(f"{place} does not exist: correct its name") from error
    except OSError as error:
        raise SourceError(f"{place} cannot be read ({error.strerror or error}): give a file that can") from error
    except Exception as error:  # every client has types of its own, most of them without a common base
        raise unreachable(place, error) from error


def text_of(content: bytes) -> str:
    """Text of which every byte can be found again, also those that are not UTF-8."""
    return content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


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
