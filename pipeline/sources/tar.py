"""The index of a tar archive: where in it the bytes of every member are. Nothing is unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Self

from onceclip.pipeline.errors import SourceError

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
