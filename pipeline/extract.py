"""Stage 1: encode the images of a folder and its class prompts once, into a store."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from onceclip.pipeline import splits
from onceclip.pipeline.embed import embed_prompts
from onceclip.pipeline.encoder import Encoder, EncoderSpec, open_encoder
from onceclip.pipeline.errors import BadImage, SourceError
from onceclip.pipeline.images import decode, decoding, read_bytes
from onceclip.pipeline.inventory import Inventory, take_inventory
from onceclip.pipeline.prompts import class_phrases
from onceclip.pipeline.sources import class_names, list_images
from onceclip.stores import NotAStore, StoreWriter, open_store
from onceclip.stores.fingerprint import digest
from onceclip.stores.schema import BAD, SPLITS, STORED, TODO, UNIT_ROWS

FLUSH_SECONDS = 30.0  # at most this much encoding is lost when the process is killed


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
    existing = _existing(str(store))
    model = open_encoder(encoder)
    writer = (StoreWriter.open(str(store), model.info) if existing
              else StoreWriter.create(str(store), model.info, model.dim, options.dtype, options.unit_rows))

    inventory = take_inventory(records, classes, writer.store, options.progress)
    unchanged = writer.store.complete and not inventory.changed and tuple(classes) == writer.store.classes
    if not unchanged:
        writer.plan(inventory.table, classes)
    text = embed_prompts(writer, model, classes, options.phrases, options.templates)
    encoded = _encode(writer, model, inventory, options)

    table = open_store(str(store)).table
    here = inventory.present
    if not (table.state[here] == STORED).any():
        reasons = Counter(table.reason[here]).most_common(1)
        raise SourceError(f"none of the {len(here)} images in {folder} could be read (most often: {reasons[0][0]}): "
                          "look at the files, or give another folder")
    given = any(record.split for record in records)
    split = table.split if given else splits.draw_splits(table.label, table.split, table.state, table.digest)
    source = {"how": "folders"} if given else {"how": "drawn", "method": splits.METHOD, "seed": splits.SEED,
                                               "shares": splits.SHARES}
    finished = open_store(str(store)) if unchanged else writer.finish(split, split_source=source)
    stored = finished.rows(labelled=False)
    counts = Counter(classes[label] for label in finished.table.label[stored] if label >= 0)
    bad = {str(table.key[row]): str(table.reason[row]) for row in here if table.state[row] == BAD}
    return Extraction(
        store=str(store), images=len(records), encoded=encoded, reused=inventory.reused, moved=inventory.moved,
        removed=inventory.removed, bad=len(bad), bad_images=bad,
        classes={name: counts[name] for name in classes},
        splits={name: len(finished.rows(name)) for name in SPLITS},
        encoder=model.info, text=text, seconds=time.perf_counter() - begun,
        warnings=[f"class {name!r} has no readable image" for name in classes if not counts[name]],
    )


def _existing(store: str) -> bool:
    try:
        open_store(store)
    except NotAStore:
        if Path(store).exists() and (not Path(store).is_dir() or any(Path(store).iterdir())):
            raise
        return False
    return True


def _encode(writer: StoreWriter, model: Encoder, inventory: Inventory, options: ExtractOptions) -> int:
    """Fill every unit that has rows to do; gives the number of rows encoded."""
    todo = np.flatnonzero(inventory.table.state == TODO)
    encoded = 0
    workers = options.workers or os.cpu_count() or 1
    with decoding(), ThreadPoolExecutor(workers) as pool, tqdm(
            total=len(inventory.table), initial=len(inventory.table) - len(todo), unit="image", desc="encode",
            disable=None if options.progress and len(todo) else True) as bar:
        prepared = _prepared(pool, model, inventory, todo, 2 * workers + options.batch_size)
        for number in np.unique(todo // writer.unit_rows):
            unit = _Unit(writer, int(number))
            rows = todo[todo // writer.unit_rows == number]
            try:
                for batch in _batches(islice(prepared, len(rows)), options.batch_size):
                    encoded += unit.fill(batch, model)
                    bar.update(len(batch))
                    bar.set_postfix(bad=unit.bad)
            finally:
                # Also on Ctrl-C: what was encoded is kept, the next run goes on behind it.
                unit.commit()
    return encoded


@dataclass(frozen=True)
class _Prepared:
    row: int
    digest: bytes
    pixels: torch.Tensor | None
    reason: str


def _prepared(pool: ThreadPoolExecutor, model: Encoder, inventory: Inventory, rows: np.ndarray,
              ahead: int) -> Iterator[_Prepared]:
    """Read and decode in threads, in order, at most `ahead` images before they are taken."""

    def prepare(row: int) -> _Prepared:
        content = b""
        try:
            content = read_bytes(inventory.paths[row])
            return _Prepared(row, digest(content), model.preprocess(decode(content)), "")
        except BadImage as error:
            return _Prepared(row, digest(content), None, str(error))

    waiting: list[Future[_Prepared]] = []
    upcoming = iter(rows.tolist())
    try:
        waiting.extend(pool.submit(prepare, row) for row in islice(upcoming, ahead))
        while waiting:
            first = waiting.pop(0)
            waiting.extend(pool.submit(prepare, row) for row in islice(upcoming, 1))
            yield first.result()
    finally:
        for future in waiting:
            future.cancel()


def _batches(items: Iterator[_Prepared], size: int) -> Iterator[list[_Prepared]]:
    while batch := list(islice(items, size)):
        yield batch


class _Unit:
    """One unit in memory while it fills."""

    def __init__(self, writer: StoreWriter, number: int) -> None:
        self.writer, self.number = writer, number
        self.where, self.embedding = writer.unit(number)
        table = writer.store.table
        self.digest, self.reason, self.state = (column[self.where].copy() for column in
                                                (table.digest, table.reason, table.state))
        self.written = time.monotonic()
        self.bad = 0

    def fill(self, batch: Sequence[_Prepared], model: Encoder) -> int:
        """Encode a batch into the unit; gives the number of embeddings."""
        good = [item.pixels for item in batch if item.pixels is not None]
        vectors = iter(model.encode_images(torch.stack(good)) if good else ())
        limit = np.finfo(self.embedding.dtype).max
        stored = 0
        for item in batch:
            place = item.row - self.where.start
            self.digest[place] = np.frombuffer(item.digest, np.uint8)
            vector = next(vectors) if item.pixels is not None else None
            reason = item.reason
            if vector is not None and not (np.abs(vector) <= limit).all():
                vector, reason = None, f"the encoder gave values that {self.embedding.dtype} cannot hold"
            self.reason[place] = reason
            self.state[place] = BAD if vector is None else STORED
            self.embedding[place] = np.nan if vector is None else vector
            stored += vector is not None
            self.bad += vector is None
        if time.monotonic() - self.written > FLUSH_SECONDS:
            self.commit()
        return stored

    def commit(self) -> None:
        self.writer.commit(self.number, self.embedding, self.digest, self.reason, self.state)
        self.written = time.monotonic()
