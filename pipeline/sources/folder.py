"""A folder of class folders, on this machine or behind a URL."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from onceclip.pipeline.errors import NoImages, SourceError
from onceclip.pipeline.files import (
    IMAGES,
    VIDEOS,
    LocalFile,
    RemoteFile,
    is_url,
    key_of,
    local_place,
    remote_folder,
    suffix,
    unreachable,
)
from onceclip.pipeline.sources.record import Content, Listing, Record, SourceOptions, natural_order
from onceclip.stores.identity import encode_key

USES = frozenset({"every", "frames"})
SPLIT_FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
                 "test": "test", "testing": "test"}
_MEND = "give a folder with one sub-folder of images per class"


def recognises(text: str) -> bool:
    """Whether a source is a folder that is there."""
    return not is_url(text) and os.path.isdir(local_place(text))


def list_source(text: str, options: SourceOptions) -> Listing:
    """List the images and videos of a folder, `CLASS/...` or `SPLIT/CLASS/...`, in natural order of their keys.

    Raises SourceError if the folder does not exist, is empty or has no images.
    """
    return Listing(_remote(text) if is_url(text) else _local(Path(local_place(text)), IMAGES | VIDEOS))


def list_images(root: Path) -> list[Record]:
    """List the images of a folder on this machine; otherwise as `list_source`."""
    return _local(root, IMAGES)


def by_folders(names: Sequence[str], content: Callable[[str], Content], key: Callable[[str], str]) -> list[Record]:
    """Records of files whose class and split are their folders.

    names: paths relative to the root, with slashes. content, key: of a name.
    """
    parts = [name.split("/") for name in names]
    tops = {path[0].lower() for path in parts if len(path) > 1}
    split_folders = bool(tops) and tops <= set(SPLIT_FOLDERS)
    records = []
    for name, path in zip(names, parts, strict=True):
        split = SPLIT_FOLDERS[path[0].lower()] if split_folders and len(path) > 1 else None
        folders = path[1:-1] if split_folders else path[:-1]
        label = key(folders[0]) if folders and folders[0] else None  # S3 has names with two slashes in a row
        records.append(Record(key(name), content(name), label, split))
    return records


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over."""
    return name.startswith(".") or name == "__MACOSX"


def _local(root: Path, suffixes: frozenset[str]) -> list[Record]:
    """Links are followed, each folder once."""
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise SourceError(f"{root} {what}: {_MEND}, or another source (onceclip extract --help lists them)")
    found = sorted(_walk(root, suffixes), key=natural_order)
    if not found:
        _refuse_empty(str(root), [name for _, _, files in os.walk(root) for name in files])
    place = os.fspath(root)
    return by_folders([name.replace(os.sep, "/") for name in found],
                      lambda name: LocalFile(os.path.join(place, name)), encode_key)


def _walk(root: Path, suffixes: frozenset[str]) -> Iterator[str]:
    """Paths of image files relative to the root. Links to folders come after all folders, each folder once."""
    seen = set()
    waiting = deque([os.fspath(root)])

    def refuse(error: OSError) -> None:
        raise SourceError(f"{error.filename} cannot be read ({error.strerror}): allow reading it, or move it out of "
                          f"{root}")

    while waiting:
        for folder, folders, files in os.walk(waiting.popleft(), onerror=refuse):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not hidden(name))
            waiting.extend(path for name in folders if os.path.islink(path := os.path.join(folder, name)))
            relative = os.path.relpath(folder, root)
            for name in files:
                if suffix(name) in suffixes and not hidden(name):
                    yield name if relative == os.curdir else os.path.join(relative, name)


def _remote(url: str) -> list[Record]:
    try:
        files, base = remote_folder(url.rstrip("/"))
        base = base.rstrip("/")
        everything = files.find(base)
        if not everything:
            files.ls(base)  # says so if it is the bucket that is missing
    except FileNotFoundError as error:
        raise SourceError(f"{url} does not exist: {_MEND}") from error
    except Exception as error:  # every client has types of its own, most of them without a common base
        raise unreachable(url, error) from error
    if everything == [base]:
        raise SourceError(f"{url} is a file, not a folder: {_MEND}, or another source (onceclip extract --help lists "
                          "them)")
    names = [name[len(base) + 1:] for name in everything]
    found = sorted((name for name in names if suffix(name) in IMAGES | VIDEOS
                    and not any(map(hidden, name.split("/")))), key=natural_order)
    if not found:
        _refuse_empty(url, names)
    root = url.rstrip("/")
    return by_folders(found, lambda name: RemoteFile(root, name), key_of)


def _refuse_empty(place: str, names: list[str]) -> None:
    if not names:
        raise NoImages(f"{place} is empty: {_MEND}")
    what = f"has no images ({len(names)} other files; images end in {', '.join(sorted(IMAGES))})"
    if any(suffix(name) == ".tar" for name in names):
        raise SourceError(f"{place} {what}: give its archives as '{place.rstrip('/')}/*.tar'")
    raise NoImages(f"{place} {what}: {_MEND}")
