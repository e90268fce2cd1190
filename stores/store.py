"""Reading a store: lazily, by row, by split or whole, with every checksum checked."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from reprlib import repr as short
from shlex import quote
from typing import Any

import numpy as np
import zarr

from onceclip.stores.columns import Columns
from onceclip.stores.errors import NotAStore, StoreDamaged, StoreError, StoreIncomplete, StoreMismatch
from onceclip.stores.identity import DIGEST_BYTES
from onceclip.stores.rows import read_rows
from onceclip.stores.schema import ATTRIBUTE, KIND, SCHEMA, SPLITS, STORED, TODO, read_whole, unseal
from onceclip.stores.storage import damage, open_group
from onceclip.stores.table import Content, Table, content_of
from onceclip.stores.text import TOWER, StoredTower, TextSet

PIECE_ROWS = 16384


class Store(Columns):
    """A store opened for reading.

    encoder: what made the embeddings (a dict with `name`, `fingerprint`, `dim`, ...).
    classes: names, in label order. complete: whether the extraction has finished.
    outputs: what there is per image beside the embedding, by name.

    Example:
        >>> rows = store.rows("test")
        >>> store.embeddings(rows[:5]).shape, store.column("label")[rows[:5]].shape
        ((5, 64), (5,))
    """

    def encoder_array(self, name: str) -> np.ndarray:
        """One of the encoder's own arrays, such as "projection".

        Raises StoreIncomplete if it was not stored.
        """
        array = self.opened(f"encoder/{name}")
        if array is None:
            raise StoreIncomplete(f"{self.path} has no encoder/{name}: extract into a new store with the option that "
                                  "stores it")
        with damage(self.path, f"encoder/{name}"):
            return read_whole(array)

    @cached_property
    def table(self) -> Table:
        """All columns that say what the rows are."""
        return Table(**{name: self.column(name) for name in Table.__dataclass_fields__})

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the content: the encoder, and key, digest, class and split of every stored row.

        It is kept in the attributes of a complete store.
        """
        return str(self.attributes["fingerprint"]) if self.complete else self.content().fingerprint

    def content(self) -> Content:
        """What the stored rows are, found out anew from the columns in bounded memory."""
        return content_of(self.parts, self.height, self.encoder["fingerprint"], self.classes)

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
        Raises StoreIncomplete if there is no such output, StoreError for rows that the store does not have,
        StoreDamaged if bytes are missing, do not match their checksum, or are not finite.
        """
        if not self.has(name):
            raise StoreIncomplete(f"{self.path} has no image/{name} (there are: embedding"
                                  f"{''.join(f', {each}' for each in self.outputs)}): extract into a new store with "
                                  "the option that stores it")
        array, rows = self.array(name), self._positions(rows)
        try:
            with damage(self.path, f"image/{name}"):
                result, whole = read_rows(array, self.flat(name), rows, self.checksums_of(name))
        except StoreDamaged:
            if self._written() != self.attributes:
                raise StoreError(f"{self.path} was written since it was opened: open it again") from None
            raise
        stored = self.column("state")[rows] == STORED
        if not whole or not stored.all():
            row = rows[np.argmin(stored & np.isfinite(result.reshape(len(rows), -1)[:, 0]))]
            raise StoreDamaged(f"{self.path}: image/{name} has no values for row {row} ({self.column('key')[row]}): "
                               f"bad images have none; for others, `onceclip verify {self.path}` says more")
        return result

    def _positions(self, rows: np.ndarray | None) -> np.ndarray:
        """Positions of the rows that are meant: (n,) int64."""
        if rows is None:
            return self.rows(labelled=False)
        rows = np.asarray(rows)
        if rows.dtype == bool and rows.shape == (self.height,):
            return np.flatnonzero(rows)
        if rows.ndim != 1 or (len(rows) and (rows.dtype.kind not in "iu" or rows.min() < 0
                                             or rows.max() >= self.height)):
            raise StoreError(f"{self.path} has {self.height} rows: give positions from 0 to {self.height - 1}, as "
                             "store.rows() does, or a mask over all of them")
        return rows.astype(np.int64, copy=False)

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

    def refresh(self) -> None:
        """Learn of text sets and of a text tower that were written since the store was opened."""
        self.attributes = unseal(self._written())
        self.__dict__.pop("tower_attributes", None)

    def _written(self) -> Any:
        """The attributes as the store has them now."""
        with damage(self.path, "its description"):
            return dict(zarr.open_group(self.group.store, path=self.group.path, mode="r").attrs).get(ATTRIBUTE)

    @property
    def texts(self) -> list[str]:
        """Names of the text sets."""
        return sorted(name for name, entry in self.attributes["texts"].items() if entry.get("fingerprint"))

    def text_fingerprint(self, name: str = "default") -> str:
        """Identity of a text set, without reading it.

        Raises StoreIncomplete if there is none.
        """
        if name not in self.texts:
            known = ", ".join(self.texts) or "none"
            without = "" if self.texts else "; linear-probe and onceclip.FewShotClassifier do without"
            raise StoreIncomplete(f"{self.path} has no text set {name!r} (there are: {known}): "
                                  f"`onceclip text {quote(self.path)} --name {quote(name)}` embeds one, with "
                                  f"--captions FILE one of captions{without}")
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

    @cached_property
    def tower_attributes(self) -> dict[str, Any]:
        """What the store says of its encoder's text tower; empty if it has none, or one that was cut short."""
        with damage(self.path, TOWER):
            group = self.group.get(TOWER)
            found: Any = group.attrs.get(ATTRIBUTE) if group is not None else None
            return {} if found is None else unseal(found)

    def tower(self) -> StoredTower:
        """The text tower of the encoder.

        Raises StoreIncomplete if there is none, StoreMismatch if it is another encoder's, StoreDamaged if it is not as
        it was written.
        """
        attributes = self.tower_attributes
        if not attributes:
            raise StoreIncomplete(f"{self.path} has no text tower: `onceclip text {quote(self.path)} --tower` writes "
                                  "the encoder's into it")
        if attributes["encoder"] != self.encoder["fingerprint"]:
            raise StoreMismatch(f"{self.path}: its text tower is of encoder {attributes['encoder']}, the images of "
                                f"{self.encoder['fingerprint']}: run `onceclip text --tower` with the store's encoder")
        with damage(self.path, TOWER):
            return StoredTower.read(self.group[TOWER])  # type: ignore[arg-type]

    def join(self, other: Store, name: str) -> JoinedStore:
        """This store with the embeddings and outputs that another has of the same images, as `name/embedding`.

        Images are matched by the digest of their files; by their keys where both stores were imported, which have none.
        Nothing is copied: rows of the other store are read where they lie.
        Raises StoreMismatch if the other lacks an image or has another file under its key, StoreError for a name that
        cannot be one.
        """
        return JoinedStore(self, {name: other})

    def require_complete(self) -> None:
        """Raise StoreIncomplete if rows are still to be encoded."""
        if not self.complete:
            missing = int((self.column("state") == TODO).sum())
            command = ("compact" if self.attributes.get("compaction") else
                       "import" if self.encoder.get("imported") else "extract")
            raise StoreIncomplete(f"{self.path} is unfinished ({missing} of {self.height} images are still to be "
                                  f"stored): run the same `onceclip {command}` command again to finish it"
                                  f"{', or delete it' if command == 'compact' else ''}")

    def require_encoder(self, other: str, what: str) -> None:
        """Raise StoreMismatch unless something (`what`) was made by this store's encoder (fingerprint `other`)."""
        mine = self.encoder["fingerprint"]
        if other != mine:
            raise StoreMismatch(f"{what} belongs to encoder {other}, {self.path} to {mine} "
                                f"({self.encoder['name']}): use a store made by the same encoder")


