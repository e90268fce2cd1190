"""Stage 1: encode the images of a source and its class prompts once, into a store."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from onceclip.pipeline.encoders import EncoderSpec
from onceclip.pipeline.errors import DecoderError, SourceError
from onceclip.pipeline.extraction.inventory import Inventory, file_digests, take_inventory
from onceclip.pipeline.extraction.outputs import StorePlan, check_outputs, has_outputs, store_exists
from onceclip.pipeline.extraction.remarks import other_boxes, remarks_on
from onceclip.pipeline.extraction.splits import PLANNED, drawing_of, splits_of
from onceclip.pipeline.extraction.survey import ExtractOptions, Survey, survey
from onceclip.pipeline.prompts.embedding import present_prompts
from onceclip.pipeline.sources import Content
from onceclip.pipeline.words import class_remarks, counted
from onceclip.pipeline.workers import Part
from onceclip.stores import Store, StoreWriter, Table, open_store, write_lock
from onceclip.stores.errors import StoreBusy
from onceclip.stores.location import is_url, is_zip
from onceclip.stores.lock import has_lock
from onceclip.stores.schema import BAD, REMOVED, SPLITS, STORED, TODO

if TYPE_CHECKING:
    from onceclip.pipeline.extraction.processes import ThisProcess, WorkerProcesses
    from onceclip.pipeline.extraction.units import Remaining
    from onceclip.pipeline.workers.cluster import Workers

REQUEST = "request"  # the attribute of a store that says by which words its encoder was named
PATIENCE = 3600.0  # seconds that a part waits for the plan
_PAUSE = 0.5
_MANY_INTERRUPTED = 64  # images: then it is the machine as a whole
_DEFAULTS = ExtractOptions()


@dataclass(frozen=True)
class Extraction:
    """What one extraction did.

    encoded, reused, bad: numbers of images, which add up to `images`. moved: how many of the reused ones have a new
    key. removed: how many images of the store are gone.
    """

    store: str
    images: int
    encoded: int
    reused: int
    moved: int
    removed: int
    bad: int
    bad_images: dict[str, str]
    classes: dict[str, int]
    splits: dict[str, int]
    outputs: dict[str, list[int]]
    encoder: dict[str, Any]
    text: dict[str, Any]
    seconds: float
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PartDone:
    """What one part of an extraction did.

    images: those of its units, of which so many were encoded, reused and bad. complete: whether the store is finished,
    all other parts included.
    """

    store: str
    part: str
    images: int
    encoded: int
    reused: int
    bad: int
    bad_images: dict[str, str]
    complete: bool
    seconds: float
    warnings: list[str] = field(default_factory=list)


def extract(source: str | Path, store: str | Path, encoder: EncoderSpec, options: ExtractOptions = _DEFAULTS,
            workers: Workers | None = None) -> Extraction:
    """Encode a source of images into a store; on a store that exists, only what is new or changed.

    source: a folder of class folders, or what else `open_source` takes. workers: what encodes; None for this process.
    Raises SourceError if there is nothing to encode or every image is bad, EncoderError for the encoder, DecoderError
    if images could not be read or decoded for reasons of the machine (they are done by the next call),
    StoreMismatch if another encoder made the store or it has other outputs, WorkerError for units that no worker could
    encode.

    Example:
        >>> done = onceclip.extract("pets", "pets-2.zarr", onceclip.EncoderSpec("demo"))
        >>> done.images, done.encoded, done.bad
        (160, 160, 0)
    """
    begun, path = time.perf_counter(), str(store)
    found, request = survey(str(source), encoder, options), encoder.request
    options = found.options
    digests, new = None, not store_exists(path)
    if not new and request and not is_zip(path) and (present := open_store(path)).attributes.get(REQUEST) == request:
        digests = file_digests(found.records, options.progress)
        inventory = take_inventory(found.records, found.classes, present, False, options.retry_bad, digests)
        text = _nothing_to_do(present, found, inventory)
        if text is not None and not has_lock(path):  # which the next writer takes away
            return _report(present, found, inventory, text, time.perf_counter() - begun)
    _say_what_is_loaded(encoder, options)
    from onceclip.pipeline.extraction.processes import open_processes  # imports torch
    from onceclip.pipeline.extraction.units import rows_to_embed

    with open_processes(encoder, options, len(found.records), new, workers) as processes, write_lock(path):
        writer = processes.plan.writer(path, options.dtype, options.unit_rows)
        inventory = take_inventory(found.records, found.classes, writer.store, options.progress, options.retry_bad,
                                   digests)
        changed = _plan(writer, processes.plan, inventory, found)
        text = {"prompts": 0, "encoded": 0}
        if processes.plan.has_text and found.classes:
            text, writer = processes.text(writer, found.classes)
        _encode(processes, writer, rows_to_embed(writer), inventory.contents)
        if changed:
            _finish(processes, writer, found, inventory.contents, request)
        elif writer.store.attributes.get(REQUEST) != request:
            writer.update(**{REQUEST: request})
    return _report(open_store(path), found, inventory, text, time.perf_counter() - begun)


def _nothing_to_do(store: Store, found: Survey, inventory: Inventory) -> dict[str, Any] | None:
    """What there is to say of the text of a store that has all that is asked for; None if there is something to do.

    Raises SourceError if splits are asked for that the store's images do not have.
    """
    if not store.complete or inventory.changed or tuple(found.classes) != store.classes:
        return None
    if not found.has_splits:
        drawing_of(store, found)
    if not has_outputs(store, found.options.outputs, found.options.dtype):
        return None
    if not found.classes:
        return {"prompts": 0, "encoded": 0}
    return present_prompts(store, found.classes, found.options.phrases, found.options.templates)


def _say_what_is_loaded(encoder: EncoderSpec, options: ExtractOptions) -> None:
    if options.progress and sys.stderr.isatty():
        tqdm.write(f"loading {encoder.model} ...", file=sys.stderr)


def _plan(writer: StoreWriter, store_plan: StorePlan, inventory: Inventory, found: Survey) -> bool:
    """Say which rows the store is to have; gives whether that leaves anything to do."""
    source = None if found.has_splits else drawing_of(writer.store, found)
    renamed = tuple(found.classes) != writer.store.classes
    if writer.store.complete and not inventory.changed and not renamed:
        return False
    if PLANNED in writer.store.attributes:
        writer.update(**{PLANNED: None})
    # A plan that stands is not written again: a worker we lost contact with may still be writing a unit of it.
    if inventory.changed or renamed:
        writer.plan(inventory.table, found.classes)
    if source:
        writer.update(split_source=source)  # for processes that go on with it
    store_plan.put_projection(writer)
    return True


def _finish(processes: ThisProcess | WorkerProcesses, writer: StoreWriter, found: Survey,
            contents: Mapping[int, Content], request: str | None) -> None:
    """Draw the splits, encode the views of images in them, and mark the store as complete."""
    from onceclip.pipeline.extraction.units import rows_to_view

    split, drawn = splits_of(writer.store.path, found, np.array(sorted(contents)))
    _encode(processes, writer, rows_to_view(writer, split), contents)
    writer.finish(split, split_source=drawn, **{PLANNED: None, REQUEST: request})


def _encode(processes: ThisProcess | WorkerProcesses, writer: StoreWriter, remaining: Remaining,
            contents: Mapping[int, Content]) -> None:
    """Encode what is left to do, and show how far that is.

    Raises DecoderError if images were interrupted, once all others are done, or earlier where there are many.
    """
    if not len(remaining.rows):
        return
    interrupted: list[tuple[int, str]] = []
    done, bad, progress = remaining.total - len(remaining.rows), 0, processes.options.progress
    if done and progress:
        tqdm.write(f"{done:,} of {remaining.total:,} already done", file=sys.stderr)
    with (tqdm(total=remaining.total, initial=done, unit="image", desc="views" if remaining.views else "encode",
               disable=None if progress else True) as bar,
          closing(processes.encode(writer, remaining, contents)) as steps):
        for step in steps:
            bar.update(step.rows)
            bad += step.bad
            if bad:
                bar.set_postfix(bad=bad)
            interrupted += step.interrupted
            if len(interrupted) > _MANY_INTERRUPTED:
                break
    if interrupted:
        row, reason = min(interrupted)
        raise DecoderError(f"{counted(len(interrupted), 'image')} could not be read or decoded for reasons of this "
                           f"machine ({writer.store.table.key[row]}: {reason}): all others are kept; see that there is "
                           "memory enough (or give fewer --workers) and that the storage answers, then run the same "
                           "command again to go on")


def _counts(rows: list[int], before: Table, after: Table) -> tuple[int, int, dict[str, str]]:
    """How many of some rows were encoded since a table, how many were good in it already, and why each other is bad."""
    good, known = after.state[rows] == STORED, before.state[rows] == STORED
    bad = {str(after.key[row]): str(after.reason[row]) for row in rows if after.state[row] == BAD}
    return int((good & ~known).sum()), int((good & known).sum()), bad


def _report(store: Store, found: Survey, inventory: Inventory, text: dict[str, Any], seconds: float) -> Extraction:
    table = store.table
    counts = Counter(store.classes[label] for label in table.label[store.rows()])
    encoded, reused, bad = _counts(sorted(inventory.contents), inventory.table, table)
    return Extraction(
        store=store.path, images=len(found.records), encoded=encoded, reused=reused, moved=inventory.moved,
        removed=inventory.removed, bad=len(bad), bad_images=bad,
        classes={name: counts[name] for name in store.classes},
        splits={name: len(store.rows(name)) for name in SPLITS},
        outputs={name: list(output.shape) for name, output in store.outputs.items()},
        encoder=store.encoder, text=text, seconds=seconds, warnings=remarks_on(store, found, text, encoded))


def extract_part(source: str | Path, store: str | Path, encoder: EncoderSpec, options: ExtractOptions,
                 part: Part) -> PartDone:
    """Encode one part of a source into a store, every `part.of`-th unit, beside processes that encode the others.

    The first part to come plans the store, the last one to end finishes it: text, splits, completeness. Where storage
    has no locks, behind URLs, part 1 plans, and parts that end at the same moment finish it with the same content.
    Views whose images' splits have to be drawn are left to the one that finishes.
    Raises SourceError if the store was planned for other images or no plan comes; otherwise as `extract`.
    """
    begun, path = time.perf_counter(), str(store)
    found = survey(str(source), encoder, options)
    options = found.options
    _say_what_is_loaded(encoder, options)
    from onceclip.pipeline.extraction.processes import open_processes  # imports torch
    from onceclip.pipeline.extraction.units import rows_to_embed, rows_to_view

    with open_processes(encoder, options, len(found.records) // part.of, start=False) as processes:
        while not _planned(path, processes.plan, found, part):
            if time.perf_counter() - begun > PATIENCE:
                raise SourceError(f"part 1 has not planned {path} within {PATIENCE:g} s: start --part 1/{part.of} too")
            time.sleep(_PAUSE)
        before = open_store(path)
        row_of = {str(key): row for row, key in enumerate(before.table.key) if before.table.state[row] != REMOVED}
        contents = {row_of[record.key]: record.content for record in found.records}
        size = before.attributes["unit_rows"]
        units = part.share(range(-(-len(before.table) // size)))
        writer = StoreWriter.open(path, processes.plan.info, units=units)
        _encode(processes, writer, rows_to_embed(writer), contents)
        if found.has_splits:
            _encode(processes, writer, rows_to_view(writer, before.table.split), contents)
        complete = _complete(path, processes, found, contents, encoder.request)
    mine = [row for row in sorted(contents) if row // size in units]
    encoded, reused, bad = _counts(mine, before.table, open_store(path).table)
    return PartDone(path, str(part), len(mine), encoded, reused, len(bad), bad, complete, time.perf_counter() - begun,
                    [*found.remarks, *other_boxes(before, found), *class_remarks(found.phrases)])


def _planned(path: str, store_plan: StorePlan, found: Survey, part: Part) -> bool:
    """Plan the store if that falls to this part; gives whether it is planned, for just these images."""
    fingerprint, options = found.fingerprint, found.options
    with _wait_for_lock(path):
        store = open_store(path) if store_exists(path) else None
        planned = store.attributes.get(PLANNED) if store else None
        if store and planned and not store.complete:
            if planned != fingerprint:
                raise SourceError(f"{path} is being made of other images: give all parts the same source; if it has "
                                  "changed, run `onceclip extract` without --part once all parts have ended")
            check_outputs(store, store_plan.outputs, options.dtype)
            if not found.has_splits:
                drawing_of(store, found)
            return True
        if is_url(path) and part.number > 1:
            return store is not None and store.complete and _has_just(store, found)
        writer = store_plan.writer(path, options.dtype, options.unit_rows)
        inventory = take_inventory(found.records, found.classes, writer.store, options.progress)
        if _plan(writer, store_plan, inventory, found):
            writer.update(**{PLANNED: fingerprint})  # what the others wait for
        return True


def _has_just(store: Store, found: Survey) -> bool:
    """Whether a store has just these images, by their keys and classes."""
    table = store.table
    here = table.state != REMOVED
    labels = [store.classes[label] if label >= 0 else None for label in table.label[here].tolist()]
    return dict(zip(map(str, table.key[here]), labels, strict=True)) == {each.key: each.label for each in found.records}


def _complete(path: str, processes: ThisProcess | WorkerProcesses, found: Survey,
              contents: Mapping[int, Content], request: str | None) -> bool:
    """Finish the store if nothing is left to encode; gives whether it is finished."""
    if (open_store(path).column("state") == TODO).any():
        return False
    with _wait_for_lock(path):
        if not open_store(path).complete:
            writer = StoreWriter.open(path, processes.plan.info, alone=False)  # other parts may be writing views
            if processes.plan.has_text and found.classes:
                _, writer = processes.text(writer, found.classes)
            _finish(processes, writer, found, contents, request)
    return True


@contextmanager
def _wait_for_lock(path: str) -> Iterator[None]:
    """Hold the lock of a store, once no other process has it any more."""
    with ExitStack() as opened:
        while True:
            try:
                opened.enter_context(write_lock(path))
                break
            except StoreBusy:
                time.sleep(_PAUSE)
        yield
