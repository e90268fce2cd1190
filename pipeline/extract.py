"""Stage 1: encode the images of a source and its class prompts once, into a store."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onceclip.pipeline import splits
from onceclip.pipeline.decoders import TIMEOUT, Decoders
from onceclip.pipeline.embed import embed_prompts
from onceclip.pipeline.encoders import Encoder, EncoderSpec, open_encoder
from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.fill import Filling
from onceclip.pipeline.inventory import Inventory, take_inventory
from onceclip.pipeline.lanes import Lanes
from onceclip.pipeline.outputs import EMBEDDING_ALONE, OutputOptions, check_outputs, put_projection
from onceclip.pipeline.profile import Samples
from onceclip.pipeline.prompts import class_phrases, numbered
from onceclip.pipeline.sources import DEFAULTS, Record, SourceOptions, class_names, open_source
from onceclip.stores import NotAStore, Store, StoreWriter, open_store, write_lock
from onceclip.stores.place import occupied
from onceclip.stores.schema import BAD, SPLITS, STORED, UNIT_ROWS


@dataclass(frozen=True)
class ExtractOptions:
    """How to extract.

    templates: None keeps a store's own, else "a photo of a {}.". phrases: what prompts call a class folder.
    batch_size: images per pass, 0 for what suits the encoder. workers: decode processes, 0 for one per core.
    dtype: of stored embeddings. outputs: what to store beside them. source: how to list the images.
    decode_timeout: seconds that reading and decoding one image may take. profile: measure where the time goes.
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


def extract(source: str | Path, store: str | Path, encoder: EncoderSpec,
            options: ExtractOptions = ExtractOptions()) -> Extraction:
    """Encode a source of images into a store; on a store that exists, only what is new or changed.

    source: a folder of class folders, or what else `open_source` takes.
    Raises SourceError if there is nothing to encode or every image is bad, EncoderError for the encoder,
    StoreMismatch if another encoder made the store or it has other outputs.
    """
    begun = time.perf_counter()
    listing = open_source(str(source), options.source)
    records = listing.records
    classes = class_names(records)
    if len(classes) < 2 and not options.source.unlabelled:
        what = f"one class only ({classes[0]!r})" if classes else "no classes"
        raise SourceError(f"{source} has {what}: a classifier needs two; put the images of each class into a folder of "
                          "its own, FOLDER/CLASS/image.jpg or FOLDER/train/CLASS/image.jpg, or store them for predict "
                          "with --unlabelled")
    spoken = class_phrases(classes, options.phrases)  # complains before anything is loaded or written
    known = _exists(str(store))
    with Decoders(len(records), options.workers, options.decode_timeout) as decoders:
        if not known:  # else there may be nothing for them to do
            decoders.start()
        model = open_encoder(encoder)
        with write_lock(str(store)):
            writer = _writer(str(store), model, options)
            inventory = take_inventory(records, classes, writer.store, options.progress)
            changed = not writer.store.complete or inventory.changed or tuple(classes) != writer.store.classes
            if changed:
                writer.plan(inventory.table, classes)
                if "preproj" in writer.store.outputs:
                    put_projection(writer, model)
            text = {"prompts": 0, "encoded": 0}
            if model.has_text and classes:
                text = embed_prompts(writer, model, classes, options.phrases, options.templates)
            with Lanes(model) as lanes:
                filling = Filling(writer, decoders, lanes, inventory.contents, options.batch_size, options.progress,
                                  Samples(lanes.number) if options.profile else None)
                filling.embeddings()
                if changed:
                    split, drawn = _splits(writer, records, inventory, str(source))
                    filling.views(split)
                profile = filling.profile().as_values() if options.profile else None
            if changed:
                writer.finish(split, split_source=drawn)
    remarks = [*listing.remarks, *([warning] if text["encoded"] and (warning := numbered(spoken)) else [])]
    return _report(open_store(str(store)), records, inventory, text, filling, profile, remarks,
                   time.perf_counter() - begun)


def _exists(store: str) -> bool:
    """Whether there is a store to go on with; whatever else stands at the path is an error."""
    try:
        open_store(store)
    except NotAStore:
        if occupied(store):
            raise
        return False
    return True


def _writer(store: str, model: Encoder, options: ExtractOptions) -> StoreWriter:
    planned = options.outputs.planned(model)
    if not _exists(store):
        return StoreWriter.create(store, model.info, model.dim, options.dtype, options.unit_rows, planned)
    writer = StoreWriter.open(store, model.info)
    check_outputs(writer.store, planned)
    return writer


def _splits(writer: StoreWriter, records: list[Record], inventory: Inventory,
            source: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The split of every row, drawn where the source does not say; and how it came about."""
    table, here = open_store(writer.store.path).table, inventory.present
    if not (table.state[here] == STORED).any():
        reasons = Counter(table.reason[here]).most_common(1)
        raise SourceError(f"none of the {len(here)} images in {source} could be read (most often: {reasons[0][0]}): "
                          "look at the files, or give another folder")
    if any(record.split for record in records):
        return table.split, {"how": "folders"}
    drawn = splits.draw_splits(table.label, table.split, table.state, table.digest, table.group)
    return drawn, {"how": "drawn", "method": splits.METHOD, "seed": splits.SEED, "shares": splits.SHARES}


def _report(store: Store, records: list[Record], inventory: Inventory, text: dict[str, Any], filling: Filling,
            profile: dict[str, Any] | None, remarks: list[str], seconds: float) -> Extraction:
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
                  *([f"{store.encoder['name']} has no text encoder: the store has no prompts, which most methods need"]
                    if store.classes and not store.texts else []),
                  *(f"class {name!r} has no prompts, because the text set is from a file: add it there and run "
                    "`onceclip text` again" for name in text.get("missing", ())),
                  *(f"class {name!r} has no readable image" for name in store.classes if not counts[name])],
    )
