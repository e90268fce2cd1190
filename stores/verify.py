"""Reading everything that a store holds, and saying what is wrong with it."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import zarr
from zarr.errors import ZarrUserWarning

from onceclip.stores.errors import StoreError
from onceclip.stores.fingerprint import DIGEST_BYTES
from onceclip.stores.lock import write_lock
from onceclip.stores.place import damage
from onceclip.stores.reader import open_store
from onceclip.stores.schema import TODO
from onceclip.stores.shares import Plain, Values
from onceclip.stores.soundness import Problem, equal_content, row_faults, text_faults
from onceclip.stores.writer import StoreWriter

_AHEAD = 64  # reads that are handed to threads before the first of them is done


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
    """Read every chunk of a store once, in parallel, and check it against its checksum and against the others.

    Faults: missing or damaged chunks, stored rows without finite values, columns that disagree, an unfinished
    extraction, text sets of another encoder or without a class. Remarks: equal content in two splits.
    progress: is told the fraction that has been read. workers: threads; None for as many as there are cores.
    Raises NotAStore if there is no store.
    """
    store = open_store(path)
    with damage(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)  # foreign files are no concern of ours
        members = sorted(store.group.members(max_depth=None))  # they come in any order
    arrays = {name: node for name, node in members if isinstance(node, zarr.Array)}
    values = {f"image/{name}" for name, described in store.row_arrays.items() if described.values} | {"image/view"}
    faults: list[Problem] = []
    missing = [name for name, described in store.row_arrays.items() if not described.optional and not store.has(name)]
    faults += [Problem(f"image/{name}", "is missing") for name in missing]
    lengths = {name: store.array(name).shape[0] for name in store.row_arrays if store.has(name)}
    if len(set(lengths.values())) > 1:
        faults.append(Problem("image", f"columns differ in length: {lengths}"))
    columns = [Plain(store, name, array) for name, array in arrays.items() if name not in values]
    outputs = [Values(store, name, array) for name, array in arrays.items() if name in values]
    done, total = 0, sum(table.chunks for table in columns) + sum(table.chunks for table in outputs)
    with ThreadPoolExecutor(workers) as pool:
        def run(tables: Sequence[Plain] | Sequence[Values]) -> list[Problem]:
            nonlocal done
            found = []
            for problems in _in_threads(pool, tables):
                found += problems
                done += 1
                progress(done / total)
            return found

        # The columns first: what they say is what the values are held against.
        faults += run(columns)
        if not faults:
            store.column("state")  # kept, as all that follows asks for it
            for table in outputs:
                table.sound = True
        faults += run(outputs)
    remarks: list[Problem] = []
    if not faults:
        faults += [*row_faults(store), *text_faults(store)]
        remarks = list(equal_content(store))
    return Verification(path, total, lengths.get("state", 0), faults, remarks)


def _in_threads(pool: ThreadPoolExecutor, tables: Sequence[Plain] | Sequence[Values]) -> Iterator[list[Problem]]:
    """What is wrong with each chunk, in their order; few are being read at any time."""
    upcoming = ((table, number) for table in tables for number in range(table.chunks))
    ahead = deque(pool.submit(table.problems, number) for table, number in islice(upcoming, _AHEAD))
    while ahead:
        yield ahead.popleft().result()
        ahead.extend(pool.submit(table.problems, number) for table, number in islice(upcoming, 1))


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
                          np.full(size, "", object), np.full(size, TODO, np.int8),
                          {name: np.full((size, *output.shape), np.nan) for name, output in store.outputs.items()})
    return len(units)
