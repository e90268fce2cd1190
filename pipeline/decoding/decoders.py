"""Decode processes: images in, batches of pixels in shared memory out, in order.

Standard pools do not fit. `multiprocessing`, and pebble on top of it, runs a user's script again in every spawned
process, has all processes answer through one pipe that a dying one can spoil, and leaves a process that hangs behind
when its parent is killed. Here each process has a socket of its own, and the kernel's timer ends one that hangs.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any, Self

import psutil

from onceclip.errors import OnceclipError
from onceclip.pipeline.decoding.batches import Batch, Device, Stream
from onceclip.pipeline.decoding.preparation import Preparation
from onceclip.pipeline.decoding.views import Views
from onceclip.pipeline.decoding.worker import IDLE, Setup, Task, TaskResult
from onceclip.pipeline.errors import DecoderError
from onceclip.pipeline.sources import Content

TIMEOUT = 60.0
_AHEAD = 2  # tasks that a process has, so that it never waits for the next
_WORTH_A_PROCESS = 16  # images
_FALSE_STARTS = 3  # processes in a row that end before they are at an image
_LOOK = 1.0  # seconds between two looks at what the processes are at
_START, _QUIET = 60.0, 5.0  # seconds without any use of the processor, at least, that mean that a process hangs
_GRACE = 5.0  # seconds until a killed process is left to the kernel, whose storage it may wait for
_KEPT = str(2**26)  # bytes; else glibc gives each image's memory back, and the next waits for zeroed pages
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": _KEPT,
                "MALLOC_MMAP_THRESHOLD_": _KEPT}


@dataclass
class _Process:
    """tasks: those that it has, the one that it is at first. cell: its place among the shared ones.

    seen: its task, image and processor time when it was last looked at. looks: how many found it just so.
    """

    popen: subprocess.Popen[bytes]
    connection: Connection
    cell: int
    tasks: deque[Task] = field(default_factory=deque)
    seen: tuple[int, int, float] | None = None
    looks: int = 0


class Decoders:
    """A number of decode processes, from their start until the end of the `with` block.

    After `start` they import what they need while the caller does other things. All the rest happens in the caller's
    thread, inside `batches` and `wait`.
    given_back: JPEGs that the device could not decode, which the processes therefore did.
    """

    def __init__(self, images: int, processes: int = 0, timeout: float = TIMEOUT) -> None:
        """images: about how many will come. processes: 0 for one per core, or fewer where the images are few.

        timeout: seconds of processor time that reading and decoding one image may take.
        """
        self.timeout = timeout
        self.number = processes or min(os.cpu_count() or 1, -(-images // _WORTH_A_PROCESS) or 1)
        self.given_back = 0
        self._stream: Stream | None = None
        self._false_starts, self._looked = 0, 0.0
        self._opened = ExitStack()
        self._memory = os.memfd_create("onceclip") if hasattr(os, "memfd_create") else _nameless_file()
        self._opened.callback(os.close, self._memory)
        self._errors = self._opened.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        self._bell, self._waker = map(self._opened.enter_context, socket.socketpair())
        self._waker.setblocking(False)
        self._processes: list[_Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.connection.close()
            process.popen.kill()
        for process in self._processes:
            _kill(process.popen)
        self._opened.close()

    def start(self) -> None:
        """Start the processes, if that has not been done."""
        self._processes = self._processes or [self._start(cell) for cell in range(self.number)]

    def batches(self, images: Iterable[tuple[int, Content]], preparation: Preparation, size: int, slots: int,
                views: Views | None = None, device: Device | None = None) -> Generator[Batch, None, None]:
        """Read and prepare images; each is a number, which comes back with its pixels, and its content.

        size: images per batch. slots: batches in memory at once, with those that are not yet released.
        views: these instead of the plain pixels. device: what plain JPEGs are handed on to.
        Raises DecoderError if the processes cannot work.
        """
        self.start()
        while any(process.tasks for process in self._processes):  # of a pass that was given up
            self._serve()
        shape = preparation.shape if views is None else (views.drawn, *preparation.shape)
        stream = self._stream = Stream(iter(images), self._memory, (size, *shape), preparation.dtype, slots,
                                       self.number, device, self._wake)
        self._setup = Setup(preparation, views, 0, len(stream.memory), self.timeout, device is not None)
        for process in self._processes:
            self._send(process, replace(self._setup, cell=process.cell))
        try:
            while True:
                stream.fill()
                if not stream.batches:
                    return
                while stream.batches[0].waiting:
                    self._serve()
                yield stream.batches.popleft()
        finally:
            self._stream = None

    def release(self, batch: Batch) -> None:
        """Give the memory of a batch back for a later one."""
        if self._stream:
            self._stream.free.append(batch.slot)

    def wait(self, future: Future[Any]) -> Any:
        """The result of a future; until it is there the decode processes are kept busy."""
        future.add_done_callback(self._wake)
        while not future.done():
            self._serve()
        return future.result()

    def _wake(self, _: Future[Any]) -> None:
        with suppress(OSError):  # full, so it will be heard; or closed, and nobody listens
            self._waker.send(b"!")

    def _serve(self) -> None:
        """Hand out tasks, then wait for something to happen and take it in."""
        stream = self._stream
        if stream:
            stream.fill()
            for ahead in range(_AHEAD):
                for process in self._processes:
                    if len(process.tasks) == ahead and stream.tasks:
                        process.tasks.append(stream.tasks.popleft())
                        self._send(process, process.tasks[-1])
        by_connection: dict[Any, _Process] = {process.connection: process for process in self._processes}
        listening = [] if stream and stream.full else list(by_connection)  # else they wait with what they have
        for ready in wait_for([*listening, self._bell], _LOOK):
            if ready is self._bell:
                self._bell.recv(4096)
                if stream:
                    self.given_back += stream.take()
                continue
            process = by_connection[ready]
            try:
                done: TaskResult | OnceclipError = process.connection.recv()
            except BlockingIOError:  # stopped in the middle of its answer
                self._replace(process, hangs=True)
                continue
            except (EOFError, ConnectionError):
                self._replace(process)
                continue
            self._false_starts = 0
            if isinstance(done, OnceclipError):
                raise done
            process.tasks.popleft()
            if stream:
                stream.finish(done)
        if listening:
            self._look()

    def _look(self) -> None:
        """End processes that are stopped, or wait for a storage that is gone; no timer of theirs can do that.

        Looks are counted and not seconds, since this process may have been paused together with them.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        for process in list(self._processes):
            place = int(self._stream.cells[process.cell]) if self._stream else IDLE
            seen = (process.tasks[0].number, place, _seconds(process.popen.pid)) if process.tasks else None
            process.looks = process.looks + 1 if seen and seen == process.seen else 0
            process.seen = seen
            if process.looks * _LOOK > max(self.timeout, _START if place == IDLE else _QUIET):
                self._replace(process, hangs=True)

    def _replace(self, process: _Process, hangs: bool = False) -> None:
        """Start another process in place of one that has ended or hangs; what that one had is done again."""
        process.connection.close()
        if hangs:
            _kill(process.popen)
        code, stream = -signal.SIGALRM if hangs else process.popen.wait(), self._stream
        self._processes[self._processes.index(process)] = fresh = self._start(process.cell)
        if not stream:
            return
        self._send(fresh, replace(self._setup, cell=fresh.cell))
        place, content = int(stream.cells[process.cell]), stream.digests[process.cell].tobytes()
        stream.cells[process.cell] = IDLE
        if place != IDLE and process.tasks:
            again = stream.retry(process.tasks.popleft(), place, content, code, self.timeout)
            if again:
                fresh.tasks.append(again)
                self._send(fresh, again)
        else:
            self._false_starts += 1
            if self._false_starts > _FALSE_STARTS:
                raise DecoderError(f"the decode processes end by themselves ({self._last_error(code)}): mend that, or "
                                   "try --workers 1")
        stream.tasks.extendleft(reversed(process.tasks))

    def _start(self, cell: int) -> _Process:
        mine, other = socket.socketpair()
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):  # of a process that is stopped in the middle of it
            mine.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(_START + self.timeout), 0))
        # Not `-m`: what this process can import, the other has to find as well.
        program = (f"import sys; sys.path[:] = {sys.path!r}; from onceclip.pipeline.decoding.worker import serve; "
                   f"serve({other.fileno()}, {self._memory})")
        with other:
            popen = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.DEVNULL,
                                     stdout=subprocess.DEVNULL, stderr=self._errors,
                                     pass_fds=(other.fileno(), self._memory),
                                     env={**os.environ, **_ENVIRONMENT})
        return _Process(popen, Connection(mine.detach()), cell)

    def _send(self, process: _Process, message: Setup | Task) -> None:
        try:
            process.connection.send(message)
        except BlockingIOError:  # it takes nothing in
            process.popen.kill()
        except ConnectionError:  # it has ended; that is found when its answer is read
            pass

    def _last_error(self, code: int) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {code}"


def _seconds(pid: int) -> float:
    """Processor time that a process has used."""
    with suppress(psutil.Error):
        return sum(psutil.Process(pid).cpu_times()[:2])
    return 0.0


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)


def _nameless_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
