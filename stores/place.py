"""Where a store may be: a folder, a zip file of one, or behind a URL."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zarr
from zarr.errors import ContainsArrayError, GroupNotFoundError
from zarr.storage import ZipStore

from onceclip.stores.errors import NotAStore, StoreDamaged, StoreError
from onceclip.stores.remote import holds_anything, is_remote, local_path, open_remote

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
