"""What encodes for an extraction by workers elsewhere: they open the encoder, this process never does."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from onceclip.pipeline.cluster.worker import (
    Equipment,
    Question,
    Sentences,
    Unit,
    describe,
    embed_text,
    encode_unit,
    get_ready,
)
from onceclip.pipeline.crew import Described
from onceclip.pipeline.encoders import EncoderSpec
from onceclip.pipeline.encoders.spec import TRANSFORMERS
from onceclip.pipeline.errors import WorkerError
from onceclip.pipeline.fill import rows_to_embed, rows_to_view
from onceclip.pipeline.sources import Content, LocalFile
from onceclip.pipeline.sources.videos import Frame
from onceclip.pipeline.units import Rounding
from onceclip.pipeline.workers import Workers
from onceclip.stores import StoreWriter
from onceclip.stores.location import everywhere

if TYPE_CHECKING:
    from onceclip.pipeline.extract import ExtractOptions
    from onceclip.pipeline.profile import Profile

_FOLDERS = ("local-dir:", TRANSFORMERS)


class WorkersCrew:
    """As `pipeline.crew.Crew`, by workers. Tasks carry names and numbers, never weights or images."""

    def __init__(self, encoder: EncoderSpec, workers: Workers, options: ExtractOptions) -> None:
        if options.profile:
            raise WorkerError("workers do not say where their time goes: leave the profile away, or extract without "
                              "them")
        self.encoder, self.workers, self.options = _anywhere(encoder), workers, options
        workers.begin(get_ready, self._equipment())
        with closing(workers.work(describe, [Question(self.encoder, options.outputs)])) as answers:
            self.described: Described = next(answers)

    def text(self, writer: StoreWriter, classes: Sequence[str]) -> tuple[dict[str, Any], StoreWriter]:
        """Have one worker embed the prompts of the classes; gives what was done, and a writer that knows of it."""
        path = writer.store.path
        sentences = Sentences(everywhere(path), self.encoder, tuple(classes), self.options.phrases,
                              self.options.templates)
        done, = self.workers.work(embed_text, [sentences])
        return done, StoreWriter.open(path, self.described.info)

    @contextmanager
    def filling(self, writer: StoreWriter, contents: Mapping[int, Content]) -> Iterator[WorkersFilling]:
        """Have a store filled. contents: row to image file."""
        yield WorkersFilling(writer, self.workers, self._equipment(), contents, self.options.progress)

    def _equipment(self) -> Equipment:
        options = self.options
        return Equipment(self.encoder, options.batch_size, options.workers, options.decode_timeout,
                         self.workers.per_machine)


@dataclass
class WorkersFilling:
    """As `pipeline.fill.Filling`: fills one store, a unit a task."""

    writer: StoreWriter
    workers: Workers
    equipment: Equipment
    contents: Mapping[int, Content]
    progress: bool = False
    images: int = 0
    rounding: Rounding = field(default_factory=Rounding)

    def embeddings(self) -> None:
        """Have every row encoded that is to be done."""
        rows, total = rows_to_embed(self.writer)
        self.images = self._fill(rows, total, "encode", views=False)

    def views(self, split: np.ndarray) -> None:
        """Have the views made of the stored rows that are to have some and have none. split: (rows,)."""
        self._fill(*rows_to_view(self.writer, split), "views", views=True)

    def profile(self) -> Profile:
        """Where the time went, which workers do not tell: `WorkersCrew` refuses to be asked."""
        raise NotImplementedError

    def _fill(self, rows: np.ndarray, total: int, name: str, views: bool) -> int:
        """Gives how many rows became good."""
        done, bad = total - len(rows), 0
        if done and len(rows) and self.progress:
            tqdm.write(f"{done:,} of {total:,} already done", file=sys.stderr)
        with tqdm(total=total, initial=done, unit="image", desc=name,
                  disable=None if self.progress and len(rows) else True) as bar, \
                closing(self.workers.work(encode_unit, self._units(rows, views))) as finished:
            for filled in finished:
                bad += filled.bad
                self.rounding = Rounding(max(self.rounding.relative, filled.rounding.relative),
                                         max(self.rounding.cosine, filled.rounding.cosine))
                bar.update(filled.rows)
                if bad:
                    bar.set_postfix(bad=bad)
        return len(rows) - bad

    def _units(self, rows: np.ndarray, views: bool) -> Iterator[Unit]:
        """The tasks, made as they are handed out."""
        store, size = everywhere(self.writer.store.path), self.writer.unit_rows
        last = int(rows[-1]) // size if len(rows) else -1
        edges = np.searchsorted(rows, size * np.arange(last + 2))
        for number, (start, stop) in enumerate(pairwise(edges.tolist())):
            if start < stop:
                images = tuple((row, _read_anywhere(self.contents[row])) for row in rows[start:stop].tolist())
                yield Unit(store, number, images, self.equipment, views)


def _anywhere(spec: EncoderSpec) -> EncoderSpec:
    """An encoder's specification in which files and folders of this machine have absolute paths."""
    model = spec.model
    for prefix in _FOLDERS:
        if model.startswith(prefix) and os.path.isdir(model.removeprefix(prefix)):
            model = prefix + os.path.abspath(model.removeprefix(prefix))
    files = {name: os.path.abspath(value) for name in ("pretrained", "preprocess", "cache_dir")
             if (value := getattr(spec, name)) and os.path.exists(value)}
    return replace(spec, model=model, **files)


def _read_anywhere(content: Content) -> Content:
    if isinstance(content, Frame) and isinstance(content.file, LocalFile):
        return replace(content, file=replace(content.file, path=os.path.abspath(content.file.path)))
    return replace(content, path=os.path.abspath(content.path)) if isinstance(content, LocalFile) else content
