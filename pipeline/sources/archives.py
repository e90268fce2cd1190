"""The index of a tar archive: where in it the bytes of every member are. Nothing is unpacked."""

from __future__ import annotations

import glob
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, BinaryIO, Self

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.files import (
    IMAGES,
    VIDEOS,
    as_source_error,
    file_by_path,
    is_url,
    key_of,
    local_path,
    read_json,
    remote_folder,
    suffix,
    text_of,
)
from onceclip.pipeline.sources.folder import (
    SPLIT_FOLDERS,
    by_folders,
    hidden,
    is_system,
    left_out,
    require_splits_alone,
    split_of,
)
from onceclip.pipeline.sources.record import Listing, Record, Source, SourceOptions, natural_order
from onceclip.pipeline.words import counted
from onceclip.stores.identity import encode_key

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd", b"\xfd7zX")  # how gzip, bzip2, zstd and xz files begin


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive: its path, as text, and where its bytes are."""

    name: str
    start: int
    size: int


class _Header(tarfile.TarInfo):
    """A header in which times of GNU's incremental archives are not taken for the beginning of a long name."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if buf[257:265] == tarfile.GNU_MAGIC:
            member.name = buf[:100].partition(b"\0")[0].decode(encoding, errors)
        return member


def index(place: str, file: BinaryIO) -> Iterator[Member]:
    """The members of an archive that are files, in its order; only headers are read.

    place: what to call the archive.
    Raises SourceError if it is no tar archive, or is damaged or cut short.
    """
    if file.read(6).startswith(_COMPRESSED):
        raise SourceError(f"{place} is compressed, so that its members cannot be read one by one: decompress it first")
    file.seek(0)
    try:
        archive = tarfile.TarFile(fileobj=file, tarinfo=_Header, encoding="utf-8", errors="surrogateescape")
    except tarfile.TarError as error:
        raise SourceError(f"{place} is not a tar archive ({error}): give one") from error
    last = "its beginning"
    try:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # else it holds all members of an archive of any size
            if member.issparse():
                raise SourceError(f"{place} holds sparse files: make it anew without --sparse")
            if member.size < 0:
                raise _damaged(place, member.name, member.offset)
            last = member.name
            if member.isfile() and not member.name.endswith("/"):
                yield Member(member.name, member.offset_data, member.size)
    except tarfile.TarError as error:
        raise _damaged(place, last, archive.offset) from error
    # A header that it cannot read is the end of an archive for tarfile.
    file.seek(archive.offset)
    rest = file.read(tarfile.BLOCKSIZE)
    if len(rest) not in (0, tarfile.BLOCKSIZE) or rest.strip(b"\0"):
        raise _damaged(place, last, archive.offset)


def _damaged(place: str, last: str, position: int) -> SourceError:
    return SourceError(f"{place} is damaged or cut short behind {last} (byte {position:,}): take the archive from a "
                       "copy, or make it anew")


_AT_ONCE = 8
_MOST_SHARDS = 1_000_000
_CLASS_NAMES = ("class_name", "label", "class", "cls")


@dataclass(frozen=True)
class Shard:
    """One archive: its place, its name in keys, its images, and the class, split and group that samples name.

    videos: members that are left out. system: folders of members that were passed over, because a system makes them.
    """

    place: str
    name: str
    images: list[Member] = field(default_factory=list)
    notes: dict[str, dict[str, str]] = field(default_factory=dict)
    videos: list[str] = field(default_factory=list)
    system: list[str] = field(default_factory=list)


class Archives(Source):
    """Tar archives, one or several by a pattern; WebDataset's among them."""

    name = "tar archives"

    @staticmethod
    def recognises(text: str) -> bool:
        return bool(re.search(r"\.(tar(\.\w+)?|tgz)(\}|\]|$)", text.lower()))

    @staticmethod
    def list(text: str, options: SourceOptions) -> Listing:
        """List the images of archives, archive by archive, in their order.

        Raises SourceError if there is no such archive, one is damaged, or there are no images.
        """
        patterns = [text] if os.path.exists(local_path(text)) else expand_braces(text)
        places = list(dict.fromkeys(place for pattern in patterns for place in _matching(pattern)))
        if not places:
            raise SourceError(f"{text}: no such archive: give a .tar file, or several as 'data-{{000..009}}.tar' or "
                              "'data-*.tar'")
        parts = [place.split("/") for place in places]
        base = next((depth for depth, names in enumerate(zip(*parts, strict=False)) if len(set(names)) > 1), -1)
        with ThreadPoolExecutor(_AT_ONCE if is_url(places[0]) else 1) as pool:
            shards = list(pool.map(_indexed, places, ["/".join(names[base:]) for names in parts]))
        records = _records(text, shards, options.unlabelled)
        if not records:
            raise SourceError(f"{text} has no images ({len(places)} archives; images end in "
                              f"{', '.join(sorted(IMAGES))}): give archives of image files")
        videos = sum(len(shard.videos) for shard in shards)
        remark = f"{counted(videos, 'video')} in {text} left out: unpack the archive into a folder"
        return Listing(records, [*([remark] if videos else []), *left_out(name for each in shards
                                                                         for name in each.system)])


