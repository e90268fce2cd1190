"""A folder of class folders on this machine."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.sources.record import LocalFile, Record, natural_order
from onceclip.stores.keys import encode_key

SUFFIXES = frozenset([
    ".apng", ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm",
    ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
])
SPLIT_FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
                 "test": "test", "testing": "test"}


def list_images(root: Path) -> list[Record]:
    """List the images of a folder, `CLASS/...` or `SPLIT/CLASS/...`, in natural order of their keys.

    Hidden files and folders are passed over; links are followed, each folder once.
    Raises SourceError if the folder does not exist, is empty or has no images.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise SourceError(f"{root} {what}: give a folder with one sub-folder of images per class")
    found = sorted(_walk(root), key=natural_order)
    if not found:
        others = sum(len(files) for _, _, files in os.walk(root))
        what = (f"has no images ({others} other files; images end in {', '.join(sorted(SUFFIXES))})" if others
                else "is empty")
        raise SourceError(f"{root} {what}: give a folder with one sub-folder of images per class")
    parts = [name.split(os.sep) for name in found]
    tops = {path[0].lower() for path in parts if len(path) > 1}
    split_folders = bool(tops) and tops <= set(SPLIT_FOLDERS)
    records = []
    for name, path in zip(found, parts, strict=True):
        split = SPLIT_FOLDERS[path[0].lower()] if split_folders and len(path) > 1 else None
        folders = path[1:-1] if split_folders else path[:-1]
        label = encode_key(folders[0]) if folders else None
        records.append(Record(encode_key(name), LocalFile(root / name), label, split))
    return records


def _walk(root: Path) -> Iterator[str]:
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
            folders[:] = sorted(name for name in folders if not _hidden(name))
            waiting.extend(path for name in folders if os.path.islink(path := os.path.join(folder, name)))
            relative = os.path.relpath(folder, root)
            for name in files:
                if not _hidden(name) and os.path.splitext(name)[1].lower() in SUFFIXES:
                    yield name if relative == os.curdir else os.path.join(relative, name)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
