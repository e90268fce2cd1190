"""The index of a tar archive: where in it the bytes of every member are.

It reads headers alone. The format is that of POSIX.1-2017 (`pax`, "ustar Interchange Format"), with GNU tar's long
names and large numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.sources.places import text_of

_BLOCK = 512
_CHECKSUM = slice(148, 156)
_LONG_NAME, _PAX, _PAX_ALL = b"L", b"x", b"g"
_FILES = frozenset([b"0", b"\0", b"7"])
_NO_DATA = frozenset([b"1", b"2", b"3", b"4", b"5", b"6"])


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive: its path, as text, and where its bytes are."""

    name: str
    start: int
    size: int


def index(place: str, file: BinaryIO) -> Iterator[Member]:
    """The members of an archive that are files, in its order.

    place: what to call the archive.
    Raises SourceError if it is no tar archive, or is cut short.
    """
    position = end = 0
    shared: dict[str, bytes] = {}
    own: dict[str, bytes] = {}
    while True:
        file.seek(position)
        header = file.read(_BLOCK)
        if not header.strip(b"\0") and (position or len(header) == _BLOCK):
            if len(header) not in (0, _BLOCK):
                raise _damaged(place, position, "ends within a header")
            if file.seek(0, os.SEEK_END) < end:
                raise _damaged(place, end, "is cut short: its last file should go on")
            return
        _check(place, position, header)
        kind, start = header[156:157], position + _BLOCK
        size = int(own["size"]) if "size" in own else _number(place, position, header[124:136])
        end = start + (0 if kind in _NO_DATA else size)
        position = -(-end // _BLOCK) * _BLOCK
        if kind in (_LONG_NAME, _PAX, _PAX_ALL):
            content = file.read(size)
            if len(content) < size:
                raise _damaged(place, start, "ends within a name")
            if kind == _LONG_NAME:
                own["path"] = content.rstrip(b"\0")
            else:
                (own if kind == _PAX else shared).update(_pax(place, start, content))
            continue
        if kind in _FILES:
            name = own.get("path") or shared.get("path") or _name(header)
            if not name.endswith(b"/"):
                yield Member(text_of(name), start, size)
        own = {}


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0":  # GNU's own format keeps other things there
        prefix = header[345:500].partition(b"\0")[0]
        return prefix + b"/" + name if prefix else name
    return name


def _check(place: str, position: int, header: bytes) -> None:
    if len(header) < _BLOCK:
        raise _damaged(place, position, "ends within a header" if position else "is too short for an archive")
    if header[:2] == b"\x1f\x8b" or header[:3] == b"BZh" or header[:4] in (b"\x28\xb5\x2f\xfd", b"\xfd7zX"):
        raise SourceError(f"{place} is compressed, so that its members cannot be read one by one: decompress it first")
    written = header[_CHECKSUM].strip(b" \0")
    found = sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ")
    if not written or any(digit not in b"01234567" for digit in written) or int(written, 8) != found:
        raise _damaged(place, position, "has no sound header there" if position else "is not a tar archive")


def _number(place: str, position: int, field: bytes) -> int:
    if field[0] & 0x80:  # GNU's way to write what octal digits cannot hold
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise _damaged(place, position, "has no sound size there") from None


def _pax(place: str, position: int, content: bytes) -> dict[str, bytes]:
    """The values of an extended header: lines of "length name=value"."""
    values = {}
    while content.strip(b"\0"):
        length, _, rest = content.partition(b" ")
        if not length.isdigit() or int(length) > len(content) or int(length) <= len(length) + 1:
            raise _damaged(place, position, "has no sound extended header there")
        name, _, value = rest[:int(length) - len(length) - 2].partition(b"=")
        values[name.decode("utf-8", "replace")] = value
        content = content[int(length):]
    if any(name.startswith("GNU.sparse") for name in values):
        raise SourceError(f"{place} holds sparse files: make it anew without --sparse")
    return values


def _damaged(place: str, position: int, what: str) -> SourceError:
    return SourceError(f"{place} {what} (byte {position:,}): take the archive from a copy, or make it anew")
