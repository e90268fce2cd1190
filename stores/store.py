"""Reading a store: lazily, by row, by split or whole, with every checksum checked."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from shlex import quote
from typing import Any

import numpy as np
import zarr

from onceclip.stores.errors import NotAStore, StoreDamaged, StoreError, StoreIncomplete, StoreMismatch
from onceclip.stores.flat_files import FlatArray, row_checksums
from onceclip.stores.location import damage, open_group
from onceclip.stores.rows import Checksums, column_checksum, read_column, read_rows
from onceclip.stores.schema import (
    ATTRIBUTE,
    COLUMNS,
    KIND,
    SCHEMA,
    SPLITS,
    STORED,
    TABLE_ROWS,
    TODO,
    Column,
    Output,
    checksum_name,
    fits,
    get_array,
    read_whole,
    require_chunks,
    require_sound,
    unseal,
)
from onceclip.stores.table import Content, Table, content_of
from onceclip.stores.text_set import TextSet

PIECE_ROWS = 16384


class Store:
    """A store opened for reading.

    encoder: what made the embeddings (a dict with `name`, `fingerprint`, `dim`, ...).
    classes: names, in label order. complete: whether the extraction has finished.
    outputs: what there is per image beside the embedding, by name.

    Example:
        >>> rows = store.rows("test")
        >>> store.embeddings(rows[:5]).shape, store.column("label")[rows[:5]].shape
        ((5, 64), (5,))
    """

    def __init__(self, path: str, group: zarr.Group) -> None:
        self.path = path
        self.group = group
        self.attributes: dict[str, Any] = unseal(group.attrs[ATTRIBUTE])
        require_sound(self.attributes)
        self.encoder: dict[str, Any] = self.attributes["encoder"]
        self.classes: tuple[str, ...] = tuple(self.attributes["classes"])
        self.complete: bool = self.attributes["complete"]
        self.outputs = {name: Output.of(values) for name, values in self.attributes.get("outputs", {}).items()}
        self._arrays: dict[str, zarr.Array] = {}
        self._columns: dict[str, np.ndarray] = {}
        self._flats: dict[str, FlatArray | None] = {}
        self._checksums: dict[str, Checksums | None] = {}
        self._whole: set[str] = set()

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self.attributes["dim"])

    def array(self, name: str) -> zarr.Array:
        """One of the arrays under `image/`.

        Raises KeyError if there is none, StoreDamaged if its description is not that of this store's.
        """
        if name not in self._arrays:
            array = self._opened(f"image/{name}")
            if array is None:
                raise KeyError(name)
            described = self.row_arrays.get(name)
            with damage(self.path, f"image/{name}"):
                if described and (array.shape[1:] != described.shape or not fits(array.dtype, described.dtype)):
                    raise ValueError(f"it has rows of shape {array.shape[1:]} and type {array.dtype}")
            self._arrays[name] = array
        return self._arrays[name]

    def _opened(self, name: str) -> zarr.Array | None:
        """An array of the store by its path; None if there is none."""
        with damage(self.path, name):
            try:
                return get_array(self.group, name)
            except KeyError:
                return None

    def encoder_array(self, name: str) -> np.ndarray:
        """One of the encoder's own arrays, such as "projection".

        Raises StoreIncomplete if it was not stored.
        """
        array = self._opened(f"encoder/{name}")
        if array is None:
            raise StoreIncomplete(f"{self.path} has no encoder/{name}: extract into a new store with the option that "
                                  "stores it")
        with damage(self.path, f"encoder/{name}"):
            return read_whole(array)

    def column(self, name: str) -> np.ndarray:
        """One of the columns of the table, or of the checksums of rows, read when it is first asked for.

        Raises StoreDamaged if a chunk of it is missing or damaged.
        """
        if name not in self._columns:
            column = self._read(name, 0, self._height)
            with damage(self.path, f"image/{name}"):
                if name in self._recorded and column_checksum([column]) != self._recorded[name]:
                    raise ValueError("its chunks are not in their places")
                if self.complete and name == "label" and (column >= len(self.classes)).any():
                    raise ValueError("it has labels of classes that the store does not name")
            self._columns[name] = column
        return self._columns[name]

    def column_checksums(self) -> dict[str, int]:
        """CRC-32C of every column as a whole, made anew in bounded memory: chunks alone do not know their places."""
        names = [name for name, described in self.row_arrays.items() if not described.values and self.has(name)]
        return {name: column_checksum(part for part, in self.parts(name)) for name in names}

    @cached_property
    def _recorded(self) -> dict[str, Any]:
        """The checksums of columns that were recorded when the store was finished."""
        recorded = self.attributes.get("columns", {}) if self.complete else {}
        # A store that an older version went on with has those of what it was before.
        return recorded if recorded.get("of") == self.fingerprint else {}

    def misplaced_columns(self) -> list[str]:
        """Names of the columns whose chunks are not in their places, found out in bounded memory."""
        found = self.column_checksums() if self._recorded else {}
        return [name for name, each in found.items() if self._recorded.get(name, each) != each]

    def part(self, name: str, where: slice) -> np.ndarray:
        """Consecutive rows of a column, which is not kept in memory.

        Raises StoreDamaged if a chunk of them is missing or damaged.
        """
        if name in self._columns:
            return self._columns[name][where]
        start, stop, _ = where.indices(self._height)
        return self._read(name, start, max(start, stop))

    def parts(self, *names: str, size: int = TABLE_ROWS) -> Iterator[tuple[np.ndarray, ...]]:
        """Go through some columns in bounded memory, `size` rows of each at a time.

        Raises StoreDamaged if a chunk of them is missing or damaged.

        Example:
            >>> sum(int((label == 0).sum()) for label, in store.parts("label"))
            40
        """
        for start in range(0, self._height, size):
            yield tuple(self.part(name, slice(start, start + size)) for name in names)

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        with damage(self.path, f"image/{name}"):
            described = COLUMNS.get(name, COLUMNS["checksum"])
            if not self._height and not self.complete:
                return np.empty((0, *described.shape), described.dtype)
            if described.optional and not self.has(name):
                return np.full(stop - start, described.fill, object)
            array, flat = self.array(name), self._flat(name) if self.complete else None
            if self.complete and flat is None and name not in self._whole:
                require_chunks(array)
                self._whole.add(name)
            column = np.asarray(array[start:stop]) if flat is None else read_column(flat, start, stop)
        if self.complete and name == "state" and (column == TODO).any():
            raise StoreDamaged(f"{self.path} says that it is complete but has rows still to be encoded: take it "
                               "from a copy, or delete it and extract again")
        return column

    def has(self, name: str) -> bool:
        """Whether there is an array of a name under `image/`."""
        with suppress(KeyError):
            self.array(name)
        return name in self._arrays

    @property
    def row_arrays(self) -> dict[str, Column]:
        """What is under `image/` by name, every one with an entry per row."""
        described = dict(COLUMNS)
        for name, output in {"embedding": Output((self.dim,), ("dim",)), **self.outputs}.items():
            described[name] = Column(self.attributes["dtype"], np.nan, True, output.shape, output.dimensions,
                                     values=True)
            described[checksum_name(name)] = COLUMNS["checksum"]
        return described

    @cached_property
    def _height(self) -> int:
        """Number of rows that all columns have: while a store grows they are resized one after the other."""
        names = [name for name, described in self.row_arrays.items() if not described.optional or self.has(name)]
        if not self.complete and not all(map(self.has, names)):
            return 0  # killed while the arrays were being made
        with damage(self.path):
            lengths = {self.array(name).shape[0] for name in names}
        if self.complete and len(lengths) > 1:
            raise StoreDamaged(f"{self.path} says that it is complete, but its columns differ in length: take it from "
                               "a copy, or delete it and extract again")
        return min(lengths)

    @cached_property
    def table(self) -> Table:
        """All columns that say what the rows are."""
        return Table(**{name: self.column(name) for name in Table.__dataclass_fields__})

    def tables(self, size: int = TABLE_ROWS) -> Iterator[Table]:
        """Go through the table in bounded memory, `size` rows at a time."""
        names = tuple(Table.__dataclass_fields__)
        return (Table(**dict(zip(names, part, strict=True))) for part in self.parts(*names, size=size))

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the content: the encoder, and key, digest, class and split of every stored row.

        It is kept in the attributes of a complete store.
        """
        if self.complete:
            return str(self.attributes["fingerprint"])
        return self.content_fingerprint()

    def content_fingerprint(self) -> str:
        """The fingerprint, made anew from the columns."""
        return self.content().fingerprint

    def content(self) -> Content:
        """What the stored rows are, found out anew from the columns in bounded memory."""
        return content_of(self.parts, self._height, self.encoder["fingerprint"], self.classes)

    def rows(self, split: str | None = None, labelled: bool = True) -> np.ndarray:
        """Positions of the stored rows, of one split or of all: (n,) int64.

        labelled: leave out rows without a class.
        Raises StoreIncomplete if the extraction has not finished.
        """
        self.require_complete()
        chosen = self.column("state") == STORED
        if split is not None:
            if split not in SPLITS:
                raise StoreError(f"no split {split!r}: there are: {', '.join(SPLITS)}")
            chosen &= self.column("split") == SPLITS.index(split)
        if labelled:
            chosen &= self.column("label") >= 0
        return np.flatnonzero(chosen)

    def embeddings(self, rows: np.ndarray | None = None, name: str = "embedding") -> np.ndarray:
        """Raw embeddings of some rows (all stored ones by default), in the order given: (n, dim), stored dtype.

        rows: positions, or a mask over all rows.
        name: "embedding", or one of the outputs, such as "view" for (n, views, dim).
        Raises StoreIncomplete if there is no such output, StoreDamaged if bytes are missing, do not match their
        checksum, or are not finite.
        """
        if not self.has(name):
            raise StoreIncomplete(f"{self.path} has no image/{name} (there are: embedding"
                                  f"{''.join(f', {each}' for each in self.outputs)}): extract into a new store with "
                                  "the option that stores it")
        array, rows = self.array(name), self.rows(labelled=False) if rows is None else np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        with damage(self.path, f"image/{name}"):
            result, whole = read_rows(array, self._flat(name), rows, self._checksums_of(name))
        stored = self.column("state")[rows] == STORED
        if not whole or not stored.all():
            row = rows[np.argmin(stored & np.isfinite(result.reshape(len(rows), -1)[:, 0]))]
            raise StoreDamaged(f"{self.path}: image/{name} has no values for row {row} ({self.column('key')[row]}): "
                               f"bad images have none; for others, `onceclip verify {self.path}` says more")
        return result

    def checked(self, name: str, where: slice) -> np.ndarray:
        """Consecutive rows of the embeddings or of an output as they are, bad rows too: (rows, ...).

        Raises StoreDamaged if bytes are missing or do not match their checksum.
        """
        with damage(self.path, f"image/{name}, rows {where.start} to {where.stop - 1}"):
            checksums = self._checksums_of(name)
            if checksums is None:
                require_chunks(self.array(name))
            return read_rows(self.array(name), self._flat(name), np.arange(where.start, where.stop), checksums)[0]

    def _checksums_of(self, name: str) -> Checksums | None:
        if name not in self._checksums:
            column = checksum_name(name)
            self._checksums[name] = Checksums(self.array(name), partial(self.column, column)) if self.has(column) \
                else None
        return self._checksums[name]

    def checksums(self, name: str, where: slice) -> np.ndarray:
        """CRC-32C of consecutive rows of the embeddings or of an output: (rows,) uint32."""
        column = checksum_name(name)
        if self.has(column):
            return self.part(column, where)
        with damage(self.path, f"image/{name}"):
            return row_checksums(np.asarray(self.array(name)[where]))

    def _flat(self, name: str) -> FlatArray | None:
        if name not in self._flats:
            self._flats[name] = FlatArray.of(self.array(name))
        return self._flats[name]

    def pieces(self, rows: np.ndarray, size: int = PIECE_ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Go through the embeddings of some rows in bounded memory: (rows, embeddings) of `size` rows at a time.

        The next piece is read while the present one is used.
        """
        pieces = [rows[start:start + size] for start in range(0, len(rows), size)]
        with ThreadPoolExecutor(1) as reader:
            ahead = deque(reader.submit(self.embeddings, piece) for piece in pieces[:1])
            for number, piece in enumerate(pieces):
                ahead.extend(reader.submit(self.embeddings, each) for each in pieces[number + 1:number + 2])
                yield piece, ahead.popleft().result()

    @property
    def has_views(self) -> bool:
        """Whether augmented versions of the images are stored."""
        return self.has("view")

    @property
    def texts(self) -> list[str]:
        """Names of the text sets."""
        return sorted(name for name, entry in self.attributes["texts"].items() if entry["fingerprint"])

    def text_fingerprint(self, name: str = "default") -> str:
        """Identity of a text set, without reading it.

        Raises StoreIncomplete if there is none.
        """
        if name not in self.texts:
            known = ", ".join(self.texts) or "none"
            without = "" if self.texts else "; linear-probe and onceclip.FewShotClassifier do without"
            raise StoreIncomplete(f"{self.path} has no text set {name!r} (there are: {known}): "
                                  f"`onceclip text {quote(self.path)} --name {quote(name)}` embeds one{without}")
        return str(self.attributes["texts"][name]["fingerprint"])

    def text(self, name: str = "default") -> TextSet:
        """One text set by name.

        Raises StoreIncomplete if there is none, StoreMismatch if another encoder made it.
        """
        expected = self.text_fingerprint(name)
        with damage(self.path, f"text/{name}"):
            place = self.attributes["texts"][name].get("place", name)
            text = TextSet.read(self.group[f"text/{place}"])  # type: ignore[arg-type]
        if text.encoder != self.encoder["fingerprint"]:
            raise StoreMismatch(f"{self.path}: text set {name!r} was made by encoder {text.encoder}, the images by "
                                f"{self.encoder['fingerprint']}: embed the prompts again with the store's encoder")
        if text.fingerprint != expected:
            raise StoreDamaged(f"{self.path}: text/{name} is not the set that the store's attributes name: take the "
                               "store from a copy, or delete it and extract again")
        return text

    def require_complete(self) -> None:
        """Raise StoreIncomplete if rows are still to be encoded."""
        if not self.complete:
            missing = int((self.column("state") == TODO).sum())
            command = ("compact" if self.attributes.get("compaction") else
                       "import" if self.encoder.get("imported") else "extract")
            raise StoreIncomplete(f"{self.path} is unfinished ({missing} of {self._height} images are still to be "
                                  f"stored): run the same `onceclip {command}` command again to finish it"
                                  f"{', or delete it' if command == 'compact' else ''}")

    def require_encoder(self, other: str, what: str) -> None:
        """Raise StoreMismatch unless something (`what`) was made by this store's encoder (fingerprint `other`)."""
        mine = self.encoder["fingerprint"]
        if other != mine:
            raise StoreMismatch(f"{what} belongs to encoder {other}, {self.path} to {mine} "
                                f"({self.encoder['name']}): use a store made by the same encoder")


def open_store(path: str | os.PathLike[str]) -> Store:
    """Open a store for reading. path: a folder, or any fsspec URL.

    Raises NotAStore if there is none, StoreError if a newer version wrote it.

    Example:
        >>> store = onceclip.open_store("pets.zarr")
        >>> store.classes
        ('cat', 'dog', 'fox', 'rabbit')
    """
    if not isinstance(path, str | os.PathLike):
        raise NotAStore(f"{path!r} is no path: give the path or URL of a store")
    group = open_group(str(path))
    attributes: Any = group.attrs.get(ATTRIBUTE)
    if not isinstance(attributes, dict) or attributes.get("kind") != KIND:
        raise NotAStore(f"{path} is a Zarr group but not a onceclip store: make one with `onceclip extract` or "
                        "`onceclip import`")
    with damage(str(path), "its description"):
        if attributes["schema"] > SCHEMA:
            raise StoreError(f"{path} has schema {attributes['schema']}, this version reads up to {SCHEMA}: "
                             "install a newer onceclip")
        return Store(str(path), group)
