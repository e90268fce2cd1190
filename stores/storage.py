"""What Zarr reads and writes a store with: a folder, a zip file of one, or a URL; every failure becomes one line."""

from __future__ import annotations

import asyncio
import os
import zipfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from threading import Lock
from typing import Any

import zarr
import zarr.api.asynchronous
from zarr.core.buffer import Buffer
from zarr.core.sync import sync
from zarr.errors import ContainsArrayError, GroupNotFoundError
from zarr.storage import FsspecStore, LocalStore, ZipStore

from onceclip.errors import one_line
from onceclip.stores.errors import NotAStore, StoreDamaged, StoreError
from onceclip.stores.location import PARTIAL, as_store_error, is_url, is_zip, local_path, reason_of, whole_file

FIRST_ANSWER = 60.0  # seconds; clients try again for many minutes
_TO_STOP = 60.0  # seconds that a client has to end what it was doing, which takes long on a busy machine
_AT_ONCE = 8  # folders that the disk is asked to keep


def occupied(path: str) -> bool:
    """Whether anything but an empty folder stands at a path or URL.

    Raises StoreError if that cannot be found out, or there is no bucket.
    """
    if is_url(path):
        store = storage(path, read_only=True)
        assert isinstance(store, RemoteStore)
        entries = _first_answer(path, store.entries())
        return any(not entry.endswith("/") or entry.rstrip("/") != store.path.rstrip("/") for entry in entries)
    path = local_path(path)
    if os.path.isdir(path):
        return any(not name.endswith(PARTIAL) for name in os.listdir(path))
    return os.path.lexists(path)


def storage(path: str, read_only: bool) -> FsspecStore | LocalStore:
    """What Zarr is to open for a path or URL.

    Raises StoreError if nothing that is installed can open the URL.
    """
    _require_assertions(path)
    if not is_url(path):
        place = os.path.abspath(local_path(path))  # the process may change its working directory
        return LocalStore(place, read_only=True) if read_only else DiskStore(place)
    with as_store_error(path):
        # Listings that the client remembers would hide what other processes write.
        return RemoteStore.from_url(path, {"use_listings_cache": False}, read_only)


def open_group(path: str, mode: Any = "r") -> zarr.Group:
    """Open the Zarr group at a path or URL, or the one that a zip file holds.

    Raises NotAStore if there is none, StoreError if its storage cannot be reached or it is a zip file that is to be
    written.
    """
    path = str(path)
    try:
        if is_zip(path):
            return _open_zip(path, mode)
        if not is_url(path):
            if not os.path.isdir(local_path(path)):
                raise NotADirectoryError
            return zarr.open_group(storage(path, mode == "r"), mode=mode, zarr_format=3)
        found = zarr.api.asynchronous.open_group(store=storage(path, mode == "r"), mode=mode, zarr_format=3)
        return zarr.Group(_first_answer(path, found))
    except (FileNotFoundError, NotADirectoryError, GroupNotFoundError, ContainsArrayError) as error:
        if is_url(path):
            occupied(path)  # says so if it is the bucket that is missing
        taken = not (is_url(path) or path.endswith(".zarr")) and os.path.isdir(local_path(path)) and occupied(path)
        made = f"{path} {path.rstrip('/')}.zarr" if taken else f"FOLDER {path}"
        raise NotAStore(f"{path} is not a store (no Zarr group there): make one with `onceclip extract {made} --model "
                        "NAME` or give the path of one") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, zipfile.BadZipFile) as error:
        raise StoreDamaged(f"{path} has a zarr.json that cannot be read ({error}): the store is damaged; take it from "
                           "a copy, or delete it and extract again") from error


def _require_assertions(path: str) -> None:
    """Raise StoreError where Python leaves out assertions, as Zarr then takes whole groups for damaged ones."""
    if not __debug__:
        raise StoreError(f"{path} cannot be used by a Python that leaves out assertions, which Zarr needs: start it "
                         "without -O and without PYTHONOPTIMIZE")


