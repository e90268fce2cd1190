"""Which processes encode for an extraction: this one, or workers, which this one only hands tasks to."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from onceclip.adapters.cpu import decided, fast_products
from onceclip.pipeline.decoding.decoders import Decoders
from onceclip.pipeline.encoders import Encoder, EncoderSpec, open_encoder
from onceclip.pipeline.errors import SourceError, WorkerError
from onceclip.pipeline.extraction.outputs import StorePlan
from onceclip.pipeline.extraction.survey import ExtractOptions
from onceclip.pipeline.extraction.units import Progress, Remaining, Unit, encode_units, rows_to_embed, units_of
from onceclip.pipeline.prompts.embedding import embed_prompts
from onceclip.pipeline.sources import Content, LocalFile, RemoteFile
from onceclip.pipeline.sources.videos import Clip, Frame
from onceclip.pipeline.workers.devices import cores
from onceclip.stores import NotAStore, StoreWriter
from onceclip.stores.location import everywhere

if TYPE_CHECKING:
    from onceclip.pipeline.workers.cluster import Workers


@dataclass
class ThisProcess:
    """Encodes all units itself. plan: what a store of the encoder is made from."""

    encoder: Encoder
    decoders: Decoders
    options: ExtractOptions
    plan: StorePlan

    def text(self, writer: StoreWriter, classes: Sequence[str]) -> tuple[dict[str, Any], StoreWriter]:
        """Embed the prompts of the classes; gives what was done, and the writer to go on with."""
        return embed_prompts(writer, self.encoder, classes, self.options.phrases, self.options.templates), writer

    def encode(self, writer: StoreWriter, remaining: Remaining,
               contents: Mapping[int, Content]) -> Generator[Progress, None, None]:
        """Encode what is left to do of a store. contents: row to image file."""
        yield from encode_units(self.encoder, self.decoders, writer, units_of(writer, remaining, contents),
                                len(remaining.rows), remaining.views, self.options.batch_size)
        returned = self.decoders.given_back
        if returned and self.options.progress and not remaining.views:
            tqdm.write(f"{returned:,} JPEGs were left to the decode processes: torchvision could not decode them",
                       file=sys.stderr)


class WorkerProcesses:
    """As `ThisProcess`, by workers. Tasks carry names and numbers, never weights or images."""

    def __init__(self, encoder: EncoderSpec, options: ExtractOptions, workers: Workers) -> None:
        self.options, self.workers = options, workers
        self.spec = EquipmentSpec(encoder.with_absolute_paths(), options, workers.per_machine, fast_products())
        workers.begin(plan_store, self.spec)
        with closing(workers.work(plan_store, [self.spec])) as plans:
            self.plan: StorePlan = next(plans)

    def text(self, writer: StoreWriter, classes: Sequence[str]) -> tuple[dict[str, Any], StoreWriter]:
        """As of `ThisProcess`, by one worker; the writer to go on with is another one, which knows of the text."""
        path = writer.store.path
        task = TextTask(everywhere(path), self.spec, tuple(classes), torch.get_num_threads())
        done, = self.workers.work(embed_text, [task])
        return done, StoreWriter.open(path, self.plan.info, alone=False)

    def encode(self, writer: StoreWriter, remaining: Remaining,
               contents: Mapping[int, Content]) -> Generator[Progress, None, None]:
        """As of `ThisProcess`, a unit a task."""
        store = everywhere(writer.store.path)
        return self.workers.work(encode_unit, (UnitTask(store, _for_workers(unit), self.spec, remaining.views)
                                               for unit in units_of(writer, remaining, contents)))


@contextmanager
def open_processes(encoder: EncoderSpec, options: ExtractOptions, images: int, start: bool,
                   workers: Workers | None = None) -> Iterator[ThisProcess | WorkerProcesses]:
    """Load an encoder where the images are to be encoded. workers: None for this process.

    images: about how many will come. start: whether there surely are some, so that decode processes can be started
    while the encoder is loaded.
    """
    if workers is not None:
        yield WorkerProcesses(encoder, options, workers)
        return
    with Decoders(images, options.workers, options.decode_timeout) as decoders:
        if start:
            decoders.start()
        opened = open_encoder(encoder)
        yield ThisProcess(opened, decoders, options, StorePlan.of(opened, options.outputs))


def _for_workers(unit: Unit) -> Unit:
    """A unit whose files have absolute paths."""
    return replace(unit, images=tuple((row, _with_absolute_path(content)) for row, content in unit.images))


def _with_absolute_path(content: Any) -> Any:
    if isinstance(content, Clip):
        return replace(content, frames=tuple(map(_with_absolute_path, content.frames)))
    if isinstance(content, Frame):
        return replace(content, file=_with_absolute_path(content.file))
    if isinstance(content, LocalFile):
        content = replace(content, path=os.path.abspath(content.path))
    if isinstance(content, LocalFile | RemoteFile) and content.mask:
        content = replace(content, mask=_with_absolute_path(content.mask))
    return content


@dataclass(frozen=True)
class EquipmentSpec:
    """What a worker is to encode with.

    per_machine: how many workers share the cores of a machine. products: the way to multiply matrices that the command
    decided on, so that all workers take one; empty to decide here.
    """

    encoder: EncoderSpec
    options: ExtractOptions
    per_machine: int = 1
    products: str = ""

    def __str__(self) -> str:
        return f"opening the encoder {self.encoder.model}"


@dataclass(frozen=True)
class UnitTask:
    """A unit of a store, for a worker to encode. views: as of `Remaining`."""

    store: str
    unit: Unit
    equipment: EquipmentSpec
    views: bool = False

    def __str__(self) -> str:
        (first, content), (last, _) = self.unit.images[0], self.unit.images[-1]
        path = getattr(content, "path", None) or getattr(content, "name", "")
        return (f"unit {self.unit.number} of {self.store} (rows {first} to {last}"
                f"{f', from {path} on' if path else ''})")


@dataclass(frozen=True)
class TextTask:
    """Prompts of a store's classes, for a worker to embed; the process that made this task holds the store's lock.

    threads: of torch, as many as the command itself would use, since the last bits of a text embedding depend on their
    number.
    """

    store: str
    equipment: EquipmentSpec
    classes: Sequence[str]
    threads: int

    def __str__(self) -> str:
        return f"the prompts of {self.store}"


@dataclass(frozen=True)
class Equipment:
    """What a worker has opened: an encoder, and the processes that decode for it."""

    spec: EquipmentSpec
    encoder: Encoder
    decoders: Decoders


class EquipmentCache:
    """What a worker has opened, for its next task."""

    def __init__(self) -> None:
        self._opened = ExitStack()
        self._equipment: Equipment | None = None

    def get(self, spec: EquipmentSpec) -> Equipment:
        """The equipment of a specification: that of the last task, or opened in its place."""
        before = self._equipment
        if before is not None and before.spec == spec:
            return before
        self.close()
        number = spec.options.workers or max(1, cores() // spec.per_machine)
        decoders = self._opened.enter_context(Decoders(0, number, spec.options.decode_timeout))
        decoders.start()  # they import what they need while the encoder is loaded
        same = before is not None and before.spec.encoder == spec.encoder
        with decided(spec.products) if spec.products else nullcontext():
            encoder = before.encoder if before is not None and same else open_encoder(spec.encoder)
        self._equipment = Equipment(spec, encoder, decoders)
        return self._equipment

    def close(self) -> None:
        """End the decode processes and let go of the encoder."""
        self._equipment = None
        self._opened.close()


CACHE = EquipmentCache()


def plan_store(spec: EquipmentSpec) -> StorePlan:
    """On a worker: open an encoder and say what a store of it is made from."""
    return StorePlan.of(CACHE.get(spec).encoder, spec.options.outputs)


def embed_text(task: TextTask) -> dict[str, Any]:
    """On a worker: embed prompts into a store."""
    encoder, options = CACHE.get(task.equipment).encoder, task.equipment.options
    writer = open_writer(task.store, encoder)
    before = torch.get_num_threads()
    torch.set_num_threads(task.threads)
    try:
        return embed_prompts(writer, encoder, task.classes, options.phrases, options.templates)
    finally:
        torch.set_num_threads(before)


def encode_unit(task: UnitTask, equipment: Equipment | None = None) -> Progress:
    """On a worker: encode the rows of one unit and commit it, with what this process has opened.

    Two workers have a unit at the same time only if we lost contact with one of them, and it goes on. Every write
    replaces a whole file by its final name, and both write the whole unit with the same values, the states last; so it
    does not matter whose are last. A unit that is not full is not written: it would take back what the other one has
    done. (If the values of two workers differ in their last bits, as those of different GPUs may, the values of one can
    end up beside the checksums of the other: reading says so, and `onceclip verify --repair` has the unit made again.)
    """
    equipment = equipment or CACHE.get(task.equipment)
    _look_for_images(task)
    writer = open_writer(task.store, equipment.encoder, [task.unit.number])
    left = {row for row, _ in task.unit.images} if task.views else {*rows_to_embed(writer).rows.tolist()}
    unit = replace(task.unit, images=tuple(each for each in task.unit.images if each[0] in left))
    with closing(encode_units(equipment.encoder, equipment.decoders, writer, [unit], len(unit.images), task.views,
                              task.equipment.options.batch_size, torch.get_num_threads(), flush=False)) as steps:
        done = list(steps)
    return Progress(len(task.unit.images), sum(each.bad for each in done),
                    sum((each.interrupted for each in done), ()))


def _look_for_images(task: UnitTask) -> None:
    """Raise SourceError rather than record a unit of bad images where this machine does not have the folder."""
    paths = [content.path for _, content in task.unit.images if isinstance(content, LocalFile)]
    if paths and not any(os.path.exists(os.path.dirname(path)) for path in paths):
        raise SourceError(f"the worker on {socket.gethostname()} finds none of the folders of {task}: give images that "
                          "all machines can read, or the URL of their folder")


def open_writer(store: str, encoder: Encoder, units: Collection[int] | None = None) -> StoreWriter:
    """On a worker: open a store for writing. units: those that alone are written.

    Raises WorkerError where this machine does not have it.
    """
    try:
        return StoreWriter.open(store, encoder.info, units)
    except NotAStore as error:
        raise WorkerError(f"the worker on {socket.gethostname()} finds no store at {store}: give a path that all "
                          "machines have, or the URL of an object store") from error
