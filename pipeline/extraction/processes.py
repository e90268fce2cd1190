"""Which processes encode for an extraction: this one, or workers, which this one only hands tasks to."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from onceclip.adapters.cpu import fast_products
from onceclip.pipeline.encoders import EncoderSpec
from onceclip.pipeline.encoders.spec import TRANSFORMERS
from onceclip.pipeline.extraction.equipment import (
    Equipment,
    EquipmentSpec,
    TextTask,
    embed_text,
    get_ready,
    open_equipment,
    plan_store,
)
from onceclip.pipeline.extraction.outputs import StorePlan
from onceclip.pipeline.extraction.survey import ExtractOptions
from onceclip.pipeline.extraction.units import Progress, Remaining, UnitTask, encode_unit, encode_units, unit_tasks
from onceclip.pipeline.prompts.embedding import embed_prompts
from onceclip.pipeline.sources import Content, LocalFile
from onceclip.pipeline.sources.videos import Frame
from onceclip.pipeline.workers.work import Workers
from onceclip.stores import StoreWriter
from onceclip.stores.location import everywhere

_FOLDERS = ("local-dir:", TRANSFORMERS)


@dataclass
class ThisProcess:
    """Encodes all units itself."""

    equipment: Equipment
    options: ExtractOptions

    @property
    def plan(self) -> StorePlan:
        """What a store of the encoder is made from."""
        return self.equipment.plan

    def text(self, writer: StoreWriter, classes: Sequence[str]) -> tuple[dict[str, Any], StoreWriter]:
        """Embed the prompts of the classes; gives what was done, and the writer to go on with."""
        return embed_prompts(writer, self.equipment.encoder, classes, self.options.phrases,
                             self.options.templates), writer

    def encode(self, writer: StoreWriter, remaining: Remaining,
               contents: Mapping[int, Content]) -> Generator[Progress, None, None]:
        """Encode what is left to do of a store. contents: row to image file."""
        tasks = unit_tasks(writer, remaining, contents, self.equipment.spec)
        yield from encode_units(self.equipment, writer, tasks, len(remaining.rows), remaining.views)
        returned = self.equipment.decoders.given_back
        if returned and self.options.progress and not remaining.views:
            tqdm.write(f"{returned:,} JPEGs were left to the decode processes: torchvision could not decode them",
                       file=sys.stderr)


class WorkerProcesses:
    """As `ThisProcess`, by workers. Tasks carry names and numbers, never weights or images."""

    def __init__(self, spec: EquipmentSpec, options: ExtractOptions, workers: Workers) -> None:
        self.spec = replace(spec, encoder=_with_absolute_paths(spec.encoder), per_machine=workers.per_machine,
                            products=fast_products())
        self.options, self.workers = options, workers
        workers.begin(get_ready, self.spec)
        with closing(workers.work(plan_store, [self.spec])) as plans:
            self.plan: StorePlan = next(plans)

    def text(self, writer: StoreWriter, classes: Sequence[str]) -> tuple[dict[str, Any], StoreWriter]:
        """As of `ThisProcess`, by one worker; the writer to go on with is another one, which knows of the text."""
        path = writer.store.path
        task = TextTask(everywhere(path), self.spec, tuple(classes), self.options.phrases, self.options.templates,
                        torch.get_num_threads())
        done, = self.workers.work(embed_text, [task])
        return done, StoreWriter.open(path, self.plan.info, alone=False)

    def encode(self, writer: StoreWriter, remaining: Remaining,
               contents: Mapping[int, Content]) -> Generator[Progress, None, None]:
        """As of `ThisProcess`, a unit a task."""
        return self.workers.work(encode_unit, map(_for_workers, unit_tasks(writer, remaining, contents, self.spec)))


@contextmanager
def open_processes(encoder: EncoderSpec, options: ExtractOptions, images: int, start: bool,
                   workers: Workers | None = None) -> Iterator[ThisProcess | WorkerProcesses]:
    """Load an encoder where the images are to be encoded. workers: None for this process.

    images, start: as of `open_equipment`.
    """
    spec = EquipmentSpec(encoder, options.outputs, options.batch_size, options.workers, options.decode_timeout)
    if workers is not None:
        yield WorkerProcesses(spec, options, workers)
        return
    with open_equipment(spec, images, start) as equipment:
        yield ThisProcess(equipment, options)


def _with_absolute_paths(spec: EncoderSpec) -> EncoderSpec:
    """An encoder's specification that means the same in another working directory."""
    model = spec.model
    for prefix in _FOLDERS:
        if model.startswith(prefix) and os.path.isdir(model.removeprefix(prefix)):
            model = prefix + os.path.abspath(model.removeprefix(prefix))
    files = {name: os.path.abspath(value) for name in ("pretrained", "preprocess", "cache_dir")
             if (value := getattr(spec, name)) and os.path.exists(value)}
    return replace(spec, model=model, **files)


def _for_workers(task: UnitTask) -> UnitTask:
    """A task with absolute paths."""
    return replace(task, images=tuple((row, _with_absolute_path(content)) for row, content in task.images))


def _with_absolute_path(content: Content) -> Content:
    if isinstance(content, Frame) and isinstance(content.file, LocalFile):
        return replace(content, file=replace(content.file, path=os.path.abspath(content.file.path)))
    return replace(content, path=os.path.abspath(content.path)) if isinstance(content, LocalFile) else content
