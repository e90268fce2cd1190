"""Paths and URLs: which is which, where a store may be, and what to say when the storage behind a URL fails."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from onceclip.errors import OnceclipError, one_line
from onceclip.stores.errors import StoreError

PARTIAL = ".partial"  # ending of a file that was being written when its process was killed
_GROUP = "zarr.json"
_LARGEST = 8 << 30  # bytes of all files of a local copy
_EXTRAS = {"s3": "s3", "s3a": "s3", "hf": "hf"}  # of onceclip, that install what opens URLs of a protocol
_FILE_URLS = ("file://", "local://")


def is_url(path: str) -> bool:
    """Whether a path is a URL of something else than this machine's disks."""
    return "://" in path and not path.startswith(_FILE_URLS)


def local_path(path: str) -> str:
    """The path that a file:// URL means; anything else as it is."""
    return remote_folder(path)[1] if path.startswith(_FILE_URLS) else path


def everywhere(path: str) -> str:
    """A path or URL as it is to be told to a process that may have another working directory."""
    return path if is_url(path) else os.path.abspath(local_path(path))


@lru_cache(maxsize=64)
def remote_folder(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    from fsspec.core import url_to_fs

    # Listings that the client remembers would hide what others write.
    files, path = url_to_fs(url, use_listings_cache=False)
    return files, str(path)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is written under a random name beside it and renamed when it is whole; after a failure there is none.

    Of several processes that write one file, the last one's file stays. A link at `path` is replaced, not followed.

    path: the folders that it lies in are made where they are missing.
    Raises OSError with the name of the file, also where writing fails in the middle of it.
    """
    part = path.with_name(f"{path.name}.{os.urandom(8).hex()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:  # x: a new file, never one that another process or a stranger's link put there
            yield file
        part.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, str(part)):
            error.filename, error.filename2 = str(path), None
        with suppress(OSError):
            part.unlink()
        raise


def looks_like_store(path: str) -> bool:
    """Whether a path is a Zarr group, a zip file or a URL rather than images; says nothing about its soundness."""
    return is_url(path) or is_zip(path) or os.path.isfile(os.path.join(local_path(path), _GROUP))


def is_zip(path: str) -> bool:
    """Whether a path is a zip file on this machine."""
    return not is_url(path) and os.path.isfile(local_path(path)) and zipfile.is_zipfile(local_path(path))


def require_writable(path: str) -> None:
    """Raise StoreError for a URL at which a store cannot grow file by file, and for a place within a store."""
    if path.startswith("hf://"):
        raise StoreError(f"{path}: every file would be a commit there: write the store to this machine, then publish "
                         f"it with `onceclip compact STORE {path}`")
    if not is_url(path):
        require_outside(Path(local_path(path)))


def require_outside(path: Path) -> None:
    """Raise StoreError for a path within a store, whose folder is for its own files."""
    for folder in Path(os.path.abspath(path)).parents:
        attributes: Any = None
        with suppress(OSError, ValueError, AttributeError):  # a Zarr group of other making is no store
            attributes = json.loads((folder / _GROUP).read_bytes()).get("attributes")
        if isinstance(attributes, dict) and "onceclip" in attributes:
            raise StoreError(f"{path} lies within the store {folder}: give a path outside of it")


@contextmanager
def as_store_error(path: str) -> Iterator[None]:
    """Turn whatever a storage client raises into a StoreError."""
    try:
        yield
    except OnceclipError:
        raise
    except Exception as error:  # every client has types of its own, most of them without a common base
        raise StoreError(reason_of(path, error)) from error


def reason_of(path: str, error: Exception) -> str:
    """What to say when the storage behind a URL fails: what, where, and how to mend it."""
    protocol = path.partition("://")[0]
    said = one_line(error)
    if isinstance(error, ImportError):
        remedy = f"pip install 'onceclip[{_EXTRAS[protocol]}]'" if protocol in _EXTRAS else said
        return f"{path}: the package for {protocol}:// is not installed: {remedy}"
    if "Protocol not known" in said:
        return (f"{path}: nothing is known of {protocol}:// URLs: give a path, s3://BUCKET/NAME or another URL that "
                "fsspec knows")
    if isinstance(error, FileNotFoundError):
        what = ("the repository does not exist, or is not yours to read" if protocol == "hf" else
                "the bucket does not exist")
        return f"{path}: {what} ({said}): create it, or correct its name"
    answer = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, PermissionError) or "Credential" in type(error).__name__ or answer in (401, 403):
        return (f"{path}: access was refused ({said}): set the credentials of the storage, for s3:// AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, for hf:// HF_TOKEN, and check their rights")
    if isinstance(error, NotImplementedError):
        return f"{path}: {protocol}:// URLs can only be read: write to a path or another URL, then copy"
    settings = {"s3": ", AWS_ENDPOINT_URL and AWS_REGION", "hf": ", and HF_ENDPOINT if you set it"}
    return (f"{path}: the storage cannot be used ({said}): check the network and the address"
            f"{settings.get(protocol, '')}, then run the command again")


@contextmanager
def local_copy(place: str | os.PathLike[str]) -> Iterator[Path]:
    """The folder at a path; of the URL of one a copy while the context lasts, which messages call by the URL.

    Raises StoreError if there is nothing at the URL, its storage does not answer, or it is no small folder.
    """
    url = os.fspath(place)
    if not is_url(url):
        yield Path(local_path(url))
        return
    with TemporaryDirectory(prefix="onceclip-") as folder:
        copy = Path(folder, PurePosixPath(url).name)
        copy.mkdir()
        with as_store_error(url):
            _fetch(url, copy)
        try:
            yield copy
        except OnceclipError as error:
            raise type(error)(str(error).replace(os.fspath(copy), url)) from error


def _fetch(url: str, copy: Path) -> None:
    files, base = remote_folder(url)
    files.invalidate_cache()  # what the client of this process saw before may have been replaced
    found = files.find(base, detail=True)
    if not found or sum(each["size"] or 0 for each in found.values()) > _LARGEST:
        raise StoreError(f"{url} {'is too large for' if found else 'does not exist, or is no folder of'} an adapter or "
                         "results: correct its name")
    for name in found:
        inner = PurePosixPath(name.removeprefix(base.rstrip("/") + "/"))
        if inner.is_absolute() or ".." in inner.parts:
            raise StoreError(f"{url} has a file {name!r}, which leads out of it: remove that")
        (copy / inner).parent.mkdir(parents=True, exist_ok=True)
        files.get_file(name, os.fspath(copy / inner))
