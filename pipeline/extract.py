"""Stage 1: encode the images of a source and its class prompts once, into a store."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onceclip.pipeline import splits
from onceclip.pipeline.crew import Crew, Described
from onceclip.pipeline.decoders import TIMEOUT, Decoders
from onceclip.pipeline.encoders import EncoderSpec, open_encoder
from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.fill import Filling
from onceclip.pipeline.inventory import Inventory, take_inventory
from onceclip.pipeline.outputs import EMBEDDING_ALONE, PREPROJ, OutputOptions, check_outputs, put_projection
from onceclip.pipeline.prompts import class_phrases, numbered
from onceclip.pipeline.sources import DEFAULTS, Record, SourceOptions, class_names, open_source
from onceclip.pipeline.workers import Workers
from onceclip.stores import NotAStore, Store, StoreWriter, open_store, write_lock
from onceclip.stores.location import occupied
from onceclip.stores.schema import BAD, SPLITS, STORED, UNIT_ROWS

if TYPE_CHECKING:
    from onceclip.pipeline.cluster.crew import WorkersCrew, WorkersFilling

PARTS = "plan"  # the attribute of a store that says for which images parts of an extraction are at work


@dataclass(frozen=True)
class ExtractOptions:
    """How to extract.

    templates: None keeps a store's own, else "a photo of a {}.". phrases: what prompts call a class folder.
    batch_size: images per pass, 0 for what suits the encoder. workers: decode processes, 0 for one per core.
    dtype: of stored embeddings. outputs: what to store beside them. source: how to list the images.
    decode_timeout: seconds that reading and decoding one image may take. profile: measure where the time goes.

    Example:
        >>> options = onceclip.ExtractOptions(templates=("a drawing of a {}.", "a sketch of a {}."), workers=1)
        >>> onceclip.extract("pets", "pets-3.zarr", onceclip.EncoderSpec("demo"), options).text["encoded"]
        8
    """

    templates: tuple[str, ...] | None = None
    phrases: dict[str, str] | None = None
    batch_size: int = 0
    workers: int = 0
    dtype: str = "float16"
    unit_rows: int = UNIT_ROWS
    progress: bool = False
    source: SourceOptions = DEFAULTS
    outputs: OutputOptions = EMBEDDING_ALONE
    decode_timeout: float = TIMEOUT
    profile: bool = False


@dataclass(frozen=True)
class Extraction:
    """What one extraction did.

    encoded, reused, moved, removed, bad: numbers of images. rounding: how much storing changed embeddings, at most.
    profile: where the time went, if that was asked for.
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
    rounding: dict[str, float]
    profile: dict[str, Any] | None
    seconds: float
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Survey:
    """What there is to encode. records: the images. remarks: on the source. spoken: what prompts call each class."""

    records: list[Record]
    remarks: list[str]
    classes: list[str]
    spoken: dict[str, str]


def survey(source: str, options: ExtractOptions) -> Survey:
    """List a source, and complain before anything is loaded or written.

    Raises SourceError if there is nothing to encode, PromptError for phrases that do not fit the classes.
    """
    listing = open_source(source, options.source)
    classes = class_names(listing.records)
    if len(classes) < 2 and not options.source.unlabelled:
        what = f"one class only ({classes[0]!r})" if classes else "no classes"
        raise SourceError(f"{source} has {what}: a classifier needs two; put the images of each class into a folder of "
                          "its own, FOLDER/CLASS/image.jpg or FOLDER/train/CLASS/image.jpg, or store them for predict "
                          "with --unlabelled")
    return Survey(listing.records, listing.remarks, classes, class_phrases(classes, options.phrases))


def extract(source: str | Path, store: str | Path, encoder: EncoderSpec, options: ExtractOptions = ExtractOptions(),
            workers: Workers | None = None) -> Extraction:
    """Encode a source of images into a store; on a store that exists, only what is new or changed.

    source: a folder of class folders, or what else `open_source` takes. workers: what encodes; None for this process.
    Raises SourceError if there is nothing to encode or every image is bad, EncoderError for the encoder,
    StoreMismatch if another encoder made the store or it has other outputs, WorkerError for units that no worker could
    encode.

    Example:
        >>> done = onceclip.extract("pets", "pets-2.zarr", onceclip.EncoderSpec("demo"))
        >>> done.images, done.encoded, done.bad
        (160, 160, 0)
    """
    begun = time.perf_counter()
    found = survey(str(source), options)
    known = exists(str(store))
    if workers is not None:
        from onceclip.pipeline.cluster.crew import WorkersCrew

        return _fill(WorkersCrew(encoder, workers, options), str(source), str(store), found, begun)
    with Decoders(len(found.records), options.workers, options.decode_timeout) as decoders:
        if not known:  # else there may be nothing for them to do
            decoders.start()
        return _fill(Crew(open_encoder(encoder), decoders, options), str(source), str(store), found, begun)


