"""Where a store may be: a folder, a zip file of one, or behind a URL; whatever fails there becomes one line."""

from __future__ import annotations

import os
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import zarr
import zarr.api.asynchronous
from fsspec.core import strip_protocol
from zarr.core.sync import sync
from zarr.errors import ContainsArrayError, GroupNotFoundError
from zarr.storage import FsspecStore, ZipStore

from onceclip.stores.errors import NotAStore, StoreDamaged, StoreError

PARTIAL = ".partial"  # ending of a file that Zarr was writing when its process was killed
_GROUP = "zarr.json"


def looks_like_store(path: str) -> bool:
    """Whether a path is a Zarr group, a zip file or a URL rather than images; says nothing about its soundness."""
    return is_remote(path) or is_zip(path) or os.path.isfile(os.path.join(local_path(path), _GROUP))


def is_zip(path: str) -> bool:
    """Whether a path is a zip file on this machine."""
    return not is_remote(path) and os.path.isfile(local_path(path)) and zipfile.is_zipfile(local_path(path))


def occupied(path: str) -> bool:
    """Whether anything but an empty folder stands at a path or URL."""
    if is_remote(path):
        return holds_anything(path)
    path = local_path(path)
    if os.path.isdir(path):
        return any(not name.endswith(PARTIAL) for name in os.listdir(path))
    return os.path.lexists(path)


