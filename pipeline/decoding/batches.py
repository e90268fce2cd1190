"""One pass over images: their batches in shared memory, and the tasks that fill them."""

from __future__ import annotations

import math
import mmap
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, Protocol

import numpy as np

from onceclip.pipeline.decoding.preparation import Jpeg
from onceclip.pipeline.decoding.worker import CELL, IDLE, ReadContent, Task, TaskResult, read
from onceclip.pipeline.errors import BadImage, InterruptedImage
from onceclip.pipeline.sources import Content
from onceclip.stores.identity import DIGEST_BYTES

_TASK = 8  # images that a decode process takes at once
_PAGE = 4096
_WAITING_BYTES = 2**28  # of JPEGs that wait for a device at once
_TRIES = 3  # processes that may end with an image; after the first it is alone with a fresh one
# What the bytes of an image can do to a decoder. Other signals are sent from outside, or for want of memory (SIGBUS).
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGPROF}


@dataclass
class Batch:
    """Consecutive images.

    rows: their numbers. pixels: (images, *shape) in shared memory; of good images, and until the batch is released.
    digests: (images, 16). reasons: why an image is bad, else empty. waiting: images that are still to come.
    interrupted: places of the images without pixels for reasons of the machine.
    """

    rows: list[int]
    pixels: np.ndarray
    slot: int
    digests: np.ndarray
    reasons: list[str]
    waiting: int
    interrupted: list[int] = field(default_factory=list)

    @property
    def good(self) -> np.ndarray:
        """Places of the images that have pixels."""
        return np.flatnonzero([not reason for reason in self.reasons])


class Device(Protocol):
    """What decodes the plain JPEGs that the processes hand on."""

    def submit(self, jpegs: list[Jpeg]) -> Future[list[np.ndarray | None]]:
        """Have some decoded: pixels of each, None for one that could not be."""


@dataclass(frozen=True)
class _OnDevice:
    """JPEGs of a batch that a device has. places: theirs in the batch."""

    batch: Batch
    places: list[int]
    jpegs: list[Jpeg]
    future: Future[list[np.ndarray | None]]


class Stream:
    """The batches of one pass that are under way, and the tasks that no process has yet.

    shape: of a batch's pixels. slots: batches in memory at once. processes: that share the memory, at whose begin each
    has a CELL. device: what plain JPEGs are handed on to.
    wake: is called, from any thread, when the device has done some.
    """

    def __init__(self, images: Iterator[tuple[int, Content]], handle: int, shape: Sequence[int], dtype: np.dtype,
                 slots: int, processes: int, device: Device | None, wake: Callable[[Any], None]) -> None:
        self.images, self.shape, self.dtype, self.processes = images, tuple(shape), dtype, processes
        self._image_bytes = math.prod(self.shape[1:]) * dtype.itemsize
        self._begin = _whole_pages(CELL.itemsize * processes)
        self._slot_bytes = _whole_pages(self.shape[0] * self._image_bytes)
        size = max(self._begin + slots * self._slot_bytes, os.fstat(handle).st_size)
        os.ftruncate(handle, size)
        self.memory = mmap.mmap(handle, size)
        cells = np.frombuffer(self.memory, CELL, processes)
        self.cells, self.digests = cells["place"], cells["digest"]
        self.cells[:] = IDLE
        self.free = deque(range(slots))
        self.batches: deque[Batch] = deque()
        self.tasks: deque[Task] = deque()
        self._device, self._wake = device, wake
        self._on_device: list[_OnDevice] = []
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

    def _task(self, batch: Batch, places: list[int], contents: list[Content], given_back: bool = False,
              ends: tuple[int, ...] = ()) -> Task:
        number, begin = next(self._numbers), self._begin + batch.slot * self._slot_bytes
        self._places[number] = batch, places
        return Task(number, contents, [begin + place * self._image_bytes for place in places], given_back, ends)

    def finish(self, done: TaskResult) -> None:
        """Note what became of the images of a task."""
        batch, places = self._places.pop(done.number)
        for place, content, reason in zip(places, done.digests, done.reasons, strict=True):
            batch.digests[place] = np.frombuffer(content, np.uint8)
            batch.reasons[place] = reason
        batch.interrupted += [places[each] for each in done.interrupted]
        batch.waiting -= len(places) - len(done.jpegs)
        if done.jpegs:
            assert self._device is not None
            jpegs = list(done.jpegs.values())
            future = self._device.submit(jpegs)
            self._on_device.append(_OnDevice(batch, [places[each] for each in done.jpegs], jpegs, future))
            future.add_done_callback(self._wake)

    @property
    def full(self) -> bool:
        """Whether so much waits for the device that nothing is to be added."""
        return sum(len(jpeg.content) for handed in self._on_device for jpeg in handed.jpegs) >= _WAITING_BYTES

    def take(self) -> int:
        """Take in what the device has decoded, and have the processes do what it could not; gives how much that is."""
        given_back = 0
        for handed in [each for each in self._on_device if each.future.done()]:
            self._on_device.remove(handed)
            back = []
            for place, jpeg, pixels in zip(handed.places, handed.jpegs, handed.future.result(), strict=True):
                if pixels is None:
                    back.append((place, ReadContent(jpeg.content)))
                else:
                    handed.batch.pixels[place] = pixels
            handed.batch.waiting -= len(handed.places) - len(back)
            given_back += len(back)
            if back:
                places, contents = zip(*back, strict=True)
                self.tasks.appendleft(self._task(handed.batch, list(places), list(contents), given_back=True))
        return given_back

    def retry(self, task: Task, place: int, content: bytes, code: int, timeout: float) -> Task | None:
        """Put the other images of a task back of which a process ended; gives a task of the one that it was at.

        place, content: of that image within the task, and its digest. code: how the process ended. timeout: as of
        `Setup`. None once the image has had its tries: it is bad if decoders end by themselves with it alone.
        """
        batch, places = self._places.pop(task.number)
        others = [each for each in range(len(places)) if each != place]
        if others:
            self.tasks.appendleft(self._task(batch, [places[each] for each in others],
                                             [task.contents[each] for each in others], task.given_back))
        ends = (*task.ends, code)
        if len(ends) < _TRIES:
            return self._task(batch, [places[place]], [task.contents[place]], task.given_back, ends)
        batch.digests[places[place]] = np.frombuffer(content, np.uint8)
        batch.reasons[places[place]] = _reason(code, timeout)
        if not all(code >= 0 or -code in _CRASHES for code in ends[1:]):
            batch.interrupted.append(places[place])
        batch.waiting -= 1
        return None


def _reason(code: int, timeout: float) -> str:
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if code == -signal.SIGPROF:
        return f"took longer than {timeout:g} s of processor time to read and decode"
    if code == -signal.SIGALRM:
        return "hung while it was read or decoded"
    if code >= 0 or -code in _CRASHES:
        return f"crashed the decoder ({name})"
    return f"the process that decoded it was ended from outside ({name}, as when memory runs out)"


def _whole_pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _sendable(content: Content) -> Content:
    """What a decode process can read; bytes that only this process can get are read here."""
    if getattr(content, "reading", "disk") != "process":
        return content
    try:
        return ReadContent(read(content), boxes=getattr(content, "boxes", ()))
    except BadImage as error:
        return ReadContent(b"", str(error), isinstance(error, InterruptedImage))
