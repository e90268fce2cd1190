"""One part of an extraction: processes that know nothing of each other make one store."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onceclip.pipeline.crew import Crew
from onceclip.pipeline.decoders import Decoders
from onceclip.pipeline.encoders import EncoderSpec, open_encoder
from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.extract import PARTS, ExtractOptions, Survey, exists, plan, splits_of, survey, writer_of
from onceclip.pipeline.inventory import take_inventory
from onceclip.pipeline.outputs import check_outputs
from onceclip.pipeline.parts import Part
from onceclip.pipeline.sources import Content
from onceclip.stores import Store, StoreWriter, open_store, write_lock
from onceclip.stores.errors import StoreBusy
from onceclip.stores.identity import DIGEST_BYTES
from onceclip.stores.location import is_remote
from onceclip.stores.schema import BAD, REMOVED, TODO

PATIENCE = 3600.0  # seconds to wait for the plan
_PAUSE = 0.5


@dataclass(frozen=True)
class PartDone:
    """What one part did.

    images: those of its units. encoded, bad: how many of them this process encoded, and how many are bad.
    complete: whether the store is finished, all other parts included.
    """

    store: str
    part: str
    images: int
    encoded: int
    bad: int
    bad_images: dict[str, str]
    complete: bool
    seconds: float
    warnings: list[str] = field(default_factory=list)


def extract_part(source: str | Path, store: str | Path, encoder: EncoderSpec, options: ExtractOptions,
                 part: Part) -> PartDone:
    """Encode one part of a source into a store: every `part.of`-th unit.

    The first part to come plans the store, the last one to end finishes it: text, splits, completeness. Where storage
    has no locks, behind URLs, part 1 plans, and parts that end at the same moment finish it with the same content.
    Views whose images' splits have to be drawn are left to the one that finishes.
    Raises SourceError if the store was planned for other images or no plan comes; otherwise as `extract`.
    """
    begun, path = time.perf_counter(), str(store)
    found = survey(str(source), options)
    with Decoders(len(found.records) // part.of, options.workers, options.decode_timeout) as decoders:
        crew = Crew(open_encoder(encoder), decoders, options)
        while not _planned(path, crew, found, part):
            if time.perf_counter() - begun > PATIENCE:
                raise SourceError(f"part 1 has not planned {path} within {PATIENCE:g} s: start --part 1/{part.of} too")
            time.sleep(_PAUSE)
        before = open_store(path)
        row_of = {str(key): row for row, key in enumerate(before.table.key) if before.table.state[row] != REMOVED}
        contents = {row_of[record.key]: record.content for record in found.records}
        size = before.attributes["unit_rows"]
        units = part.share(range(-(-len(before.table) // size)))
        writer = StoreWriter.open(path, crew.described.info, units=units)
        with crew.filling(writer, contents) as filling:
            filling.embeddings()
            if any(record.split for record in found.records):
                filling.views(before.table.split)
        complete = _finished(path, crew, found, str(source), np.array(sorted(contents)), contents)
    table = open_store(path).table
    mine = [row for row in sorted(contents) if row // size in units]
    bad = {str(table.key[row]): str(table.reason[row]) for row in mine if table.state[row] == BAD}
    return PartDone(path, str(part), len(mine), filling.images, len(bad), bad, complete, time.perf_counter() - begun,
                    found.remarks)


def _planned(path: str, crew: Crew, found: Survey, part: Part) -> bool:
    """Plan the store if that falls to this part; gives whether it is planned, for just these images."""
    wanted, described = _fingerprint(found), crew.described
    with _patient_lock(path):
        store = open_store(path) if exists(path) else None
        planned = store.attributes.get(PARTS) if store else None
        if store and planned and not store.complete:
            if planned != wanted:
                raise SourceError(f"{path} is being made of other images: give all parts the same source; if it has "
                                  "changed, run `onceclip extract` without --part once all parts have ended")
            check_outputs(store, described.outputs)
            return True
        if is_remote(path) and part.number > 1:
            return store is not None and store.complete and _holds(store, found)
        writer = writer_of(path, described, crew.options)
        inventory = take_inventory(found.records, found.classes, writer.store, crew.options.progress)
        if not writer.store.complete or inventory.changed or tuple(found.classes) != writer.store.classes:
            plan(writer, described, inventory, found.classes)
            writer.update(**{PARTS: wanted})  # what the others wait for
        return True


def _holds(store: Store, found: Survey) -> bool:
    """Whether a store has just these images, by their keys and classes."""
    table = store.table
    here = table.state != REMOVED
    labels = [store.classes[label] if label >= 0 else None for label in table.label[here].tolist()]
    return dict(zip(map(str, table.key[here]), labels, strict=True)) == {each.key: each.label for each in found.records}


def _fingerprint(found: Survey) -> str:
    """What the records of a source say, but for the images' bytes."""
    made = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for record in found.records:
        made.update(json.dumps([record.key, record.label, record.split, record.group]).encode("ascii"))
    return made.hexdigest()


def _finished(path: str, crew: Crew, found: Survey, source: str, rows: np.ndarray,
              contents: Mapping[int, Content]) -> bool:
    """Finish the store if nothing is left to encode; gives whether it is finished."""
    if (open_store(path).column("state") == TODO).any():
        return False
    with _patient_lock(path):
        if not open_store(path).complete:
            writer = StoreWriter.open(path, crew.described.info)
            if crew.described.has_text and found.classes:
                crew.text(writer, found.classes)
            split, drawn = splits_of(writer, found.records, rows, source)
            with crew.filling(writer, contents) as filling:
                filling.views(split)
            writer.finish(split, split_source=drawn, **{PARTS: None})
    return True


@contextmanager
def _patient_lock(path: str) -> Iterator[None]:
    """Hold the lock of a store, when no other process has it any more."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(write_lock(path))
                break
            except StoreBusy:
                time.sleep(_PAUSE)
        yield
