"""Features in tables: Parquet files, folders that Hugging Face's `datasets` saved, and Lance, row after row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from onceclip.pipeline.errors import ArrayError
from onceclip.pipeline.extraction.features import (
    Features,
    imported_encoder,
    keys_of,
    labels_of,
    recorded_encoder_of,
    single,
    splits_of,
)
from onceclip.pipeline.extraction.text_arrays import text_sets_of
from onceclip.pipeline.sources.arrow_files import OURS, ArrowTable, table_at
from onceclip.pipeline.sources.table_file import WIDEST
from onceclip.pipeline.words import class_remarks, listing
from onceclip.stores.identity import DIGEST_BYTES
from onceclip.stores.rows import unusable_rows

ROLES = ("embedding", "key", "label", "split", "group", "digest")


def table_features(source: str, encoder: str | None, text_sets: Mapping[str, str | Path],
                   columns: Mapping[str, str]) -> Features:
    """What a table holds, in bounded memory but for keys and labels.

    source: as of `table_at`. columns: names of columns by role, where they are not called as it. encoder: name of what
    made them; without one, what `onceclip export` wrote of it counts, else only equal files as the same encoder's.
    text_sets: files by name; beside them those that `onceclip export` wrote beside the table.
    Raises SourceError if the table cannot be read, ArrayError if its columns do not fit.
    """
    table = table_at(source)
    chosen = table.chosen(columns, ROLES)
    if "embedding" not in chosen:
        raise ArrayError(f"{source} has no column `embedding` (it has: {', '.join(table.schema.names)}): name it with "
                         "--column embedding=NAME")
    rows = _Rows(table, chosen)
    ours = table.metadata(OURS)
    remarks = list[str]()
    if ignored := [name for name in table.schema.names if name not in chosen.values()]:
        remarks.append(f"columns left out: {listing(ignored)}")
    names = ours.get("class_names") or table.class_names(chosen.get("label", ""))
    arrays = {"label": np.array(rows.label, object), **({"class_names": np.array(names)} if names else {})}
    if not any(rows.label):
        arrays.pop("label")
    label, classes = labels_of(arrays, len(rows.label), source, remarks)
    info = (recorded_encoder_of(ours, rows.dim, source) if encoder is None else None) or imported_encoder(
        encoder, rows.dim, rows.content.hexdigest())
    split = np.array(rows.split, np.int8)
    return Features(
        info, rows.dtype, keys_of(rows.key, len(rows.label), source), label, split, classes,
        rows.reader(), group=np.array(rows.group, object),
        digest=np.frombuffer(bytes(rows.digest), np.uint8).reshape(-1, DIGEST_BYTES) if rows.digest else None,
        texts=text_sets_of(source, text_sets, classes, info, ours),
        remarks=[*remarks, *class_remarks(dict.fromkeys(classes))])


@dataclass
class _Rows:
    """What a first pass over a table finds: all but the embeddings, which it checks."""

    table: ArrowTable
    chosen: Mapping[str, str]
    dim: int = 0
    dtype: str = "float32"
    label: list[str] = field(default_factory=list)
    key: list[str] = field(default_factory=list)
    split: list[int] = field(default_factory=list)
    group: list[str] = field(default_factory=list)
    digest: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.content, usable = blake2b(digest_size=DIGEST_BYTES), False
        exported = self.table.metadata(OURS)  # has the split of every row that has one, whatever its file is called
        for file in self.table.files:
            named = None if exported else self.table.split_of(file)
            for batch in file.batches(list(self.chosen.values())):
                values = self._embeddings(batch.column(self.chosen["embedding"]))
                usable |= bool((unusable_rows(values) == "").any())
                self.content.update(np.ascontiguousarray(values).tobytes())
                words = {role: self.table.words(name, batch.column(name)) for role, name in self.chosen.items()
                         if role != "embedding"}
                empty = [""] * len(values)
                self.label += words.get("label", empty)
                self.key += words.get("key", [])
                self.group += words.get("group", empty)
                self.split += splits_of([each or named or "" for each in words.get("split", empty)],
                                        f"{self.table.place}: column {self.chosen.get('split')!r}").tolist()
                for each in words.get("digest", []):
                    self.digest += self._digest(each)
        if not usable:
            raise ArrayError(f"{self.table.place}: no row of {self.chosen['embedding']!r} has an embedding that is not "
                             "zeros: give a table that has some")

    def _embeddings(self, column: Any) -> np.ndarray:
        """Rows (rows, dim) of a column of lists; all batches must be as the first."""
        from pyarrow import types

        place, name, before = self.table.place, self.chosen["embedding"], len(self.label)
        column = getattr(column, "storage", column)  # a type of its own is read as what it is made of
        kind = column.type
        fixed = types.is_fixed_size_list(kind)
        if not (fixed or types.is_list(kind) or types.is_large_list(kind)) or not types.is_floating(kind.value_type):
            raise ArrayError(f"{place}: column {name!r} is {kind}: embeddings are lists of floating-point numbers")
        lengths = {kind.list_size} if fixed else set(column.value_lengths().unique().to_pylist())
        if column.null_count or len(lengths - {self.dim} if self.dim else lengths) > bool(not self.dim):
            raise ArrayError(f"{place}: column {name!r} has no embedding, or one of another length, in rows {before} "
                             f"to {before + len(column) - 1}: leave such rows out")
        if not len(column):
            return np.zeros((0, self.dim), np.float32)
        self.dim = self.dim or int(lengths.pop())
        if not 0 < self.dim <= WIDEST:
            raise ArrayError(f"{place}: column {name!r} has lists of {self.dim:,} numbers: embeddings have 1 to "
                             f"{WIDEST:,}")
        flat = column.flatten()
        values = single(flat.to_numpy(zero_copy_only=False).reshape(-1, self.dim))
        odd = np.flatnonzero(unusable_rows(values) == "not finite")
        if len(odd):
            raise ArrayError(f"{place}: row {before + odd[0]} of column {name!r} has NaN, infinity or numbers beyond "
                             "float32: leave such rows out")
        self.dtype = str(values.dtype)
        return values

    def _digest(self, text: str) -> bytes:
        try:
            found = bytes.fromhex(text)
        except ValueError:
            found = b""
        if len(found) != DIGEST_BYTES:
            raise ArrayError(f"{self.table.place}: column {self.chosen['digest']!r} holds {text!r}: digests are "
                             f"{2 * DIGEST_BYTES} hexadecimal digits, or leave the column out")
        return found

    def reader(self) -> Any:
        """A function that gives the embeddings of consecutive slices of the rows, read anew."""
        pieces, left = self._pieces(), np.zeros((0, self.dim), self.dtype)

        def values(rows: slice) -> dict[str, np.ndarray]:
            nonlocal left
            parts, size = [left], len(left)
            while size < rows.stop - rows.start:
                parts.append(next(pieces))
                size += len(parts[-1])
            together = np.concatenate(parts)
            left = together[rows.stop - rows.start:]
            return {"embedding": together[:rows.stop - rows.start]}

        return values

    def _pieces(self) -> Iterator[np.ndarray]:
        name = self.chosen["embedding"]
        for file in self.table.files:
            for batch in file.batches([name]):
                yield self._embeddings(batch.column(name))
