"""Tables of other programs: Parquet files, data sets that Hugging Face's `datasets` saved, and Lance.

Everything is read by pyarrow as data: no loading script runs, and types that a file brings along are not imported.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from onceclip.adapters.errors import unknown
from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.files import as_source_error, is_url, local_path, read_json, remote_folder, suffix
from onceclip.pipeline.sources.folder import SPLIT_FOLDERS
from onceclip.pipeline.sources.record import natural_order
from onceclip.pipeline.sources.table_file import ARROW, LANCE, PARQUET, TableFile
from onceclip.pipeline.words import listing
from onceclip.stores.identity import line_of

if TYPE_CHECKING:
    import pyarrow

OURS = b"onceclip"  # metadata of what `onceclip export` wrote
_DATASET, _SPLITS_OF = "state.json", "dataset_dict.json"  # of `save_to_disk`: one data set, or one folder per split
_PIECE = re.compile(r"-?\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class ArrowTable:
    """Files of equal columns. place: what messages call it."""

    place: str
    files: tuple[TableFile, ...]

    @cached_property
    def schema(self) -> pyarrow.Schema:
        """Names and types of the columns of all files. Raises SourceError where files differ or a name stands twice."""
        first, *others = [file.schema() for file in self.files]
        for file, other in zip(self.files[1:], others, strict=True):
            if other != first:
                raise SourceError(f"{file.place} has other columns than {self.files[0].place}: give files of one table")
        if twice := sorted({name for name in first.names if first.names.count(name) > 1}):
            raise SourceError(f"{self.place} has {listing(twice)} more than once among its columns: give each its name")
        return first

    @cached_property
    def features(self) -> dict[str, Any]:
        """What `datasets` says of the columns, by name."""
        said = self.metadata(b"huggingface").get("info")
        features = said.get("features") if isinstance(said, dict) else None
        return {name: each for name, each in features.items() if isinstance(each, dict)} \
            if isinstance(features, dict) else {}

    def metadata(self, name: bytes) -> dict[str, Any]:
        """A JSON object in the metadata of the table; empty if there is none."""
        try:
            values = read_json((self.schema.metadata or {}).get(name, b"{}").decode())
        except ValueError as error:
            raise SourceError(f"{self.place}: its metadata {name.decode()} is not JSON ({error}): write the table "
                              "anew, or without metadata") from error
        return values if isinstance(values, dict) else {}

    def chosen(self, given: Mapping[str, str], roles: Sequence[str]) -> dict[str, str]:
        """The column of each role that has one: that which is given for it, or the one of its name.

        Raises SourceError for a role or column that does not exist.
        """
        names = self.schema.names
        for role, name in given.items():
            if role not in roles:
                raise SourceError(f"--column {role}={name}: {unknown('role', role, roles)}")
            if name not in names:
                raise SourceError(f"{self.place}: {unknown('column', name, names)}")
        return {role: given.get(role, role) for role in roles if role in given or role in names}

    def class_names(self, column: str) -> list[str]:
        """Names of the classes that the numbers of a column stand for; none if nothing says it."""
        feature = self.features.get(column, {})
        names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
        return [line_of(str(name)) for name in names] if isinstance(names, list) else []

    def words(self, column: str, values: pyarrow.Array) -> list[str]:
        """A column of labels, splits or keys as text; empty for nothing, and for class numbers below 0.

        Raises SourceError for values that are neither text nor whole numbers, and for numbers without a class.
        """
        from pyarrow import types

        kind, names = values.type, self.class_names(column)
        if types.is_dictionary(kind):
            return self.words(column, values.dictionary_decode())
        found = values.to_pylist()
        if types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind):
            return ["" if each is None else line_of(each) for each in found]
        if not types.is_integer(kind):
            raise SourceError(f"{self.place}: column {column!r} is {kind}: it must be text or whole numbers; "
                              f"--column names another ({listing(self.schema.names)})")
        if names and any(each is not None and each >= len(names) for each in found):
            raise SourceError(f"{self.place}: column {column!r} has class {max(each or 0 for each in found)}, but "
                              f"names of {len(names)} classes: correct the table")
        return ["" if each is None or each < 0 else names[each] if names else str(each) for each in found]

    def split_of(self, file: TableFile) -> str | None:
        """The split of a file: train, val or test, or None where nothing is said of splits.

        Raises SourceError for a file of another split beside those.
        """
        splits = {each.split for each in self.files}
        if len(splits) == 1 and file.split.lower() not in SPLIT_FOLDERS:
            return None
        if file.split.lower() not in SPLIT_FOLDERS:
            raise SourceError(f"{self.place} has {file.split or os.path.basename(file.place)!r} beside "
                              f"{listing(sorted(splits - {file.split}))}: the splits are train, val and test; name the "
                              "files or the folder of one")
        return SPLIT_FOLDERS[file.split.lower()]


def is_table(text: str) -> bool:
    """Whether a place is a table of one of the kinds, by its name and the files in it."""
    if suffix(text) in (PARQUET, LANCE) or (is_url(text) and not suffix(text)):
        return True
    place = local_path(text)
    return not is_url(text) and os.path.isdir(place) and bool(
        os.path.isdir(os.path.join(place, "_versions")) or glob.glob(glob.escape(place) + "/**/*" + PARQUET,
                                                                     recursive=True)
        or any(os.path.isfile(os.path.join(place, name)) for name in (_DATASET, _SPLITS_OF)))


def table_at(text: str) -> ArrowTable:
    """The table at a place: a Parquet file, several by a pattern, or a folder: of them, of `datasets`, or of Lance.

    text: also the URL of Parquet files, or of a folder with them, such as hf://datasets/ORG/NAME.
    Raises SourceError if there is none, or it is of a kind that is not read.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise SourceError(f"{text} cannot be read without pyarrow: pip install 'onceclip[parquet]'") from error
    place = text if is_url(text) else local_path(text)
    if suffix(place) == LANCE or os.path.isdir(os.path.join(place, "_versions")):
        return ArrowTable(text, (TableFile(place, LANCE),))
    for name, read in ((_SPLITS_OF, _of_splits), (_DATASET, _of_dataset)):
        if os.path.isfile(os.path.join(place, name)):
            if not (files := tuple(read(place))):
                raise SourceError(f"{text} has no rows: save a data set that has some")
            return ArrowTable(text, files)
    found = _parquet_files(text, place)
    if not found:
        if not is_url(text) and not os.path.exists(place) and not glob.has_magic(place):
            raise SourceError(f"{text} does not exist: correct the name")
        raise SourceError(f"{text} has no {PARQUET} file and is no data set of `save_to_disk`: give Parquet files, or "
                          "a folder of one of these")
    base = place if len(found) > 1 or found[0] != place else os.path.dirname(place)
    base = base[:min([base.find(mark) for mark in "*?[" if mark in base], default=len(base))]
    inner = [each[len(base):] if each.startswith(base) else os.path.basename(each) for each in found]
    tables = tuple(TableFile(each, PARQUET, _split_in(name)) for each, name in zip(found, inner, strict=True))
    folders = {"/".join(part for part in os.path.dirname(name).strip("/").split("/")
                        if part != "data" and part.lower() not in SPLIT_FOLDERS) for name in inner}
    if len(folders) > 1:
        named = listing(sorted(folder or "." for folder in folders))
        raise SourceError(f"{text} has several tables, in the folders {named}: name one of them")
    return ArrowTable(text, tables)


