"""One pass over images: their batches in shared memory, and the tasks that fill them."""

from __future__ import annotations

import math
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, Protocol

import numpy as np

from onceclip.pipeline.decoding.preparation import Jpeg
from onceclip.pipeline.decoding.worker import IDLE, Done, Held, Task
from onceclip.pipeline.errors import BadImage
from onceclip.pipeline.sources import Content
from onceclip.stores.identity import DIGEST_BYTES, digest

_TASK = 8  # images that a decode process takes at once
_PAGE = 4096
_WAITING_BYTES = 2**28  # of JPEGs that wait for a device at once


@dataclass
class Batch:
    """Consecutive images.

    rows: their numbers. pixels: (images, *shape) in shared memory; of good images, and until the batch is released.
    digests: (images, 16). reasons: why an image is bad, else empty. waiting: images that are still to come.
    """

    rows: list[int]
    pixels: np.ndarray
    slot: int
    digests: np.ndarray
    reasons: list[str]
    waiting: int

    @property
    def good(self) -> np.ndarray:
        """Places of the images that have pixels."""
        return np.flatnonzero([not reason for reason in self.reasons])


class Device(Protocol):
    """What decodes the plain JPEGs that the processes hand on."""

    def submit(self, jpegs: list[Jpeg]) -> Future[list[np.ndarray | None]]:
        """Have some decoded: pixels of each, None for one that could not be."""


@dataclass(frozen=True)
class _Handed:
    """JPEGs of a batch that a device has. places: theirs in the batch."""

    batch: Batch
    places: list[int]
    jpegs: list[Jpeg]
    future: Future[list[np.ndarray | None]]


class Stream:
    """The batches of one pass that are under way, and the tasks that no process has yet.

    shape: of a batch's pixels. slots: batches in memory at once. processes: that share the memory; each has a number
    in it, the place of the image in hand within its task. device: what plain JPEGs are handed on to.
    ring: is called, from any thread, when the device has done some.
    """

    def __init__(self, images: Iterator[tuple[int, Content]], handle: int, shape: Sequence[int], dtype: np.dtype,
                 slots: int, processes: int, device: Device | None, ring: Callable[[Any], None]) -> None:
        self.images, self.shape, self.dtype, self.processes = images, tuple(shape), dtype, processes
        self._image_bytes = math.prod(self.shape[1:]) * dtype.itemsize
        self._begin = _whole_pages(8 * processes)
        self._slot_bytes = _whole_pages(self.shape[0] * self._image_bytes)
        size = max(self._begin + slots * self._slot_bytes, os.fstat(handle).st_size)
        os.ftruncate(handle, size)
        self.memory = mmap.mmap(handle, size)
        self.cells = np.frombuffer(self.memory, np.int64, processes)
        self.cells[:] = IDLE
        self.free = deque(range(slots))
        self.batches: deque[Batch] = deque()
        self.tasks: deque[Task] = deque()
        self._device, self._ring = device, ring
        self._handed: list[_Handed] = []
        self._numbers = count()
        self._places: dict[int, tuple[Batch, list[int]]] = {}  # of each task's images in their batch

    def fill(self) -> None:
        """Make tasks of the next images while there is memory for them."""
        while self.free and (images := list(islice(self.images, self.shape[0]))):
            slot, size = self.free.popleft(), len(images)
            pixels = np.ndarray((size, *self.shape[1:]), self.dtype, self.memory,
                                self._begin + slot * self._slot_bytes)
            batch = Batch([row for row, _ in images], pixels, slot, np.zeros((size, DIGEST_BYTES), np.uint8),
                          [""] * size, size)
            self.batches.append(batch)
            # A small batch is spread over all processes.
            step = max(1, min(_TASK, size // (2 * self.processes)))
            for start in range(0, size, step):
                places = list(range(size))[start:start + step]
                self.tasks.append(self._task(batch, places, [_sendable(images[place][1]) for place in places]))

    def _task(self, batch: Batch, places: list[int], contents: list[Content], verdict: str = "",
              given_back: bool = False) -> Task:
        number, begin = next(self._numbers), self._begin + batch.slot * self._slot_bytes
        self._places[number] = batch, places
        return Task(number, contents, [begin + place * self._image_bytes for place in places], verdict, given_back)

    def finish(self, done: Done) -> None:
        """Note what became of the images of a task."""
        batch, places = self._places.pop(done.number)
        for place, content, reason in zip(places, done.digests, done.reasons, strict=True):
            batch.digests[place] = np.frombuffer(content, np.uint8)
            batch.reasons[place] = reason
        batch.waiting -= len(places) - len(done.jpegs)
        if done.jpegs:
            assert self._device is not None
            jpegs = list(done.jpegs.values())
            future = self._device.submit(jpegs)
            self._handed.append(_Handed(batch, [places[each] for each in done.jpegs], jpegs, future))
            future.add_done_callback(self._ring)

    @property
    def full(self) -> bool:
        """Whether so much waits for the device that nothing is to be added."""
        return sum(len(jpeg.content) for handed in self._handed for jpeg in handed.jpegs) >= _WAITING_BYTES

    def take(self) -> int:
        """Take in what the device has decoded, and have the processes do what it could not; gives how much that is."""
        given_back = 0
        for handed in [each for each in self._handed if each.future.done()]:
            self._handed.remove(handed)
            back = []
            for place, jpeg, pixels in zip(handed.places, handed.jpegs, handed.future.result(), strict=True):
                if pixels is None:
                    back.append((place, Held(jpeg.content)))
                else:
                    handed.batch.pixels[place] = pixels
            handed.batch.waiting -= len(handed.places) - len(back)
            given_back += len(back)
            if back:
                places, contents = zip(*back, strict=True)
                self.tasks.appendleft(self._task(handed.batch, list(places), list(contents), given_back=True))
        return given_back

    def blame(self, task: Task, guilty: int, reason: str) -> None:
        """Have one image of a task recorded as bad, and the others done again, by another process."""
        if task.verdict:  # even reading it once more ends a process
            self.finish(Done(task.number, [digest(b"")], [task.verdict], {}))
            return
        batch, places = self._places.pop(task.number)
        others = [place for place in range(len(places)) if place != guilty]
        self.tasks.appendleft(self._task(batch, [places[guilty]], [task.contents[guilty]], reason, task.given_back))
        if others:
            self.tasks.appendleft(self._task(batch, [places[each] for each in others],
                                             [task.contents[each] for each in others],
                                             given_back=task.given_back))


def _whole_pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _sendable(content: Content) -> Content:
    """What a decode process can read; bytes that only this process can get are read here."""
    if getattr(content, "reading", "disk") != "process":
        return content
    try:
        return Held(content.read())
    except BadImage as error:
        return Held(b"", str(error))