def open_group(path: str, mode: Any = "r") -> zarr.Group:
    """Open the Zarr group at a path or URL, or the one that a zip file holds.

    Raises NotAStore if there is none, StoreError if its storage cannot be reached or it is a zip file that is to be
    written.
    """
    path = str(path)
    try:
        if is_remote(path):
            return open_remote(path, mode)
        if is_zip(path):
            return _open_zip(path, mode)
        return zarr.open_group(local_path(path), mode=mode, zarr_format=3)
    except (FileNotFoundError, NotADirectoryError, GroupNotFoundError, ContainsArrayError) as error:
        raise NotAStore(f"{path} is not a store (no Zarr group there): make one with `onceclip extract FOLDER "
                        f"{path} --model NAME` or give the path of one") from error
    except (ValueError, TypeError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise StoreDamaged(f"{path} has a zarr.json that cannot be read ({error}): the store is damaged; take it from "
                           "a copy, or delete it and extract again") from error


def _open_zip(path: str, mode: Any) -> zarr.Group:
    if mode != "r":
        raise StoreError(f"{path} is a zip file, which can only be read: unzip it, then write to the folder")
    with zipfile.ZipFile(local_path(path)) as file:
        groups = [name for name in file.namelist() if name.rpartition("/")[2] == _GROUP]
    folder = min(groups, key=lambda name: name.count("/"), default="").rpartition("/")[0]
    return zarr.open_group(ZipStore(local_path(path), mode="r"), path=folder, mode="r", zarr_format=3)


@contextmanager
def damage(path: str, where: str = "image") -> Iterator[None]:
    """Turn what Zarr raises for bad bytes into StoreDamaged."""
    try:
        yield
    except StoreError:
        raise
    except (ValueError, TypeError, OSError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise StoreDamaged(f"{path}: {where} cannot be read ({error}): the store is damaged; take it from a copy, or "
                           "delete it and extract again") from error

FIRST_ANSWER = 60.0  # seconds; clients try again for many minutes
_MOST = 200


def is_remote(path: str) -> bool:
    """Whether a path is a URL of something else than this machine's disks."""
    return "://" in path and not _is_file(path)


def local_path(path: str) -> str:
    """The path that a file:// URL means; anything else as it is."""
    return str(strip_protocol(path)) if _is_file(path) else path


def everywhere(path: str) -> str:
    """A path or URL as it is to be told to a process that may have another working directory."""
    return path if is_remote(path) else os.path.abspath(local_path(path))


def _is_file(path: str) -> bool:
    return path.startswith(("file://", "local://"))


def storage(path: str, read_only: bool) -> FsspecStore | str:
    """What Zarr is to open for a path or URL.

    Raises StoreError if nothing that is installed can open the URL.
    """
    if not is_remote(path):
        return local_path(path)
    with answered(path):
        # Listings that the client remembers would hide what other processes write.
        return RemoteStore.from_url(path, {"use_listings_cache": False}, read_only)


def open_remote(path: str, mode: Any) -> zarr.Group:
    """Open the Zarr group at a URL.

    Raises StoreError if no answer comes, and what Zarr raises if there is no sound group.
    """
    found = zarr.api.asynchronous.open_group(store=storage(path, read_only=mode == "r"), mode=mode, zarr_format=3)
    try:
        return zarr.Group(_within(path, found))
    except GroupNotFoundError:
        holds_anything(path)  # says so if it is the bucket that is missing
        raise


def holds_anything(path: str) -> bool:
    """Whether there is any object at a URL or under it.

    Raises StoreError if that cannot be found out, or there is no bucket.
    """
    store = storage(path, read_only=True)
    assert isinstance(store, RemoteStore)
    entries = _within(path, store.entries())
    return any(not entry.endswith("/") or entry.rstrip("/") != store.path.rstrip("/") for entry in entries)


def _within(path: str, answer: Any) -> Any:
    try:
        return sync(answer, timeout=FIRST_ANSWER)
    except TimeoutError as error:
        raise _unreachable(path, f"no answer within {FIRST_ANSWER:.0f} s") from error


@contextmanager
def answered(path: str) -> Iterator[None]:
    """Turn whatever a storage client raises into a StoreError."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # every client has types of its own, most of them without a common base
        raise _explained(path, error) from error


def _explained(path: str, error: Exception) -> StoreError:
    protocol = path.partition("://")[0]
    said = " ".join((str(error) or type(error).__name__).split())[:_MOST]
    if isinstance(error, ImportError):
        remedy = "pip install onceclip[s3]" if protocol in ("s3", "s3a") else said
        return StoreError(f"{path}: the package for {protocol}:// is not installed: {remedy}")
    if "Protocol not known" in said:
        return StoreError(f"{path}: nothing is known of {protocol}:// URLs: give a path, s3://BUCKET/NAME.zarr or "
                          "another URL that fsspec knows")
    if isinstance(error, FileNotFoundError):
        return StoreError(f"{path}: the bucket does not exist ({said}): create it, or correct its name")
    if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
        return StoreError(f"{path}: access was refused ({said}): set the credentials of the storage, for s3:// "
                          "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, and check their rights")
    if isinstance(error, NotImplementedError):
        return StoreError(f"{path}: {protocol}:// URLs can only be read: write to a path or another URL, then copy")
    return _unreachable(path, said)


def _unreachable(path: str, said: str) -> StoreError:
    return StoreError(f"{path}: the storage cannot be used ({said}): check the network and the address, for s3:// "
                      "AWS_ENDPOINT_URL and AWS_REGION, then run the command again")


def _call(method: Any) -> Any:
    @wraps(method)
    async def call(self: RemoteStore, *arguments: Any, **options: Any) -> Any:
        with answered(self.url):
            return await method(self, *arguments, **options)

    return call


def _listing(method: Any) -> Any:
    @wraps(method)
    async def call(self: RemoteStore, *arguments: Any, **options: Any) -> AsyncIterator[str]:
        with answered(self.url):
            async for name in method(self, *arguments, **options):
                yield name

    return call


class RemoteStore(FsspecStore):
    """Zarr's store of objects behind a URL, with failures that say what to do."""

    get = _call(FsspecStore.get)
    get_partial_values = _call(FsspecStore.get_partial_values)
    set = _call(FsspecStore.set)
    delete = _call(FsspecStore.delete)
    delete_dir = _call(FsspecStore.delete_dir)
    exists = _call(FsspecStore.exists)
    getsize = _call(FsspecStore.getsize)
    list = _listing(FsspecStore.list)
    list_dir = _listing(FsspecStore.list_dir)
    list_prefix = _listing(FsspecStore.list_prefix)

    @property
    def url(self) -> str:
        """Where it is."""
        return str(self.fs.unstrip_protocol(self.path))

    async def entries(self) -> Any:
        """Names of what lies directly under the URL, or the object at it; none if there is nothing.

        Raises StoreError if there is no bucket.
        """
        with answered(self.url):
            try:
                return await self.fs._ls(self.path, detail=False)
            except (FileNotFoundError, NotADirectoryError) as error:
                answer = getattr(error.__cause__, "response", None) or {}
                if answer.get("Error", {}).get("Code") == "NoSuchBucket":
                    raise
                return []
