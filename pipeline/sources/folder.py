"""A folder of class folders, on this machine or behind a URL."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from onceclip.pipeline.errors import NoImages, SourceError
from onceclip.pipeline.files import (
    IMAGES,
    VIDEOS,
    File,
    LocalFile,
    RemoteFile,
    as_source_error,
    is_url,
    key_of,
    local_path,
    remote_folder,
    suffix,
)
from onceclip.pipeline.sources.record import Listing, Record, Source, SourceOptions, natural_order
from onceclip.pipeline.words import counted, listing
from onceclip.stores.identity import encode_key

SPLIT_FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
                 "test": "test", "testing": "test"}
_MEND = "give a folder with one sub-folder of images per class"


class Folder(Source):
    """A folder of class folders or its URL."""

    name = "folder"
    takes = frozenset({"every", "frames"})

    @staticmethod
    def recognises(text: str) -> bool:
        return not is_url(text) and os.path.isdir(local_path(text))

    @staticmethod
    def list(text: str, options: SourceOptions) -> Listing:
        """List the images and videos of a folder, `CLASS/...` or `SPLIT/CLASS/...`, in natural order of their keys.

        Raises SourceError if the folder does not exist, is empty, has no images, or splits beside other folders.
        """
        found = _remote(text) if is_url(text) else _local(Path(local_path(text)), IMAGES | VIDEOS)
        if not options.unlabelled:
            require_splits_alone(text, [record.key for record in found.records])
        return found


def list_images(root: Path) -> list[Record]:
    """List the images of a folder on this machine; otherwise as `Folder.list`."""
    return _local(root, IMAGES).records


def split_of(word: str, where: str) -> str | None:
    """The split that a word of a user's stands for; None for no word.

    where: what has the word, for messages.
    Raises SourceError for any other word.
    """
    name = word.strip().lower()
    if name and name not in SPLIT_FOLDERS:
        raise SourceError(f"{where} has split {word!r}: there are train, val and test")
    return SPLIT_FOLDERS.get(name)


def by_folders(names: Sequence[str], key: Callable[[str], str]) -> list[tuple[str | None, str | None]]:
    """The class and the split of files, which are their folders.

    names: paths relative to the root, with slashes. key: of a name.
    """
    parts = [name.split("/") for name in names]
    tops = {path[0].lower() for path in parts if len(path) > 1}
    split_folders = bool(tops) and tops <= set(SPLIT_FOLDERS)
    found = []
    for path in parts:
        split = SPLIT_FOLDERS[path[0].lower()] if split_folders and len(path) > 1 else None
        folders = path[1:-1] if split_folders else path[:-1]
        label = key(folders[0]) if folders and folders[0] else None  # S3 has names with two slashes in a row
        found.append((label, split))
    return found


def require_splits_alone(place: str, names: Iterable[str]) -> None:
    """Raise SourceError for folders of splits beside others, since all of them would be classes.

    place: what holds them. names: as of `by_folders`.
    """
    parts = [name.split("/") for name in names]
    splits = {path[0] for path in parts if len(path) > 2 and path[0].lower() in SPLIT_FOLDERS}
    others = {path[0] for path in parts if len(path) > 1 and path[0].lower() not in SPLIT_FOLDERS}
    if splits and others:
        raise SourceError(f"{place} has folders of splits ({listing(sorted(splits))}) and others "
                          f"({listing(sorted(others))}): move away what is no split, or list the images in a manifest "
                          "(path,label)")


# Made by Synology, QNAP, Windows, Linux and macOS: thumbnails, deleted files, snapshots.
_SYSTEM = frozenset(["@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin", "recycler",
                     "system volume information", "lost+found", "__macosx"])


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over without a word."""
    return name.startswith(".")


def is_system(name: str) -> bool:
    """Whether a folder of this name is passed over with a remark, because a system made it and no person."""
    return name.lower() in _SYSTEM


def left_out(folders: Iterable[str]) -> list[str]:
    """The remark on folders that were passed over; none if there are none."""
    names = [f"{name} ({number:,})" if number > 1 else name for name, number in sorted(Counter(folders).items())]
    return [f"passed over, as a system makes them: {listing(names)}"] if names else []


def _local(root: Path, suffixes: frozenset[str]) -> Listing:
    """Links are followed, each folder once."""
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise SourceError(f"{root} {what}: {_MEND}, or another source (onceclip extract --help lists them)")
    system: list[str] = []
    place = os.fspath(root)
    names = [name.replace(os.sep, "/") for name in _walk(place, system)]
    return _listing(place, names, [name for name in names if suffix(name) in suffixes], system, encode_key,
                    lambda name: LocalFile(os.path.join(place, name)))


def _walk(root: str, system: list[str]) -> Iterator[str]:
    """Paths of files relative to the root. Links to folders come after all folders, each folder once.

    system: gets the names of folders that are passed over.
    """
    seen = set()
    links = deque([(root, os.path.realpath(root), "")])
    while links:
        waiting = [links.popleft()]  # no recursion, which Python bounds, as os.walk does up to 3.11
        while waiting:
            folder, real, relative = waiting.pop()
            if real in seen:
                continue
            seen.add(real)
            inner = []
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if hidden(entry.name):
                            continue
                        if not _is_folder(entry):
                            yield relative + entry.name
                        elif is_system(entry.name):
                            system.append(entry.name)
                        else:
                            inner.append(entry)
            except OSError as error:
                raise SourceError(f"{folder} cannot be read ({error.strerror}): allow reading it, or move it out of "
                                  f"{root}") from error
            inner.sort(key=lambda entry: entry.name)
            links.extend((entry.path, os.path.realpath(entry.path), f"{relative}{entry.name}{os.sep}")
                         for entry in inner if entry.is_symlink())
            waiting += [(entry.path, os.path.join(real, entry.name), f"{relative}{entry.name}{os.sep}")
                        for entry in reversed(inner) if not entry.is_symlink()]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle, or to where we may not look
        return False


def _remote(url: str) -> Listing:
    root = url.rstrip("/")
    with as_source_error(url):
        files, base = remote_folder(root)
        base = base.rstrip("/")
        everything = files.find(base)
        if not everything:
            files.ls(base)  # says so if it is the bucket that is missing
    if everything == [base]:
        raise SourceError(f"{url} is a file, not a folder: {_MEND}, or another source (onceclip extract --help lists "
                          "them)")
    names = [name[len(base) + 1:] for name in everything]
    system = [part for name in names for part in name.split("/")[:-1] if is_system(part)]
    chosen = [name for name in names if suffix(name) in IMAGES | VIDEOS
              and not any(hidden(part) or is_system(part) for part in name.split("/"))]
    return _listing(url, names, chosen, system, key_of, lambda name: RemoteFile(root, name))


def _listing(place: str, names: list[str], chosen: list[str], system: list[str], key: Callable[[str], str],
             file: Callable[[str], File]) -> Listing:
    """The records of the chosen files among all. system: folders that were passed over. key, file: of a name."""
    if chosen:
        chosen = sorted(chosen, key=natural_order)
        return Listing([Record(key(name), file(name), label, split) for name, (label, split)
                        in zip(chosen, by_folders(chosen, key), strict=True)], left_out(system))
    if not names:
        raise NoImages(f"{place} is empty: {_MEND}")
    what = f"has no images ({counted(len(names), 'other file')}; images end in {', '.join(sorted(IMAGES))})"
    if any(suffix(name) == ".tar" for name in names):
        raise SourceError(f"{place} {what}: give its archives as '{place.rstrip('/')}/*.tar'")
    raise NoImages(f"{place} {what}: {_MEND}")
