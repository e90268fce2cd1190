"""What a worker does for an extraction. It keeps the encoder, and the processes that decode, for its next task."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from onceclip.pipeline.cluster.machine import cores, reached
from onceclip.pipeline.crew import Described
from onceclip.pipeline.decoders import TIMEOUT, Decoders
from onceclip.pipeline.embed import embed_prompts
from onceclip.pipeline.encoders import Encoder, EncoderSpec, open_encoder
from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.fill import Filling
from onceclip.pipeline.lanes import Lanes
from onceclip.pipeline.outputs import OutputOptions
from onceclip.pipeline.sources import Content, LocalFile
from onceclip.pipeline.units import Rounding
from onceclip.stores import StoreWriter


@dataclass(frozen=True)
class Equipment:
    """What a worker encodes with. neighbours: workers that share the cores of its machine, itself included.

    batch_size, decode_timeout: as of ExtractOptions. decoders: decode processes, 0 for its share of the cores.
    """

    encoder: EncoderSpec
    batch_size: int = 0
    decoders: int = 0
    decode_timeout: float = TIMEOUT
    neighbours: int = 1


@dataclass(frozen=True)
class Unit:
    """A unit of a store, and its rows that are to be encoded: (row, image file) each. views: whether to make those."""

    store: str
    number: int
    images: tuple[tuple[int, Content], ...]
    equipment: Equipment
    views: bool = False

    def __str__(self) -> str:
        (first, content), (last, _) = self.images[0], self.images[-1]
        path = getattr(content, "path", None) or getattr(content, "name", "")
        return f"unit {self.number} of {self.store} (rows {first} to {last}{f', from {path} on' if path else ''})"


@dataclass(frozen=True)
class Filled:
    """What became of a unit: rows that were encoded, and those of them that are bad."""

    rows: int
    bad: int
    rounding: Rounding


@dataclass(frozen=True)
class Question:
    """What is an encoder? For a store that is to have these outputs."""

    encoder: EncoderSpec
    outputs: OutputOptions

    def __str__(self) -> str:
        return f"opening the encoder {self.encoder.model}"


@dataclass(frozen=True)
class Sentences:
    """The prompts of a store's classes; the store's lock is held by who hands this out."""

    store: str
    encoder: EncoderSpec
    classes: tuple[str, ...]
    phrases: dict[str, str] | None
    templates: tuple[str, ...] | None

    def __str__(self) -> str:
        return f"the prompts of {self.store}"


class Held:
    """What this process has opened. threads: that it may compute with. limited: whether torch was told so."""

    def __init__(self) -> None:
        self.threads, self.limited = 1, False
        self._opened = ExitStack()
        self._spec: EncoderSpec | None = None
        self._equipment: Equipment | None = None

    def encoder(self, spec: EncoderSpec) -> Encoder:
        if self._spec != spec:
            self.close()
            self._open(spec)
        return self._encoder

    def crew(self, equipment: Equipment) -> tuple[Decoders, Lanes]:
        if self._equipment != equipment:
            self.close()
            number = equipment.decoders or max(1, cores() // equipment.neighbours)
            decoders = self._opened.enter_context(Decoders(0, number, equipment.decode_timeout))
            decoders.start()  # they import what they need while the encoder is opened
            if self._spec != equipment.encoder:
                self._open(equipment.encoder)
            lanes = self._opened.enter_context(Lanes(self._encoder, self.threads))
            self._equipment, self._crew = equipment, (decoders, lanes)
        return self._crew

    def _open(self, spec: EncoderSpec) -> None:
        self._spec, self._encoder = None, open_encoder(spec)
        self._spec = spec

    def close(self) -> None:
        """End the decode processes and lanes, which sets torch's threads back; the encoder stays."""
        self._opened.close()
        self._equipment = None


_HELD = Held()


def give_threads(number: int) -> None:
    """Let this process compute with a number of threads."""
    if not _HELD.limited or _HELD.threads != number:
        _HELD.close()
        _HELD.threads, _HELD.limited = number, True
        torch.set_num_threads(number)


def get_ready(equipment: Equipment) -> None:
    """Open what the first unit will need."""
    _HELD.crew(equipment)


def describe(question: Question) -> Described:
    """Open an encoder and say what it is."""
    return Described.of(_HELD.encoder(question.encoder), question.outputs)


def embed_text(sentences: Sentences) -> dict[str, Any]:
    """Embed prompts into a store; with all cores, since nothing else is done meanwhile."""
    encoder = _HELD.encoder(sentences.encoder)
    writer = reached(sentences.store, partial(StoreWriter.open, sentences.store, encoder.info))
    before = torch.get_num_threads()
    torch.set_num_threads(cores())
    try:
        return embed_prompts(writer, encoder, sentences.classes, sentences.phrases, sentences.templates)
    finally:
        torch.set_num_threads(before)


def encode_unit(unit: Unit, held: Held | None = None) -> Filled:
    """Encode the rows of one unit and commit it, with what this process has opened.

    Two workers have a unit at the same time only if one of them was given up for dead, and is not. Every write replaces
    a whole file by its final name, and both write the whole unit with the same values, the states last; so it does not
    matter whose are last. A unit that is not full is not written: it would take back what the other one has done. (What
    writes values that differ in their last bits, as another kind of GPU may, can leave those of one beside
    the checksums of the other: reading says so, and `onceclip verify --repair` has the unit made again.)
    """
    held = held or _HELD
    (decoders, lanes), encoder = held.crew(unit.equipment), held.encoder(unit.equipment.encoder)
    _look_for_images(unit)
    writer = reached(unit.store, partial(StoreWriter.open, unit.store, encoder.info, units=[unit.number]))
    filling = Filling(writer, decoders, lanes, dict(unit.images), unit.equipment.batch_size, flush=False)
    if unit.views:
        filling.make_views(np.array([row for row, _ in unit.images]), len(unit.images))
    else:
        filling.embeddings()
    return Filled(len(unit.images), filling.bad, filling.rounding)


def _look_for_images(unit: Unit) -> None:
    """Raise SourceError rather than record a unit of bad images where this machine does not have the folder."""
    paths = [content.path for _, content in unit.images if isinstance(content, LocalFile)]
    if paths and not any(os.path.exists(os.path.dirname(path)) for path in paths):
        raise SourceError(f"the worker on {socket.gethostname()} finds none of the folders of {unit}: give images that "
                          "all machines can read, or the URL of their folder")