class JoinedStore(Store):
    """A store, and others of the same images whose arrays are outputs beside its own; see `Store.join`.

    joined: the other stores by name.
    """

    def __init__(self, store: Store, others: Mapping[str, Store]) -> None:
        super().__init__(store.path, store.group)
        self.joined: dict[str, Store] = {**(store.joined if isinstance(store, JoinedStore) else {}), **others}
        for name in self.joined:
            if not re.fullmatch("[a-z][a-z0-9_-]*", name):
                raise StoreError(f"a joined store cannot be called {name!r}: give it a name of small letters")
        self._places = {name: _matched(self, other, name) for name, other in self.joined.items()}

    def has(self, name: str) -> bool:
        first, _, rest = name.partition("/")
        return self.joined[first].has(rest) if rest and first in self.joined else super().has(name)

    def embeddings(self, rows: np.ndarray | None = None, name: str = "embedding") -> np.ndarray:
        first, _, rest = name.partition("/")
        if not rest or first not in self.joined:
            return super().embeddings(rows, name)
        return self.joined[first].embeddings(self._places[first][self._positions(rows)], rest)


def _matched(store: Store, other: Store, name: str) -> np.ndarray:
    """Positions (rows,) in another store of the images of a store, -1 for rows without values."""
    mine, theirs = store.rows(labelled=False), other.rows(labelled=False)
    by_key = bool(store.encoder.get("imported") and other.encoder.get("imported"))
    keys, other_keys = (each.column("key")[rows].tolist() for each, rows in ((store, mine), (other, theirs)))
    own, known = (keys, other_keys) if by_key else tuple(
        each.column("digest")[rows].view(f"V{DIGEST_BYTES}").ravel().tolist()
        for each, rows in ((store, mine), (other, theirs)))
    place = dict(zip(known, theirs.tolist(), strict=True))
    found = np.array([place.get(each, -1) for each in own], dtype=np.int64)
    if (found < 0).any():
        first = keys[int(np.argmin(found))]
        why = "another file there" if first in set(other_keys) else "not there"
        raise StoreMismatch(f"{other.path} cannot be joined as {name!r}: of {len(found)} images of {store.path} it "
                            f"lacks {int((found < 0).sum())}, such as {first!r} ({why}): extract both from one folder")
    places = np.full(store.height, -1, dtype=np.int64)
    places[mine] = found
    return places


def open_store(path: str | os.PathLike[str]) -> Store:
    """Open a store for reading. path: a folder, or any fsspec URL.

    Raises NotAStore if there is none, StoreError if a newer version wrote it.

    Example:
        >>> store = onceclip.open_store("pets.zarr")
        >>> store.classes
        ('cat', 'dog', 'fox', 'rabbit')
    """
    if not isinstance(path, str | os.PathLike):
        raise NotAStore(f"{short(path)} is no path: give the path or URL of a store")
    group = open_group(str(path))
    attributes: Any = group.attrs.get(ATTRIBUTE)
    if not isinstance(attributes, dict) or attributes.get("kind") != KIND:
        raise NotAStore(f"{path} is a Zarr group but not a onceclip store: make one with `onceclip extract` or "
                        "`onceclip import`")
    with damage(str(path), "its description"):
        if attributes["schema"] > SCHEMA:
            raise StoreError(f"{path} has schema {attributes['schema']}, this version reads up to {SCHEMA}: "
                             "install a newer onceclip")
        return Store(_plain(str(path)), group)


def _plain(path: str) -> str:
    """A path without the slash that shells put behind folders: it would be another name of the same store."""
    return path if path.endswith("://") else path.rstrip("/") or path