def expand_braces(pattern: str) -> list[str]:
    """The texts that a pattern stands for: `{000..009}` is a range, `{a,b}` a choice; none is the text itself."""
    parts: list[list[str]] = []
    found = re.findall(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}|([^{}]+|.)", pattern, re.DOTALL)
    for first, last, choices, text in found:
        if text:
            parts.append([text])
        elif choices:
            parts.append(choices.split(","))
        elif abs(int(last) - int(first)) >= _MOST_SHARDS:
            raise SourceError(f"{pattern}: {first}..{last} are too many archives: give a smaller range")
        else:
            step = 1 if int(first) <= int(last) else -1
            width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 1
            parts.append([f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)])
    return ["".join(each) for each in product(*parts)]


def _matching(pattern: str) -> list[str]:
    """Archives of a pattern with `*`, `?` or `[...]`, in natural order; one without must be there."""
    if not is_url(pattern):
        pattern = local_path(pattern)
        found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern), key=natural_order)
        if not found and not glob.has_magic(pattern):
            raise SourceError(f"{pattern} does not exist: correct the name or the range of the archives")
        return found
    if not glob.has_magic(pattern):
        return [pattern]
    with as_source_error(pattern):
        files, path = remote_folder(pattern)
        return sorted(map(files.unstrip_protocol, files.glob(path)), key=natural_order)


def _indexed(place: str, name: str) -> Shard:
    """What an archive holds. name: its name in keys."""
    shard = Shard(place, name)
    with as_source_error(place), file_by_path(place).stream() as file:
        for member in index(place, file):
            path = posixpath.normpath(member.name)
            parts = path.split("/")
            system = [part for part in parts if is_system(part)]
            shard.system.extend(system)
            if system or any(map(hidden, parts)):
                continue
            ending = suffix(path)
            if ending in IMAGES:
                shard.images.append(replace(member, name=path))
            elif ending in VIDEOS:
                shard.videos.append(path)
            elif ending in (".cls", ".json"):
                file.seek(member.start)
                values = _note(place, member, file.read(member.size))
                shard.notes.setdefault(_sample(path), {}).update(values)
    return shard


def _note(place: str, member: Member, content: bytes) -> dict[str, str]:
    """What a sample's `.cls` or `.json` says of it."""
    if len(content) < member.size:
        raise SourceError(f"{place} ends within {member.name}: take the archive from a copy, or make it anew")
    if suffix(member.name) == ".cls":
        return {"cls": text_of(content).strip()}
    try:
        values: Any = read_json(text_of(content))
    except ValueError as error:
        raise SourceError(f"{place}: {member.name} is not JSON ({error}): correct it, or leave it out") from error
    if not isinstance(values, dict):
        return {"label": str(values)} if isinstance(values, int | str) else {}
    found = {name: values[name] for name in (*_CLASS_NAMES, "split", "group")
             if isinstance(values.get(name), str | int) and values[name] != ""}
    label = next((found[name] for name in _CLASS_NAMES if name in found), None)
    return {name: str(value) for name, value in {**found, "label": label}.items()
            if value is not None and name in ("label", "split", "group")}


def _records(place: str, shards: list[Shard], unlabelled: bool) -> list[Record]:
    names = [member.name for shard in shards for member in shard.images]
    tops = {name.partition("/")[0] for name in names}
    # An archive of one folder, as `tar cf pets.tar pets` makes it: the classes are the folders in that.
    inner = len(tops) == 1 and all(name.count("/") > 1 for name in names) and not tops & set(SPLIT_FOLDERS)
    names = [name.partition("/")[2] if inner else name for name in names]
    if not unlabelled and not any(shard.notes for shard in shards):  # which may say what the classes are
        require_splits_alone(place, names)
    found = iter(by_folders(names, key_of))
    records = []
    for shard, split in zip(shards, _splits_of_shards(shards), strict=True):
        key, source = (key_of if is_url(shard.place) else encode_key)(shard.name), file_by_path(shard.place)
        for member in shard.images:
            (folder, split_folder), note = next(found), shard.notes.get(_sample(member.name), {})
            label = note.get("cls") or note.get("label")
            own = split_of(note.get("split", ""), f"{shard.place}: {member.name}")
            records.append(Record(
                f"{key}/{key_of(member.name)}", replace(source, start=member.start, size=member.size),
                key_of(label) if label else folder, own or split_folder or split, key_of(note.get("group", ""))))
    return records


def _splits_of_shards(shards: list[Shard]) -> list[str | None]:
    """The split that the name of each archive has, such as train-000.tar or val/000.tar, if all have one."""
    found = []
    for shard in shards:
        splits = {SPLIT_FOLDERS[word] for word in re.split("[^a-z]+", shard.name.lower()) if word in SPLIT_FOLDERS}
        found.append(splits.pop() if len(splits) == 1 else None)
    return found if all(found) else [None] * len(shards)


def _sample(name: str) -> str:
    """What the files of one sample share: the path up to the first dot of the file's name."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"
