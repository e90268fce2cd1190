"""Images in tables: folders that Hugging Face's `datasets` saved, data sets on its hub, and Parquet files."""

from __future__ import annotations

import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from threading import Lock
from typing import Any, ClassVar

from onceclip.pipeline.errors import BadImage, SourceError
from onceclip.pipeline.files import key_of, local_path, suffix
from onceclip.pipeline.sources.arrow_files import ArrowTable, table_at
from onceclip.pipeline.sources.folder import split_of
from onceclip.pipeline.sources.record import Listing, Record, Source, SourceOptions
from onceclip.pipeline.sources.table_file import PARQUET, TableFile
from onceclip.pipeline.words import listing

ROLES = ("image", "label", "split", "key", "group")
_PREFIXES = ("hf-dataset:", "parquet:")
_HUB = "hf://datasets/"


@dataclass(frozen=True, slots=True)
class Cell:
    """The image in one row of a table. group: number of the rows that are read together. row: place in them."""

    file: TableFile
    column: str
    group: int
    row: int
    reading: ClassVar[str] = "process"

    def read(self) -> bytes:
        """The bytes of the image file.

        Raises BadImage if the row has none: a path beside them is not followed.
        """
        value: Any = _images(self.file, self.column, self.group)[self.row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes) or not content:
            path = value.get("path") if isinstance(value, dict) else None
            raise BadImage(f"no image in the table{f', only the path {path}, which is not followed' if path else ''}")
        return content


_ONE_AT_A_TIME = Lock()  # else every thread that comes meanwhile reads the same rows into memory


def _images(file: TableFile, column: str, group: int) -> Any:
    with _ONE_AT_A_TIME:
        return _group(file, column, group)


@lru_cache(maxsize=2)
def _group(file: TableFile, column: str, group: int) -> Any:
    return file.group(group, column)


class ImageTable(Source):
    """A table with a column of images."""

    name = "table of images"
    takes = frozenset({"columns"})

    @staticmethod
    def recognises(text: str) -> bool:
        return text.startswith(_PREFIXES) or suffix(text) == PARQUET

    @staticmethod
    def list(text: str, options: SourceOptions) -> Listing:
        """List the images of a table, file by file, in the order of its rows.

        Their keys are the split and the name that the table has for the image; or its number, where it has none or one
        twice.
        Raises SourceError if it cannot be read, or has no column of images, or several.
        """
        place = text.partition(":")[2] if text.startswith(_PREFIXES) else text
        if not place:
            raise SourceError(f"{text} names no table: give hf-dataset:FOLDER, hf-dataset:ORG/NAME or parquet:FILE")
        if text.startswith(_PREFIXES[0]) and "://" not in place and not os.path.exists(local_path(place)):
            if place.count("/") not in (1, 2):
                raise SourceError(f"{text}: there is no folder {place}, and data sets of the hub are ORG/NAME: correct "
                                  "the name")
            place = _HUB + place
        table = table_at(place)
        chosen = _columns(table, options)
        rows = [row for file in table.files for row in _rows(table, file, chosen)]
        named = Counter((folder, name) for folder, name, _ in rows)
        numbered = {folder for folder, name in named if not name or named[folder, name] > 1}
        numbers: dict[str, Iterator[int]] = defaultdict(count)
        records = []
        for folder, name, record in rows:
            number = next(numbers[folder])
            key = record.key or f"{folder}/{f'{number:06d}' if folder in numbered else name}"
            records.append(replace(record, key=key))
        return Listing(records)


def _columns(table: ArrowTable, options: SourceOptions) -> dict[str, str]:
    """The column of every role, found by its type where it is not named as the role."""
    chosen = table.chosen(dict(options.columns), ROLES)
    for role, fits in (("image", _has_images), ("label", lambda table, name: bool(table.class_names(name)))):
        if role in chosen:
            continue
        found = [name for name in table.schema.names if fits(table, name)]
        if len(found) > 1:
            raise SourceError(f"{table.place} has several columns that may be the {role}: {listing(found)}: choose "
                              f"with --column {role}={found[0]}")
        chosen.update(zip([role], found, strict=False))
    if "image" not in chosen:
        raise SourceError(f"{table.place} has no column of images (it has: {listing(table.schema.names)}): name it "
                          "with --column image=NAME")
    if not _has_images(table, chosen["image"]):
        raise SourceError(f"{table.place}: column {chosen['image']!r} is {table.schema.field(chosen['image']).type}: "
                          "images are bytes, or bytes and a path")
    if options.unlabelled:
        chosen.pop("label", None)
    return chosen


def _has_images(table: ArrowTable, name: str) -> bool:
    from pyarrow import types

    kind = table.schema.field(name).type
    if types.is_struct(kind):
        inner = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else None
        return inner is not None and (types.is_binary(inner) or types.is_large_binary(inner))
    return types.is_binary(kind) or types.is_large_binary(kind)


def _rows(table: ArrowTable, file: TableFile, chosen: dict[str, str]) -> Iterator[tuple[str, str, Record]]:
    """What a file of a table says of its images: the folder and the file name for keys, and the records.

    The name is empty if it is not known; the key of a record is empty where no column has it.
    """
    image, split = chosen["image"], table.split_of(file)
    kind = table.schema.field(image).type
    wanted = {role: name for role, name in chosen.items() if role != "image"}
    path = [f"{image}.path"] if getattr(kind, "get_field_index", lambda name: -1)("path") >= 0 else []
    words: dict[str, list[str]] = {role: [] for role in (*wanted, *(["path"] if path else []))}
    for batch in file.batches([*wanted.values(), *path]) if words else ():
        for role, name in wanted.items():
            words[role] += table.words(name, batch.column(name))
        if path:
            words["path"] += table.words(f"{image}.path", batch.column(image).field("path"))
    stem = os.path.splitext(posixpath.basename(file.place))[0]
    places = ((group, row) for group, size in enumerate(file.groups(image)) for row in range(size))
    for number, (group, row) in enumerate(places):
        said = {role: values[number] for role, values in words.items()}
        part = split_of(said.get("split", ""), f"{file.place}: row {number}") or split
        yield part or key_of(stem), posixpath.basename(said.get("path", "")), Record(
            said.get("key", ""), Cell(file, image, group, row), said.get("label") or None, part, said.get("group", ""))
