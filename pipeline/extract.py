"""Stage 1: encode the images of a folder and its class prompts once, into a store."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onceclip.pipeline import splits
from onceclip.pipeline.embed import embed_prompts
from onceclip.pipeline.encode import encode_images
from onceclip.pipeline.encoder import EncoderSpec, open_encoder
from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.inventory import Inventory, take_inventory
from onceclip.pipeline.prompts import class_phrases
from onceclip.pipeline.sources import Record, class_names, list_images
from onceclip.stores import NotAStore, Store, StoreWriter, open_store, write_lock
from onceclip.stores.reader import occupied
from onceclip.stores.schema import BAD, SPLITS, STORED, UNIT_ROWS


@dataclass(frozen=True)
class ExtractOptions:
    """How to extract.

    templates: None keeps a store's own, else "a photo of a {}.". phrases: what prompts call a class folder.
    batch_size: images per pass. workers: decoding threads, 0 for one per core. dtype: of stored embeddings.
    """

    templates: tuple[str, ...] | None = None
    phrases: dict[str, str] | None = None
    batch_size: int = 64
    workers: int = 0
    dtype: str = "float16"
    unit_rows: int = UNIT_ROWS
    progress: bool = False


@dataclass(frozen=True)
class Extraction:
    """What one extraction did. encoded, reused, moved, removed, bad: numbers of images."""

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
    encoder: dict[str, Any]
    text: dict[str, Any]
    seconds: float
    warnings: list[str] = field(default_factory=list)


def extract(folder: str | Path, store: str | Path, encoder: EncoderSpec,
            options: ExtractOptions = ExtractOptions()) -> Extraction:
    """Encode a folder of class folders into a store; on a store that exists, only what is new or changed.

    Raises SourceError if there is nothing to encode or every image is bad, EncoderError for the encoder,
    StoreMismatch if another encoder made the store.
    """
    begun = time.perf_counter()
    records = list_images(Path(folder))
    classes = class_names(records)
    if len(classes) < 2:
        what = f"one class only ({classes[0]!r})" if classes else "no class folders"
        raise SourceError(f"{folder} has {what}: put the images of each class into a folder of its own, "
                          "FOLDER/CLASS/image.jpg or FOLDER/train/CLASS/image.jpg; a classifier needs two classes")
    class_phrases(classes, options.phrases)  # complains before anything is loaded or written
    known = _exists(str(store))
    model = open_encoder(encoder)
    with write_lock(str(store)):
        writer = (StoreWriter.open(str(store), model.info) if known or _exists(str(store))
                  else StoreWriter.create(str(store), model.info, model.dim, options.dtype, options.unit_rows))
        inventory = take_inventory(records, classes, writer.store, options.progress)
        unchanged = writer.store.complete and not inventory.changed and tuple(classes) == writer.store.classes
        if not unchanged:
            writer.plan(inventory.table, classes)
        text = embed_prompts(writer, model, classes, options.phrases, options.templates)
        encoded = encode_images(writer, model, inventory, options.batch_size, options.workers, options.progress)
        finished = open_store(str(store)) if unchanged else _finish(writer, records, inventory, Path(folder))
    return _report(finished, records, inventory, text, encoded, time.perf_counter() - begun)


def _exists(store: str) -> bool:
    """Whether there is a store to go on with; whatever else stands at the path is an error."""
    try:
        open_store(store)
    except NotAStore:
        if occupied(store):
            raise
        return False
    return True


def _finish(writer: StoreWriter, records: list[Record], inventory: Inventory, folder: Path) -> Store:
    """Draw the splits that the folders do not give, and declare the store complete."""
    table, here = open_store(writer.store.path).table, inventory.present
    if not (table.state[here] == STORED).any():
        reasons = Counter(table.reason[here]).most_common(1)
        raise SourceError(f"none of the {len(here)} images in {folder} could be read (most often: {reasons[0][0]}): "
                          "look at the files, or give another folder")
    if any(record.split for record in records):
        return writer.finish(table.split, split_source={"how": "folders"})
    drawn = splits.draw_splits(table.label, table.split, table.state, table.digest)
    return writer.finish(drawn, split_source={"how": "drawn", "method": splits.METHOD, "seed": splits.SEED,
                                              "shares": splits.SHARES})


def _report(store: Store, records: list[Record], inventory: Inventory, text: dict[str, Any], encoded: int,
            seconds: float) -> Extraction:
    table = store.table
    counts = Counter(store.classes[label] for label in table.label[store.rows()])
    bad = {str(table.key[row]): str(table.reason[row]) for row in inventory.present if table.state[row] == BAD}
    return Extraction(
        store=store.path, images=len(records), encoded=encoded, reused=inventory.reused, moved=inventory.moved,
        removed=inventory.removed, bad=len(bad), bad_images=bad,
        classes={name: counts[name] for name in store.classes},
        splits={name: len(store.rows(name)) for name in SPLITS},
        encoder=store.encoder, text=text, seconds=seconds,
        warnings=[f"class {name!r} has no readable image" for name in store.classes if not counts[name]],
    )
