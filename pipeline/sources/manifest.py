"""A table of images, `path,label[,split,group]`: CSV, TSV or JSON lines; or their names alone on standard input."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import posixpath
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.files import (
    IMAGES,
    VIDEOS,
    Box,
    LocalFile,
    file_at,
    is_url,
    is_utf8,
    key_of,
    parent,
    read_json,
    read_text,
    suffix,
    text_of,
)
from onceclip.pipeline.sources.folder import SPLIT_FOLDERS, split_of
from onceclip.pipeline.sources.record import Listing, Record, Source, SourceOptions

COLUMNS = ("path", "label", "split", "group")
BOX, MASK = ("x0", "y0", "x1", "y1"), "mask"
_LINES = {".jsonl", ".ndjson"}
_PROBES = 20
_MARKS = {";": "semicolons", ",": "commas", "\t": "tabs"}


@dataclass(frozen=True)
class Row:
    """What a manifest says of one image, or of a box in it. where: such as "line 7". mask: the path of its mask."""

    where: str
    path: str
    label: str | None = None
    split: str | None = None
    group: str = ""
    box: Box | None = None
    mask: str = ""


class Manifest(Source):
    """A table of images."""

    name = "manifest"
    takes = frozenset({"root", "every", "frames"})

    @staticmethod
    def recognises(text: str) -> bool:
        return suffix(text) in {".csv", ".tsv", *_LINES}

    @staticmethod
    def list(text: str, options: SourceOptions) -> Listing:
        """List the images of a manifest, in its order.

        Raises SourceError if it cannot be read, or a line is wrong.
        """
        content = read_text(text)
        remarks: list[str] = []
        read = _of_json_lines if suffix(text) in _LINES else _of_table
        rows = read(text, content, remarks, not options.unlabelled)
        return Listing(records_of(text, list(rows), options.root or parent(text)), remarks)


def records_of(place: str, rows: list[Row], root: str) -> list[Record]:
    """The records of some rows.

    place: of the manifest. root: the folder that paths are relative to.
    Raises SourceError if there are none, for a path twice, or an unknown split.
    """
    if not rows:
        raise SourceError(f"{place} lists no images: give lines path,label[,split,group]")
    seen: dict[str, Row] = {}
    boxes: dict[str, list[Box]] = {}
    records = []
    for row in rows:
        where = f"{place} {row.where}"
        try:
            key, label, group = key_of(_relative(row.path, root)), key_of(row.label or "") or None, key_of(row.group)
        except UnicodeEncodeError as error:
            raise SourceError(f"{where}: {error.object!r} is not text: correct it") from None
        before = seen.setdefault(key, row)
        boxes.setdefault(key, []).extend([row.box] if row.box else [])
        if before is not row:
            if row.box is None or before.box is None:
                raise SourceError(f"{where}: {key} was in {before.where} already: leave one of them out")
            if (row.label, row.split, row.group, row.mask) != (before.label, before.split, before.group, before.mask):
                raise SourceError(f"{where}: {key} has another label, split, group or mask than in {before.where}: "
                                  "give all boxes of an image the same")
            continue
        split = split_of(row.split or "", where)
        file = file_at(root, row.path)
        if row.mask:
            file = replace(file, mask=file_at(root, row.mask))
        records.append(Record(key, file, label, split, group))
    _probe(place, rows, records, root)
    return [replace(record, content=replace(record.content, boxes=tuple(boxes[record.key])))  # type: ignore[type-var]
            if boxes[record.key] else record for record in records]


def _relative(path: str, root: str) -> str:
    """A path as it goes into the key: relative to the root where it lies under it."""
    if is_url(path):
        return path
    path = posixpath.normpath(path)
    if posixpath.isabs(path) and not is_url(root):
        inner = os.path.relpath(path, os.path.abspath(root))
        return path if inner.startswith(os.pardir) else inner
    return path


def _probe(place: str, rows: list[Row], records: list[Record], root: str) -> None:
    """Refuse a manifest whose first files are all missing: its root is wrong, or how it writes paths."""
    paths = [record.content.path if isinstance(record.content, LocalFile) else "" for record in records[:_PROBES]]
    if any(not path or os.path.lexists(path) for path in paths):
        return
    mend = "name the folder that paths are relative to with --root"
    if "\\" in rows[0].path and os.sep == "/":
        mend = "its paths have \\ between folders, as on Windows: write / instead, and no drive"
    elif any(os.path.lexists(unicodedata.normalize(form, os.fspath(paths[0]))) for form in ("NFC", "NFD")):
        mend = ("the file there has its name in another Unicode form (é as one character or as two): write the names "
                "as the folder has them, such as with find")
    raise SourceError(f"{place} {rows[0].where}: there is no {records[0].key} in {root}, nor is there any of the first "
                      f"{len(paths)} images: {mend}")


def _of_table(place: str, content: str, remarks: list[str], labelled: bool) -> Iterator[Row]:
    mark = "," if suffix(place) == ".csv" else "\t"
    lines = _numbered(place, csv.reader(io.StringIO(content, newline=""), delimiter=mark, skipinitialspace=mark == ",",
                                        strict=True))
    first = next(lines, None)
    if first is None:
        return
    line, cells = first
    names = [cell.strip().lower() for cell in cells]
    is_image = suffix(cells[0]) in IMAGES
    other = next((each for each in ";\t," if each in cells[0] and each != mark), None)
    if len(cells) == 1 and other and not is_image:
        raise SourceError(f"{place} {line}: its cells stand between {_MARKS[other]}, but those of a {suffix(place)} "
                          f"file between {_MARKS[mark]}: save it so")
    if "path" in names and not is_image:
        _check_columns(place, names, remarks, labelled)
    elif suffix(cells[0]) in IMAGES | VIDEOS and len(cells) <= len(COLUMNS):
        names = list(COLUMNS[:len(cells)])
        yield _row(place, line, dict(zip(names, cells, strict=True)))
    else:
        raise SourceError(f"{place} {line}: {','.join(cells)[:80]!r} is neither a header with a column path nor an "
                          "image, its label, split and group: begin with the line path,label (and split, group if "
                          "there are)")
    for line, cells in lines:
        if len(cells) != len(names):
            raise SourceError(f"{place} {line}: {len(cells)} cells, though the first line has {len(names)}: put names "
                              "with separators in double quotes")
        yield _row(place, line, dict(zip(names, cells, strict=True)))


def _numbered(place: str, reader: Iterator[list[str]]) -> Iterator[tuple[str, list[str]]]:
    line = 1
    try:
        for cells in reader:
            if cells:
                yield f"line {line}", cells
            line = reader.line_num + 1  # type: ignore[attr-defined]
    except csv.Error as error:
        raise SourceError(f"{place} line {line}: {error}: put names with separators or quotes in double quotes"
                          ) from error


def _of_json_lines(place: str, content: str, remarks: list[str], labelled: bool) -> Iterator[Row]:
    names: dict[str, None] = {}
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = read_json(line)
        except ValueError as error:
            raise SourceError(f"{place} line {number}: not JSON ({error}): give one object a line") from error
        if not isinstance(values, dict) or "path" not in values:
            raise SourceError(f"{place} line {number}: not an object with a path: give lines such as "
                              '{"path": "cat/1.jpg", "label": "cat"}')
        names.update(dict.fromkeys(values))
        yield _row(place, f"line {number}", {name: values[name] for name in (*COLUMNS, *BOX, MASK)
                                                if values.get(name) is not None})
    _check_columns(place, list(names), remarks, labelled)


def _check_columns(place: str, names: list[str], remarks: list[str], labelled: bool) -> None:
    doubled = next((name for name in names if name and names.count(name) > 1), None)
    if doubled is not None:
        raise SourceError(f"{place}: there are two columns {doubled!r}: leave one of them out")
    unknown = [name or "one without a name" for name in names  # pandas writes its index so
               if name not in (*COLUMNS, *BOX, MASK)]
    missing = [name for name in BOX if name not in names]
    if 0 < len(missing) < len(BOX):
        raise SourceError(f"{place}: a box has the columns {', '.join(BOX)}, and {', '.join(missing)} is not there: "
                          "give all four or none")
    for name in unknown:
        near = get_close_matches(name, [each for each in COLUMNS if each not in names], 1)
        if near:
            raise SourceError(f"{place}: no column {name!r}: did you mean {near[0]!r}? There are {', '.join(COLUMNS)}")
    if unknown and labelled and "label" not in names:
        raise SourceError(f"{place} has no column label, but {', '.join(map(repr, unknown))}: name the one with the "
                          "class label")
    if unknown:
        remarks.append(f"columns of {place} that are not used: {', '.join(unknown)} (used are {', '.join(COLUMNS)})")


def _row(place: str, line: str, values: dict[str, object]) -> Row:
    where = f"{place} {line}"
    cells: dict[str, str] = {}
    for name in (*COLUMNS, MASK):
        value = values.get(name, "")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise SourceError(f"{where}: {name} is {json.dumps(value)[:40]}: give text")
        cells[name] = str(value)
    path, mask = cells["path"], cells[MASK]
    check_utf8(where, path, cells["label"])
    if not path or "\0" in path:
        raise SourceError(f"{where}: there is no path: give the file name of an image")
    if mask and (suffix(path) in VIDEOS or "\0" in mask):
        raise SourceError(f"{where}: {path} has a mask that is none, or is a video: give the file name of a mask to an "
                          "image, or leave the cell empty")
    return Row(line, path, cells["label"].strip() or None, cells["split"].strip() or None, cells["group"],
               _box(where, path, [values.get(name, "") for name in BOX]), mask)


def _box(where: str, path: str, corners: list[object]) -> Box | None:
    """The box of a row; None where its cells are empty."""
    if all(str(value).strip() == "" for value in corners):
        return None
    try:
        x0, y0, x1, y1 = (float(str(value)) for value in corners)
    except ValueError:
        x0 = y0 = x1 = y1 = math.nan
    if not (0 <= x0 < x1 < math.inf and 0 <= y0 < y1 < math.inf):
        raise SourceError(f"{where}: the box {', '.join(map(str, corners))} is none: give 0 <= x0 < x1 and 0 <= y0 < "
                          "y1 in pixels, or leave all four cells empty")
    if suffix(path) in VIDEOS:
        raise SourceError(f"{where}: {path} is a video, and boxes are for images: leave the box away")
    return x0, y0, x1, y1


def check_utf8(where: str, path: str, label: str) -> None:
    """Raise SourceError if a label has bytes that are not UTF-8, so that no prompt can say it.

    Names of files may have some, and so may a label that is a folder of its path.
    """
    if not is_utf8(label) and label not in path.split("/"):
        raise SourceError(f"{where}: the label {label.encode('utf-8', 'replace').decode()!r} is not text in UTF-8: "
                          "save the file in that encoding (it may be in Windows-1252, as Excel writes CSV)")


class FileList(Source):
    """Names of files on standard input."""

    name = "list of files"
    takes = frozenset({"root", "every", "frames"})

    @staticmethod
    def recognises(text: str) -> bool:
        return text == "-"

    @staticmethod
    def list(text: str, options: SourceOptions) -> Listing:
        """List the files that standard input names, in its order; the class is the folder that a file lies in.

        Where the folders of all classes lie in `train`, `val` and `test`, these are the splits.
        Raises SourceError if nothing is named, or a file twice.
        """
        if sys.stdin.isatty():
            raise SourceError("the source - is a list of files on standard input: give one, as in find pets -name "
                              "'*.jpg' | onceclip extract - pets.zarr ...")
        content = text_of(sys.stdin.buffer.read())
        separator = "\0" if "\0" in content else "\n"
        lines = [(f"line {number}", name.removesuffix("\r") if separator == "\n" else name)
                 for number, name in enumerate(content.split(separator), 1)]
        lines = [(where, name) for where, name in lines if name]
        if not lines:
            raise SourceError("standard input names no files: write one a line, as find new-photos -name '*.jpg' does")
        folders = [posixpath.dirname(posixpath.normpath(name)).split("/") for _, name in lines]
        splits = [SPLIT_FOLDERS.get(folder[-2].lower()) if len(folder) > 1 else None for folder in folders]
        known = all(splits)
        rows = [Row(where, name, folder[-1] or None, split if known else None)
                for (where, name), folder, split in zip(lines, folders, splits, strict=True)]
        return Listing(records_of("standard input", rows, options.root or "."))
