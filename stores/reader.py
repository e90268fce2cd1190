"""Reading a store: lazily, by row, by split or whole, with every checksum checked."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from zarr.errors import ContainsArrayError, GroupNotFoundError

from onceclip.stores.errors import NotAStore, StoreDamaged, StoreError, StoreIncomplete, StoreMismatch
from onceclip.stores.fingerprint import fingerprint
from onceclip.stores.flat import FlatArray
from onceclip.stores.remote import holds_anything, is_remote, local_path, open_remote
from onceclip.stores.schema import ATTRIBUTE, COLUMNS, KIND, SCHEMA, SPLITS, STORED, TODO, get_array, read_whole, unseal
from onceclip.stores.text import TextSet
from onceclip.stores.values import read_rows

PIECE_ROWS = 16384
PARTIAL = ".partial"  # ending of a file that Zarr was writing when its process was killed


@dataclass(frozen=True)
class Table:
    """The columns that say what every row is; all have one entry per row, of whatever state.

    key: paths relative to the root. label: (rows,) int32, position in `Store.classes`, or -1.
    split: (rows,) int8, position in SPLITS, or -1. state: (rows,) int8. digest: (rows, 16) uint8.
    reason: why a row is bad, else empty.
    """

    key: np.ndarray
    label: np.ndarray
    split: np.ndarray
    state: np.ndarray
    digest: np.ndarray
    reason: np.ndarray

    def __len__(self) -> int:
        return len(self.state)


class Store:
    """A store opened for reading.

    encoder: what made the embeddings (a dict with `name`, `fingerprint`, `dim`, ...).
    classes: names, in label order. complete: whether the extraction has finished.
    """

    def __init__(self, path: str, group: zarr.Group) -> None:
        self.path = path
        self.group = group
        self.attributes: dict[str, Any] = unseal(group.attrs[ATTRIBUTE])
        self.encoder: dict[str, Any] = self.attributes["encoder"]
        self.classes: tuple[str, ...] = tuple(self.attributes["classes"])
        self.complete: bool = self.attributes["complete"]
        self._columns: dict[str, np.ndarray] = {}
        self._flats: dict[str, FlatArray | None] = {}

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self.attributes["dim"])

    def array(self, name: str) -> zarr.Array:
        """One of the arrays under `image/`."""
        return get_array(self.group, f"image/{name}")

    def column(self, name: str) -> np.ndarray:
        """One of the columns of the table, read when it is first asked for; also "checksum", one per embedding.

        Raises StoreDamaged if a chunk of it is missing or damaged.
        """
        if name not in self._columns:
            with damage(self.path, f"image/{name}"):
                array = self.array(name) if self._height or self.complete else None
                if array is None:
                    column = np.empty((0, *COLUMNS[name].shape), COLUMNS[name].dtype)
                else:
                    column = read_whole(array) if self.complete else np.asarray(array[...])
            if self.complete and name == "state" and (column == TODO).any():
                raise StoreDamaged(f"{self.path} says that it is complete but has rows still to be encoded: take it "
                                   "from a copy, or delete it and extract again")
            self._columns[name] = column[:self._height]
        return self._columns[name]

    @cached_property
    def _height(self) -> int:
        """Number of rows that all columns have: while a store grows they are resized one after the other."""
        names = [f"image/{name}" for name in (*COLUMNS, "embedding")]
        if not self.complete and not all(name in self.group for name in names):
            return 0  # killed while the arrays were being made
        with damage(self.path):
            lengths = {get_array(self.group, name).shape[0] for name in names}
        if self.complete and len(lengths) > 1:
            raise StoreDamaged(f"{self.path} says that it is complete, but its columns differ in length: take it from "
                               "a copy, or delete it and extract again")
        return min(lengths)

    @cached_property
    def table(self) -> Table:
        """All columns that say what the rows are."""
        return Table(**{name: self.column(name) for name in Table.__dataclass_fields__})

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
        table = self.table
        rows = np.flatnonzero(table.state == STORED)
        order = rows[np.argsort(table.key[rows])]
        entries = [[str(table.key[row]), table.digest[row].tobytes().hex(), int(table.split[row]),
                    self.classes[table.label[row]] if table.label[row] >= 0 else None] for row in order]
        return fingerprint({"encoder": self.encoder["fingerprint"], "rows": entries})

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
        name: "embedding", or "view" for (n, views, dim).
        Raises StoreDamaged if bytes are missing, do not match their checksum, or are not finite.
        """
        array, rows = self.array(name), self.rows(labelled=False) if rows is None else np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        with damage(self.path, f"image/{name}"):
            checksums = (lambda: self.column("checksum")) if name == "embedding" else None
            result = read_rows(array, self._flat(name), rows, checksums)
        # A chunk that is missing where Zarr reads it gives rows of fill values: NaN from the first number on.
        first: Any = (slice(None), *(0,) * (result.ndim - 1))
        absent = (self.column("state")[rows] != STORED) | ~np.isfinite(result[first])
        if absent.any():
            row = rows[np.argmax(absent)]
            raise StoreDamaged(f"{self.path}: image/{name} has no values for row {row} ({self.column('key')[row]}): "
                               f"bad images have none; for others, `onceclip verify {self.path}` says more")
        return result

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
        return "image/view" in self.group

    @property
    def texts(self) -> list[str]:
        """Names of the text sets."""
        return sorted(name for name, entry in self.attributes["texts"].items() if entry["fingerprint"])

    def text(self, name: str = "default") -> TextSet:
        """One text set by name.

        Raises StoreIncomplete if there is none, StoreMismatch if another encoder made it.
        """
        if name not in self.texts:
            known = ", ".join(self.texts) or "none"
            raise StoreIncomplete(f"{self.path} has no text set {name!r} (there are: {known}): "
                                  "run `onceclip extract` to embed the class prompts")
        with damage(self.path, f"text/{name}"):
            text = TextSet.read(self.group[f"text/{name}"])  # type: ignore[arg-type]
        if text.encoder != self.encoder["fingerprint"]:
            raise StoreMismatch(f"{self.path}: text set {name!r} was made by encoder {text.encoder}, the images by "
                                f"{self.encoder['fingerprint']}: embed the prompts again with the store's encoder")
        if text.fingerprint != self.attributes["texts"][name]["fingerprint"]:
            raise StoreDamaged(f"{self.path}: text/{name} is not the set that the store's attributes name: take the "
                               "store from a copy, or delete it and extract again")
        return text

    def require_complete(self) -> None:
        """Raise StoreIncomplete if rows are still to be encoded."""
        if not self.complete:
            missing = int((self.column("state") == TODO).sum())
            remedy = ("delete it and run `onceclip import` again" if self.encoder.get("imported") else
                      "run the same `onceclip extract` command again to finish it")
            raise StoreIncomplete(f"{self.path} is unfinished ({missing} of {self._height} images are still to be "
                                  f"stored): {remedy}")

    def require_encoder(self, other: str, what: str) -> None:
        """Raise StoreMismatch unless something (`what`) was made by this store's encoder (fingerprint `other`)."""
        mine = self.encoder["fingerprint"]
        if other != mine:
            raise StoreMismatch(f"{what} belongs to encoder {other}, {self.path} to {mine} "
                                f"({self.encoder['name']}): use a store made by the same encoder")