def _parquet_files(text: str, place: str) -> list[str]:
    if not is_url(text):
        pattern = place if not os.path.isdir(place) else f"{glob.escape(place)}/**/*{PARQUET}"
        return [place] if os.path.isfile(place) else sorted(glob.glob(pattern, recursive=True), key=natural_order)
    with as_source_error(text):
        files, path = remote_folder(text)
        found = files.glob(path) if glob.has_magic(path) else [path] if suffix(path) == PARQUET else files.find(path)
    return [text if each == path else str(files.unstrip_protocol(each))
            for each in sorted(found, key=natural_order) if suffix(each) == PARQUET]


def _split_in(name: str) -> str:
    """The split that a path of a Parquet file names, such as data/train-00000-of-00001.parquet."""
    stem = _PIECE.sub("", os.path.splitext(name)[0])
    named = {word for word in re.split("[^a-z]+", stem.lower()) if word in SPLIT_FOLDERS}
    return named.pop() if len(named) == 1 else ""


def _of_splits(folder: str) -> Iterator[TableFile]:
    said = _json(os.path.join(folder, _SPLITS_OF)).get("splits")
    if not isinstance(said, list) or not said or not all(map(_is_name, said)):
        raise SourceError(f"{os.path.join(folder, _SPLITS_OF)} names no splits: save the data set anew")
    for split in said:
        yield from _of_dataset(os.path.join(folder, split), split)


def _of_dataset(folder: str, split: str = "") -> Iterator[TableFile]:
    state = _json(os.path.join(folder, _DATASET))
    files: list[Any] = [each.get("filename") if isinstance(each, dict) else None
                        for each in state.get("_data_files") or []]
    if "_data_files" not in state or not all(map(_is_name, files)) or state.get("_indices_files"):
        raise SourceError(f"{os.path.join(folder, _DATASET)} names no files beside it, or an order of rows of its own: "
                          "save the data set anew with `save_to_disk`")
    named = state.get("_split")
    for file in files:
        yield TableFile(os.path.join(folder, file), ARROW, split or (named if isinstance(named, str) else ""))


def _is_name(value: object) -> bool:
    """Whether a value is the name of something directly in a folder, and leads nowhere else."""
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & set("/\\\0")


def _json(place: str) -> dict[str, Any]:
    try:
        with open(place, encoding="utf-8") as file:
            values = read_json(file.read())
    except (OSError, ValueError) as error:
        raise SourceError(f"{place} cannot be read ({error}): save the data set anew") from error
    return values if isinstance(values, dict) else {}
