"""Stores behind URLs: fsspec opens them, and whatever its clients raise becomes one line that says how to mend it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import zarr
from fsspec.core import strip_protocol
from zarr.api.asynchronous import open_group
from zarr.core.sync import sync
from zarr.errors import GroupNotFoundError
from zarr.storage import FsspecStore

from onceclip.stores.errors import StoreError

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
    found = open_group(store=storage(path, read_only=mode == "r"), mode=mode, zarr_format=3)
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
