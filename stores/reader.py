"""Reading a store: lazily, by row, by split or whole, with every checksum checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from zarr.errors import ContainsArrayError, GroupNotFoundError

from onceclip.stores.errors import NotAStore, StoreDamaged, StoreError, StoreIncomplete, StoreMismatch
from onceclip.stores.fingerprint import fingerprint
from onceclip.stores.schema import ATTRIBUTE, KIND, SCHEMA, SPLITS, STORED, TODO, get_array, read_whole, unseal
from onceclip.stores.text import TextSet


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

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self.array("embedding").shape[1])

    def array(self, name: str) -> zarr.Array:
        """One of the arrays under `image/`."""
        return get_array(self.group, f"image/{name}")

    @cached_property
    def table(self) -> Table:
        """All columns but the embeddings."""
        with damage(self.path):
            read = read_whole if self.complete else lambda array: np.asarray(array[...])
            columns = {name: read(self.array(name)) for name in Table.__dataclass_fields__}
        # While a store grows its columns are resized one after the other; only rows that all of them have count.
        lengths = [len(column) for column in columns.values()]
        rows = min(lengths)
        if self.complete and (rows < max(lengths) or (columns["state"] == TODO).any()):
            raise StoreDamaged(f"{self.path} says that it is complete, but its columns differ in length or have rows "
                               "still to be encoded: take it from a copy, or delete it and extract again")
        return Table(**{name: column[:rows] for name, column in columns.items()})

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the content: the encoder, and key, digest, class and split of every stored row."""
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
        chosen = self.table.state == STORED
        if split is not None:
            if split not in SPLITS:
                raise StoreError(f"no split {split!r}: there are: {', '.join(SPLITS)}")
            chosen &= self.table.split == SPLITS.index(split)
        if labelled:
            chosen &= self.table.label >= 0
        return np.flatnonzero(chosen)

    def embeddings(self, rows: np.ndarray | None = None, name: str = "embedding") -> np.ndarray:
        """Raw embeddings of some rows (all stored ones by default), in the order given: (n, dim), stored dtype.

        rows: positions, or a mask over all rows.
        name: "embedding", or "view" for (n, views, dim).
        Raises StoreDamaged if bytes are missing, do not match their checksum, or are not finite.
        """
        array, rows = self.array(name), self.rows(labelled=False) if rows is None else np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        result = np.empty((len(rows), *array.shape[1:]), array.dtype)
        height = array.chunks[0]
        # Whole chunks, indexed in memory: a chunk's checksum can only be checked on the whole of it.
        order = np.argsort(rows, kind="stable")
        for unit, members in _runs(rows[order] // height, order):
            with damage(self.path, f"image/{name}, unit {unit}"):
                chunk = np.asarray(array[unit * height:(unit + 1) * height])
            result[members] = chunk[rows[members] - unit * height]
        if not np.isfinite(result).all():
            row = rows[np.argmin(np.isfinite(result).reshape(len(rows), -1).all(axis=1))]
            raise StoreDamaged(f"{self.path}: image/{name} has no values for row {row} ({self.table.key[row]}): bad "
                               f"images have none; for others, `onceclip verify {self.path}` says more")
        return result

    @property
    def has_views(self) -> bool:
        """Whether augmented versions of the images are stored."""
        return "image/view" in self.group

    @property
    def texts(self) -> list[str]:
        """Names of the text sets."""
        if "text" not in self.group:
            return []
        group = self.group["text"]
        assert isinstance(group, zarr.Group)
        return sorted(name for name, child in group.groups() if ATTRIBUTE in child.attrs)

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
        return text

    def require_complete(self) -> None:
        """Raise StoreIncomplete if rows are still to be encoded."""
        if not self.complete:
            missing = int((self.table.state == TODO).sum())
            remedy = ("delete it and run `onceclip import` again" if self.encoder.get("imported") else
                      "run the same `onceclip extract` command again to finish it")
            raise StoreIncomplete(f"{self.path} is unfinished ({missing} of {len(self.table)} images are still to be "
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
    return "://" in path or os.path.isfile(os.path.join(path, "zarr.json"))


def occupied(path: str) -> bool:
    """Whether anything but an empty folder stands at a path or URL."""
    if "://" not in path:
        return os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path))
    try:
        open_group(path)
    except NotAStore:
        return False
    return True


def open_group(path: str, mode: Any = "r") -> zarr.Group:
    """Open the Zarr group at a path or URL.

    Raises NotAStore if there is none.
    """
    try:
        return zarr.open_group(str(path), mode=mode, zarr_format=3)
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


def _runs(unit: np.ndarray, order: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Group positions by their unit; both arrays are sorted by unit."""
    edges = np.flatnonzero(np.diff(unit)) + 1
    for members, first in zip(np.split(order, edges), np.split(unit, edges), strict=True):
        if len(members):
            yield int(first[0]), members