def open_store(path: str) -> Store:
    """Open a store for reading. path: a folder, or any fsspec URL.

    Raises NotAStore if there is none, StoreError if a newer version wrote it.
    """
    group = open_group(path)
    attributes: Any = group.attrs.get(ATTRIBUTE)
    if not isinstance(attributes, dict) or attributes.get("kind") != KIND:
        raise NotAStore(f"{path} is a Zarr group but not a onceclip store: make one with `onceclip extract` or "
                        "`onceclip import`")
    with damage(str(path), "its description"):
        if attributes["schema"] > SCHEMA:
            raise StoreError(f"{path} has schema {attributes['schema']}, this version reads up to {SCHEMA}: "
                             "install a newer onceclip")
        return Store(str(path), group)


def looks_like_store(path: str) -> bool:
    """Whether a path is a Zarr group or a URL rather than images; says nothing about its soundness."""
    return is_remote(path) or os.path.isfile(os.path.join(local_path(path), "zarr.json"))


def occupied(path: str) -> bool:
    """Whether anything but an empty folder stands at a path or URL."""
    if is_remote(path):
        return holds_anything(path)
    path = local_path(path)
    if os.path.isdir(path):
        return any(not name.endswith(PARTIAL) for name in os.listdir(path))
    return os.path.lexists(path)


def open_group(path: str, mode: Any = "r") -> zarr.Group:
    """Open the Zarr group at a path or URL.

    Raises NotAStore if there is none, StoreError if its storage cannot be reached.
    """
    path = str(path)
    try:
        if is_remote(path):
            return open_remote(path, mode)
        return zarr.open_group(local_path(path), mode=mode, zarr_format=3)
    except (FileNotFoundError, NotADirectoryError, GroupNotFoundError, ContainsArrayError) as error:
        raise NotAStore(f"{path} is not a store (no Zarr group there): make one with `onceclip extract FOLDER "
                        f"{path} --model NAME` or give the path of one") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreDamaged(f"{path} has a zarr.json that cannot be read ({error}): the store is damaged; take it from "
                           "a copy, or delete it and extract again") from error


@contextmanager
def damage(path: str, where: str = "image") -> Iterator[None]:
    """Turn what Zarr raises for bad bytes into StoreDamaged."""
    try:
        yield
    except StoreError:
        raise
    except (ValueError, TypeError, OSError, KeyError, RuntimeError) as error:
        raise StoreDamaged(f"{path}: {where} cannot be read ({error}): the store is damaged; take it from a copy, or "
                           "delete it and extract again") from error