def _fill(crew: Crew | WorkersCrew, source: str, store: str, found: Survey, begun: float) -> Extraction:
    options, described, records, classes = crew.options, crew.described, found.records, found.classes
    with write_lock(store):
        writer = writer_of(store, described, options)
        inventory = take_inventory(records, classes, writer.store, options.progress)
        changed = not writer.store.complete or inventory.changed or tuple(classes) != writer.store.classes
        if changed:
            plan(writer, described, inventory, classes)
        text = {"prompts": 0, "encoded": 0}
        if described.has_text and classes:
            text, writer = crew.text(writer, classes)
        with crew.filling(writer, inventory.contents) as filling:
            filling.embeddings()
            if changed:
                split, drawn = splits_of(writer, records, inventory.present, source)
                filling.views(split)
            profile = filling.profile().as_values() if options.profile else None
        if changed:
            writer.finish(split, split_source=drawn)
    remarks = [*found.remarks, *([warning] if text["encoded"] and (warning := numbered(found.spoken)) else [])]
    return _report(open_store(store), records, inventory, text, filling, profile, remarks, time.perf_counter() - begun)


def plan(writer: StoreWriter, described: Described, inventory: Inventory, classes: list[str]) -> None:
    """Say which rows the store is to have."""
    if PARTS in writer.store.attributes:
        writer.update(**{PARTS: None})
    # A plan that stands is not written again: a worker that was given up for dead may be writing a unit of it.
    if inventory.changed or tuple(classes) != writer.store.classes:
        writer.plan(inventory.table, classes)
    if PREPROJ in writer.store.outputs:
        put_projection(writer, described)


def exists(store: str) -> bool:
    """Whether there is a store to go on with; whatever else stands at the path is an error."""
    try:
        open_store(store)
    except NotAStore:
        if occupied(store):
            raise
        return False
    return True


def writer_of(store: str, described: Described, options: ExtractOptions) -> StoreWriter:
    """What writes a store that is there, or a new one.

    Raises StoreMismatch if another encoder made the store or it has other outputs.
    """
    if not exists(store):
        return StoreWriter.create(store, described.info, described.dim, options.dtype, options.unit_rows,
                                  described.outputs)
    writer = StoreWriter.open(store, described.info)
    check_outputs(writer.store, described.outputs)
    return writer


def splits_of(writer: StoreWriter, records: list[Record], here: np.ndarray,
              source: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The split of every row, drawn where the source does not say; and how it came about.

    here: rows of the images that are there.
    Raises SourceError if none of these could be read.
    """
    table = open_store(writer.store.path).table
    if not (table.state[here] == STORED).any():
        reasons = Counter(table.reason[here]).most_common(1)
        raise SourceError(f"none of the {len(here)} images in {source} could be read (most often: {reasons[0][0]}): "
                          "look at the files, or give another folder")
    if any(record.split for record in records):
        return table.split, {"how": "folders"}
    drawn = splits.draw_splits(table.label, table.split, table.state, table.digest, table.group)
    return drawn, {"how": "drawn", "method": splits.METHOD, "seed": splits.SEED, "shares": splits.SHARES}


def _report(store: Store, records: list[Record], inventory: Inventory, text: dict[str, Any],
            filling: Filling | WorkersFilling, profile: dict[str, Any] | None, remarks: list[str],
            seconds: float) -> Extraction:
    table = store.table
    counts = Counter(store.classes[label] for label in table.label[store.rows()])
    bad = {str(table.key[row]): str(table.reason[row]) for row in inventory.present if table.state[row] == BAD}
    return Extraction(
        store=store.path, images=len(records), encoded=filling.images, reused=inventory.reused, moved=inventory.moved,
        removed=inventory.removed, bad=len(bad), bad_images=bad,
        classes={name: counts[name] for name in store.classes},
        splits={name: len(store.rows(name)) for name in SPLITS},
        outputs={name: list(output.shape) for name, output in store.outputs.items()},
        encoder=store.encoder, text=text, rounding=asdict(filling.rounding), profile=profile, seconds=seconds,
        warnings=[*remarks,
                  *([f"{store.encoder['name']} has no text encoder: the store has no prompts, which most methods need "
                    "(linear-probe does without)"]
                    if store.classes and not store.texts else []),
                  *(f"class {name!r} has no prompts, because the text set is from a file: add it there and run "
                    "`onceclip text` again" for name in text.get("missing", ())),
                  *(f"class {name!r} has no readable image" for name in store.classes if not counts[name])],
    )
