"""One decode process: it reads, decodes and prepares images into memory that it shares with the process it serves.

Plain JPEGs it hands on as they are where another decoder is to do them. It imports neither torch nor open_clip. It
ends with the process it serves, however that ends: its socket closes then.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import numpy as np

from onceclip.errors import OnceclipError, one_line
from onceclip.pipeline.decoding.preparation import Jpeg, Preparation, decoding
from onceclip.pipeline.decoding.views import Views
from onceclip.pipeline.errors import BadImage, InterruptedImage
from onceclip.pipeline.files import Box
from onceclip.pipeline.sources.record import Content
from onceclip.stores.identity import digest

IDLE = -1
CELL = np.dtype([("place", np.int64), ("digest", np.uint8, 16)])  # what a process shows while it works
_TRANSIENT = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.EBUSY, errno.ENFILE,
            errno.EMFILE}
_PAUSES = (0.1, 0.5, 2.0)  # seconds before reading again what may come back
_READERS = 8
_HANGS = 60  # times the limit of processor time, by the clock: for a process that hangs and has nobody left to end it
_NOTHING = digest(b"")


@dataclass(frozen=True)
class Setup:
    """What a decode process is told once.

    cell: which of the shared CELLs is its own: the place, within its task, of the image that it is at, IDLE for none,
    and the digest of that image once it is read. memory: bytes of the shared memory. timeout: seconds of processor
    time that one image may take. views: these instead of the plain pixels. jpegs: whether plain JPEGs are handed on as
    they are.
    """

    preparation: Preparation
    views: Views | None
    cell: int
    memory: int
    timeout: float
    jpegs: bool = False


@dataclass(frozen=True)
class Task:
    """Some images.

    offsets: where in the shared memory the pixels of each go, in bytes. given_back: whether they were handed on and
    could not be decoded there. ends: exit codes of the processes that ended with its only image.
    """

    number: int
    contents: list[Content]
    offsets: list[int]
    given_back: bool = False
    ends: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReadContent:
    """Bytes that were read already, or why there are none. interrupted: whether the machine is to blame. boxes: its."""

    content: bytes
    reason: str = ""
    interrupted: bool = False
    boxes: tuple[Box, ...] = ()

    def read(self) -> bytes:
        """The bytes.

        Raises BadImage if there are none.
        """
        if self.reason:
            raise InterruptedImage(self.reason) if self.interrupted else BadImage(self.reason)
        return self.content


@dataclass(frozen=True)
class TaskResult:
    """What became of a task's images.

    digests: 16 bytes an image. reasons: why an image is bad, empty for a good one. interrupted: places, within the
    task, of those that are not to blame for it. jpegs: what is handed on, by its place within the task.
    """

    number: int
    digests: list[bytes]
    reasons: list[str]
    interrupted: list[int]
    jpegs: dict[int, Jpeg]


def serve(handle: int, memory: int) -> None:
    """Do the tasks that come over a socket until it closes. handle, memory: open file descriptors."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that is served
    with Connection(handle) as connection, decoding():
        try:
            _Worker(connection, memory).run()
        except (EOFError, ConnectionError):
            os._exit(0)  # without waiting for threads that read


class _Worker:
    def __init__(self, connection: Connection, memory: int) -> None:
        self.connection, self.handle, self.readers = connection, memory, ThreadPoolExecutor(_READERS)
        self.messages: SimpleQueue[Any] = SimpleQueue()

    def run(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            message = self.messages.get()
            if isinstance(message, BaseException):
                raise message
            if isinstance(message, Setup):
                self.setup = message
                self.memory = mmap.mmap(self.handle, message.memory)
                self.cells = np.frombuffer(self.memory, CELL, message.cell + 1)
                continue
            try:
                self.connection.send(self._do(*message))
            except OnceclipError as error:  # not the image's fault: a storage does not answer, for example
                self.connection.send(error)

    def _listen(self) -> None:
        """Take in what comes, always: a sender that waits for this process, which waits for the sender, would hang."""
        try:
            while True:
                message = self.connection.recv()
                if isinstance(message, Task):
                    message = message, [self._reader(content) for content in message.contents]
                self.messages.put(message)
        except BaseException as error:
            self.messages.put(error)

    def _reader(self, content: Content) -> Callable[[], bytes]:
        """How to get the bytes; of what comes over a network the reading begins here."""
        if getattr(content, "reading", "disk") != "network":
            return lambda: read(content)
        future: Future[bytes] = self.readers.submit(read, content)
        return future.result

    def _do(self, task: Task, readers: list[Callable[[], bytes]]) -> TaskResult:
        done = TaskResult(task.number, [], [], [], {})
        places, digests = (self.cells[name][-1:] for name in ("place", "digest"))
        for place, (reader, offset) in enumerate(zip(readers, task.offsets, strict=True)):
            digests[0], places[0] = np.frombuffer(_NOTHING, np.uint8), place
            self._limit(self.setup.timeout)
            reason = ""
            try:
                content = reader()
                digests[0] = np.frombuffer(digest(content), np.uint8)  # known also if the process ends from here on
                if self.setup.jpegs and not task.given_back and (jpeg := self.setup.preparation.jpeg(content)):
                    done.jpegs[place] = jpeg
                else:
                    self._prepare(content, offset, getattr(task.contents[place], "boxes", ()))
            except BadImage as error:
                reason = str(error)
                if isinstance(error, InterruptedImage):
                    done.interrupted.append(place)
            except MemoryError:  # as when the kernel chooses this process: another one tries again
                os.kill(os.getpid(), signal.SIGKILL)
            done.digests.append(digests[0].tobytes())
            done.reasons.append(reason)
        self._limit(0)
        places[0] = IDLE
        return done

    @staticmethod
    def _limit(seconds: float) -> None:
        """Have the kernel end this process, whatever its decoder is doing, after so much processor time."""
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, _HANGS * seconds)

    def _prepare(self, content: bytes, offset: int, boxes: Sequence[Box]) -> None:
        preparation, views = self.setup.preparation, self.setup.views
        pixels = preparation.pixels(content) if views is None else views.pixels(content, preparation, boxes)
        np.ndarray(pixels.shape, pixels.dtype, self.memory, offset)[...] = pixels


def read(content: Content) -> bytes:
    """The bytes of an image; a failure that may pass is tried again a few times.

    Raises BadImage if there are none, InterruptedImage if the failure goes on.
    """
    for pause in (*_PAUSES, None):
        try:
            found = content.read()
            if not isinstance(found, bytes | bytearray | memoryview):
                raise BadImage(f"cannot be read (its content is {type(found).__name__}, not bytes)")
            return bytes(found)
        except BadImage as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in _TRANSIENT:
                raise
            if pause is None:
                raise InterruptedImage(str(error)) from error
            time.sleep(pause)
        except (OnceclipError, MemoryError):
            raise
        except Exception as error:  # of a source's own library
            raise BadImage(f"cannot be read ({one_line(error)})") from error
    raise AssertionError
