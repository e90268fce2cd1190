"""Folders behind URLs, such as saved adapters and results, that are read from a copy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from onceclip.errors import OnceclipError
from onceclip.stores.errors import StoreError
from onceclip.stores.location import answered, is_remote, local_path

_LARGEST = 8 << 30  # bytes of all files together


@contextmanager
def local_copy(place: str | os.PathLike[str]) -> Iterator[Path]:
    """The folder at a path; of the URL of one a copy while the context lasts, which messages call by the URL.

    Raises StoreError if there is nothing at the URL, its storage does not answer, or it is no small folder.
    """
    url = os.fspath(place)
    if not is_remote(url):
        yield Path(local_path(url))
        return
    with TemporaryDirectory(prefix="onceclip-") as folder:
        copy = Path(folder, PurePosixPath(url).name)
        copy.mkdir()
        with answered(url):
            _fetch(url, copy)
        try:
            yield copy
        except OnceclipError as error:
            raise type(error)(str(error).replace(os.fspath(copy), url)) from error


def _fetch(url: str, copy: Path) -> None:
    from fsspec.core import url_to_fs

    files, base = url_to_fs(url, use_listings_cache=False)
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
