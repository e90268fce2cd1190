"""Reading everything that a store holds, and saying what is wrong with it."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import zarr
from zarr.errors import ZarrUserWarning

from onceclip.stores.errors import StoreError
from onceclip.stores.fingerprint import DIGEST_BYTES
from onceclip.stores.flat import row_checksums
from onceclip.stores.lock import write_lock
from onceclip.stores.reader import Store, damage, open_store
from onceclip.stores.schema import COLUMNS, SPLITS, STORED, TODO
from onceclip.stores.writer import StoreWriter


@dataclass(frozen=True)
class Problem:
    """One fault.

    where: array and chunk, or the rows' keys. what: the fault. unit: the unit that it spoils, or None.
    unfinished: whether the next extraction mends it as it is.
    """

    where: str
    what: str
    unit: int | None = None
    unfinished: bool = False


@dataclass(frozen=True)
class Verification:
    """What was found. faults: bytes or counts that are wrong. remarks: what a user should know. chunks: all read."""

    store: str
    chunks: int
    images: int
    faults: list[Problem] = field(default_factory=list)
    remarks: list[Problem] = field(default_factory=list)


def verify(path: str, progress: Callable[[float], None] = lambda fraction: None,
           workers: int | None = None) -> Verification:
    """Read every chunk of a store in parallel and check it against its checksum and against the others.

    Faults: missing or damaged chunks, stored rows without finite values, columns that disagree, an unfinished
    extraction, text sets of another encoder or without a class. Remarks: equal content in two splits.
    Raises NotAStore if there is no store.
    """
    store = open_store(path)
    with damage(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)  # foreign files are no concern of ours
        arrays = [node for _, node in store.group.members(max_depth=None) if isinstance(node, zarr.Array)]
    chunks = [(array, place) for array in arrays for place in product(*map(range, array.cdata_shape))]
    faults = []
    with ThreadPoolExecutor(workers) as pool:
        for number, found in enumerate(pool.map(lambda chunk: _chunk(*chunk), chunks)):
            faults += found
            progress((number + 1) / max(len(chunks), 1))
    lengths = {name: store.array(name).shape[0] for name in (*COLUMNS, "embedding") if f"image/{name}" in store.group}
    missing = [name for name in (*COLUMNS, "embedding") if name not in lengths]
    faults += [Problem(f"image/{name}", "is missing") for name in missing]
    if len(set(lengths.values())) > 1:
        faults.append(Problem("image", f"columns differ in length: {lengths}"))
    remarks: list[Problem] = []
    if not faults:
        faults += [*_rows(store), *_texts(store)]
        remarks += _twins(store)
    return Verification(path, len(chunks), lengths.get("state", 0), faults, remarks)


def repair(path: str, found: Verification) -> int:
    """Mark the units that faults spoil as to be done, so that the next extraction makes just those anew.

    Gives the number of units. Raises StoreError for faults that no extraction mends.
    """
    faults = [problem for problem in found.faults if not problem.unfinished]
    beyond = [problem for problem in faults if problem.unit is None]
    if beyond:
        raise StoreError(f"{path}: {beyond[0].where} {beyond[0].what}; encoding again cannot mend this: take the store "
                         "from a copy, or delete it and extract again")
    units = sorted({problem.unit for problem in faults if problem.unit is not None})
    if not units:
        return 0
    with write_lock(path):
        store = open_store(path)
        writer = StoreWriter.open(path, store.encoder)
        writer.update(complete=False)
        for unit in units:
            size = min(writer.unit_rows, store.array("state").shape[0] - unit * writer.unit_rows)
            writer.commit(unit, np.full((size, store.dim), np.nan), np.zeros((size, DIGEST_BYTES), np.uint8),
                          np.full(size, "", object), np.full(size, TODO, np.int8))
    return len(units)


def _chunk(array: zarr.Array, place: tuple[int, ...]) -> list[Problem]:
    """Read one chunk. An array that is written per unit names the unit."""
    name = array.path
    column = COLUMNS.get(name.removeprefix("image/"))
    per_unit = name == "image/embedding" or (column is not None and column.per_unit)
    unit = place[0] if per_unit else None
    where = f"{name}, chunk {'/'.join(map(str, place))}" if place else name
    try:
        key = array.metadata.encode_chunk_key(place)
        if not _exists(array, key):
            return [Problem(where, "is missing", unit)]
        array.blocks[place] if place else array[...]
    except StoreError:
        raise  # a connection that was lost says nothing about the chunk
    except Exception as error:  # what a decoder raises for damaged bytes is of many types
        return [Problem(where, f"cannot be read ({str(error).splitlines()[0]})", unit)]
    return []


def _exists(array: zarr.Array, key: str) -> bool:
    from zarr.core.sync import sync

    return sync((array.store_path / key).exists())


def _rows(store: Store) -> Iterator[Problem]:
    """Whether states, keys, labels and values agree."""
    table, embedding, height = store.table, store.array("embedding"), store.attributes["unit_rows"]
    todo = int((table.state == TODO).sum())
    if todo or not store.complete:
        yield Problem("image/state", f"the extraction is unfinished, {todo} of {len(table)} images are to be done",
                      unfinished=True)
    stored = table.state == STORED
    if store.complete and store.content_fingerprint() != store.fingerprint:
        yield Problem("image", "does not have the content that the store's fingerprint says")
    keys = table.key[stored]
    if len(set(keys)) != len(keys):
        yield Problem("image/key", f"{len(keys) - len(set(keys))} stored rows have the key of another")
    if (table.label >= len(store.classes)).any():
        yield Problem("image/label", "names a class that the store does not have")
    for unit in range(-(-len(table) // height)):
        rows = slice(unit * height, (unit + 1) * height)
        values = np.asarray(embedding[rows])
        empty = stored[rows] & ~np.isfinite(values).all(axis=1)
        if not np.array_equal(row_checksums(values)[stored[rows]], store.column("checksum")[rows][stored[rows]]):
            yield Problem(f"image/checksum, unit {unit}", "does not match the embeddings", unit)
        if empty.any():
            what = f"{int(empty.sum())} stored rows have no finite values"
            yield Problem(f"image/embedding, unit {unit}", what, unit)


def _texts(store: Store) -> Iterator[Problem]:
    for name in store.texts:
        try:
            text = store.text(name).of_classes(store.classes)
        except StoreError as error:
            yield Problem(f"text/{name}", str(error))
            continue
        if not np.isfinite(text.embedding).all():
            yield Problem(f"text/{name}", "holds values that are not finite")


def _twins(store: Store) -> Iterator[Problem]:
    """Equal content in two splits: draws leave such rows out, but a user should know."""
    table = store.table
    places: dict[bytes, dict[int, Any]] = defaultdict(dict)
    for row in np.flatnonzero((table.state == STORED) & (table.split >= 0)):
        places[bytes(table.digest[row])].setdefault(int(table.split[row]), table.key[row])
    for splits in places.values():
        if len(splits) > 1:
            named = " and ".join(f"{key} ({SPLITS[split]})" for split, key in sorted(splits.items()))
            yield Problem(named, "are the same picture in different splits")
