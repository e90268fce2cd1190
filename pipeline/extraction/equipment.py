"""What a process encodes with: an encoder, and the processes that decode for it."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from onceclip.adapters.cpu import decided
from onceclip.pipeline.decoding.decoders import TIMEOUT, Decoders
from onceclip.pipeline.encoders import Encoder, EncoderSpec, open_encoder
from onceclip.pipeline.errors import WorkerError
from onceclip.pipeline.extraction.outputs import EMBEDDING_ALONE, OutputOptions, StorePlan
from onceclip.pipeline.prompts.embedding import embed_prompts
from onceclip.pipeline.workers.devices import cores
from onceclip.stores import NotAStore, StoreWriter


@dataclass(frozen=True)
class EquipmentSpec:
    """What a process is to encode with, as a value that can be sent to workers.

    outputs, batch_size, decode_timeout: as of ExtractOptions. decoders: decode processes; 0 for one per core, which the
    workers of one machine share. per_machine: how many those are. products: the way to multiply matrices that the
    command decided on, so that all workers take one; empty to decide here.
    """

    encoder: EncoderSpec
    outputs: OutputOptions = EMBEDDING_ALONE
    batch_size: int = 0
    decoders: int = 0
    decode_timeout: float = TIMEOUT
    per_machine: int = 1
    products: str = ""

    def __str__(self) -> str:
        return f"opening the encoder {self.encoder.model}"


@dataclass
class Equipment:
    """A loaded encoder and its decode processes, in this process."""

    spec: EquipmentSpec
    encoder: Encoder
    decoders: Decoders

    @cached_property
    def plan(self) -> StorePlan:
        """What a store of this encoder is made from.

        Raises EncoderError if it cannot give an output that is asked for.
        """
        return StorePlan.of(self.encoder, self.spec.outputs)


@contextmanager
def open_equipment(spec: EquipmentSpec, images: int, start: bool) -> Iterator[Equipment]:
    """Load an encoder for an extraction by this process alone.

    images: about how many will come. start: whether there surely are some, so that decode processes can be started
    while the encoder is loaded.
    """
    with Decoders(images, spec.decoders, spec.decode_timeout) as decoders:
        if start:
            decoders.start()
        yield Equipment(spec, open_encoder(spec.encoder), decoders)


@dataclass(frozen=True)
class TextTask:
    """Prompts of a store's classes, for a worker to embed; who hands this out has the store's lock.

    classes, phrases, templates: as of `embed_prompts`. threads: of torch, as many as the command itself would use,
    since the last bits of a text embedding depend on their number.
    """

    store: str
    equipment: EquipmentSpec
    classes: Sequence[str]
    phrases: dict[str, str] | None
    templates: tuple[str, ...] | None
    threads: int

    def __str__(self) -> str:
        return f"the prompts of {self.store}"


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
        number = spec.decoders or max(1, cores() // spec.per_machine)
        decoders = self._opened.enter_context(Decoders(0, number, spec.decode_timeout))
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


def open_writer(store: str, encoder: Encoder, units: Collection[int] | None = None) -> StoreWriter:
    """On a worker: open a store for writing. units: those that alone are written.

    Raises WorkerError where this machine does not have it.
    """
    try:
        return StoreWriter.open(store, encoder.info, units)
    except NotAStore as error:
        raise WorkerError(f"the worker on {socket.gethostname()} finds no store at {store}: give a path that all "
                          "machines have, or the URL of an object store") from error


def get_ready(spec: EquipmentSpec) -> None:
    """On a worker: open what the first task will need."""
    CACHE.get(spec)


def plan_store(spec: EquipmentSpec) -> StorePlan:
    """On a worker: open an encoder and say what a store of it is made from."""
    return CACHE.get(spec).plan


def embed_text(task: TextTask) -> dict[str, Any]:
    """On a worker: embed prompts into a store."""
    encoder = CACHE.get(task.equipment).encoder
    writer = open_writer(task.store, encoder)
    before = torch.get_num_threads()
    torch.set_num_threads(task.threads)
    try:
        return embed_prompts(writer, encoder, task.classes, task.phrases, task.templates)
    finally:
        torch.set_num_threads(before)