def _open_zip(path: str, mode: Any) -> zarr.Group:
    _require_assertions(path)
    if mode != "r":
        raise StoreError(f"{path} is a zip file, which can only be read: unzip it, then write to the folder")
    with zipfile.ZipFile(local_path(path)) as file:
        groups = [name for name in file.namelist() if name.rpartition("/")[2] == "zarr.json"]
    folder = min(groups, key=lambda name: name.count("/"), default="").rpartition("/")[0]
    return zarr.open_group(ZipStore(os.path.abspath(local_path(path)), mode="r"), path=folder, mode="r", zarr_format=3)


@contextmanager
def damage(path: str, where: str = "image") -> Iterator[None]:
    """Turn what Zarr raises for bad bytes into StoreDamaged."""
    try:
        yield
    except StoreError:
        raise
    except MemoryError as error:
        raise StoreError(f"{path}: {where} takes more memory than there is ({error}): give the process more") from error
    except (ValueError, TypeError, OSError, LookupError, AttributeError, ArithmeticError, RuntimeError,
            zipfile.BadZipFile) as error:
        raise StoreDamaged(f"{path}: {where} cannot be read ({one_line(error)}): the store is damaged; take it from a "
                           "copy, or delete it and extract again") from error


class DiskStore(LocalStore):
    """Zarr's store in a folder, for writing: a file has its name only once its bytes are on the disk.

    `flush` has the names reach the disk too, so that what is written after it never outlives what was written before,
    even if the power fails.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._folders: set[Path] = set()
        self._lock = Lock()

    async def set(self, key: str, value: Buffer) -> None:
        """Write one file whole."""
        self._check_writable()
        await asyncio.to_thread(self._write, Path(self.root, key), value)

    def _write(self, path: Path, value: Buffer) -> None:
        new = [folder.parent for folder in path.parents if not folder.exists()]
        with whole_file(path) as file:
            file.write(value.as_buffer_like())
            file.flush()
            os.fsync(file.fileno())
        with self._lock:
            self._folders.update((path.parent, *new))

    def flush(self) -> None:
        """Have the names of all files that were written since the last call reach the disk."""
        with self._lock, ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(_sync_folder, self._folders))
            self._folders.clear()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_answer(path: str, answer: Any) -> Any:
    """What a client answers, which is to be told off if it takes too long."""
    try:
        # `sync` alone would leave the task behind, which then complains when the process ends.
        return sync(asyncio.wait_for(answer, FIRST_ANSWER), timeout=FIRST_ANSWER + _TO_STOP)
    except TimeoutError as error:
        raise StoreError(reason_of(path, OSError(f"no answer within {FIRST_ANSWER:.0f} s"))) from error


class RemoteStore(FsspecStore):
    """Zarr's store of objects behind a URL, whose failures say what to do."""

    async def entries(self) -> Any:
        """Names of what lies directly under the URL, or the object at it; none if there is nothing.

        Raises StoreError if there is no bucket.
        """
        url = str(self.fs.unstrip_protocol(self.path))
        with as_store_error(url):
            try:
                return await self.fs._ls(self.path, detail=False)
            except (FileNotFoundError, NotADirectoryError) as error:
                answer = getattr(error.__cause__, "response", None)
                code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
                if code == "NoSuchBucket" or type(error.__cause__).__name__ == "RepositoryNotFoundError":
                    raise
                return []


def _method_with_errors(method: Any) -> Any:
    @wraps(method)
    async def call(self: RemoteStore, *arguments: Any, **options: Any) -> Any:
        with as_store_error(str(self.fs.unstrip_protocol(self.path))):
            return await method(self, *arguments, **options)

    return call


def _generator_with_errors(method: Any) -> Any:
    @wraps(method)
    async def call(self: RemoteStore, *arguments: Any, **options: Any) -> AsyncIterator[str]:
        with as_store_error(str(self.fs.unstrip_protocol(self.path))):
            async for name in method(self, *arguments, **options):
                yield name

    return call


for _name in ("get", "get_partial_values", "set", "delete", "delete_dir", "exists", "getsize"):
    setattr(RemoteStore, _name, _method_with_errors(getattr(FsspecStore, _name)))
for _name in ("list", "list_dir", "list_prefix"):
    setattr(RemoteStore, _name, _generator_with_errors(getattr(FsspecStore, _name)))
