"""The columns that say what every row of a store is, and the identity of their content."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice, pairwise, repeat
from json.encoder import encode_basestring_ascii as quoted
from operator import eq
from tempfile import TemporaryFile
from typing import IO

import numpy as np

from onceclip.stores.identity import DIGEST_BYTES, canonical
from onceclip.stores.schema import STORED

RUN_ROWS = 1 << 20  # that are sorted in memory
_PIECE = 1 << 16  # rows whose JSON is in memory at once
_BLOCK = 1 << 16  # bytes of every run that are in memory while runs are merged

Read = Callable[..., Iterator[tuple[np.ndarray, ...]]]  # some columns by name, `size` rows of each at a time
Piece = tuple[list[str], list[str]]  # consecutive rows: what they are ordered by, and their JSON


@dataclass(frozen=True)
class Table:
    """The columns that say what every row is; all have one entry per row, of whatever state.

    key: paths relative to the root. label: (rows,) int32, position in `Store.classes`, or -1.
    split: (rows,) int8, position in SPLITS, or -1. state: (rows,) int8. digest: (rows, 16) uint8.
    reason: why a row is bad, else empty. group: rows that belong together, such as the frames of a video; empty for
    none, and left out where no row has one.
    """

    key: np.ndarray
    label: np.ndarray
    split: np.ndarray
    state: np.ndarray
    digest: np.ndarray
    reason: np.ndarray
    group: np.ndarray = field(default_factory=lambda: np.empty(0, object))

    def __post_init__(self) -> None:
        if not len(self.group):
            object.__setattr__(self, "group", np.full(len(self.state), "", object))

    def __len__(self) -> int:
        return len(self.state)


@dataclass(frozen=True)
class Content:
    """What the stored rows are. repeated: how many of them have the key of another."""

    fingerprint: str
    repeated: int


def content_of(read: Read, rows: int, encoder: str, classes: Sequence[str]) -> Content:
    """Hash key, digest, split, class and, if there are any, group of every stored row, in the order of keys.

    Where more than a million rows do not lie in that order already, they are sorted in a temporary file.
    read: gives the columns in pieces. rows: how many there are. encoder: fingerprint of what made the embeddings.
    """
    grouped = any((group[state == STORED] != "").any() for state, group in read("state", "group", size=RUN_ROWS))
    names = ["null", *map(quoted, classes)]
    columns = ("state", "key", "digest", "split", "label", *(["group"] if grouped else []))
    runs = (_sorted(*run, names=names) for run in read(*columns, size=RUN_ROWS))
    if rows <= RUN_ROWS or _rising(read):
        pieces: Iterator[Piece] = (piece for run in runs for piece in run)
    else:
        pieces = _merged(runs)
    # As `canonical` spells {"encoder": ..., "rows": [[key, digest, split, class(, group)], ...]}, but in pieces.
    content = blake2b(b'{"encoder":%b,"rows":[' % canonical(encoder), digest_size=DIGEST_BYTES)
    repeated, last = 0, None
    for number, (keys, entries) in enumerate(pieces):
        content.update((("," if number else "") + ",".join(entries)).encode("ascii"))
        repeated += sum(map(eq, keys, [last, *keys[:-1]]))
        last = keys[-1]
    content.update(b"]}")
    return Content(content.hexdigest(), repeated)


def _rising(read: Read) -> bool:
    """Whether every key of a run is behind those of the run before."""
    last = None
    for state, key in read("state", "key", size=RUN_ROWS):
        keys = key[state == STORED].tolist()
        if not keys:
            continue
        if last is not None and min(keys) < last:
            return False
        last = max(keys)
    return True


def _sorted(state: np.ndarray, key: np.ndarray, digest: np.ndarray, split: np.ndarray, label: np.ndarray,
            group: np.ndarray | None = None, *, names: Sequence[str]) -> Iterator[Piece]:
    """The stored rows of one run in the order of keys. names: JSON of no class and of each class."""
    rows = np.flatnonzero(state == STORED)
    order = rows[np.argsort(key[rows])]
    size = 2 * DIGEST_BYTES
    for start in range(0, len(order), _PIECE):
        piece = order[start:start + _PIECE]
        digits, keys = digest[piece].tobytes().hex(), key[piece].tolist()
        ends = repeat("]") if group is None else (f",{quoted(each)}]" for each in group[piece].tolist())
        columns = zip(map(quoted, keys), range(0, len(digits), size), split[piece].tolist(),
                      (np.maximum(label[piece], -1) + 1).tolist(), ends, strict=False)
        yield keys, [f'[{each},"{digits[place:place + size]}",{given},{names[number]}{end}'
                     for each, place, given, number, end in columns]


def _merged(runs: Iterator[Iterator[Piece]]) -> Iterator[Piece]:
    """The rows of sorted runs as one."""
    with TemporaryFile() as file:
        edges = [0]
        for run in runs:
            for keys, entries in run:
                # Hexadecimal digits have the order of the bytes, and UTF-8 that of the characters.
                text = (f"{key.encode().hex()} {entry}\n" for key, entry in zip(keys, entries, strict=True))
                file.write("".join(text).encode("ascii"))
            edges.append(file.tell())
        lines = heapq.merge(*(_lines(file, *edge) for edge in pairwise(edges)))
        while batch := list(islice(lines, _PIECE)):
            split = [line.decode("ascii").partition(" ") for line in batch]
            yield [key for key, _, _ in split], [entry for _, _, entry in split]


def _lines(file: IO[bytes], start: int, stop: int) -> Iterator[bytes]:
    """The lines between two places of a file, while others read it too."""
    rest = b""
    while start < stop:
        file.seek(start)
        block = file.read(min(_BLOCK, stop - start))
        start += len(block)
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
