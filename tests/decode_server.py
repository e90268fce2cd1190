"""Decode processes as forks of one Python that has imported what they need, which then cost no start of their own.

Each is a process as any other: it has its own folder, environment, files and end, and carries out the program that a
Python of its own would be given. Not for tests of how decode processes are started.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any, NoReturn

_MESSAGE = 1 << 17  # bytes, at most: a program and its environment
_FILES = 8


class ForkedProcess:
    """What `Decoders` uses of a `subprocess.Popen`, for a process that the server has forked."""

    def __init__(self, answers: socket.socket) -> None:
        self._answers, self.pid = answers, int(answers.recv(_MESSAGE))
        self._code: int | None = None
        self._killed = False

    def kill(self) -> None:
        """Send SIGKILL, unless the process is known to have ended."""
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)
            self._killed = True

    def wait(self, timeout: float | None = None) -> int:
        """The exit code once the process has ended; minus the number of a signal that ended it."""
        if self._code is None:
            self._answers.settimeout(None if self._killed else timeout)  # else a busy machine decides
            try:
                self._code = int(self._answers.recv(_MESSAGE))
            except TimeoutError as error:
                raise subprocess.TimeoutExpired("a decode process", timeout or 0.0) from error
            self._answers.close()
        return self._code


class DecodeServer:
    """A Python that has imported what decode processes import; started with the first of them.

    Threads, and processes that this one forks, may ask for decode processes at the same time, and be killed meanwhile:
    a request is one message, and each has a socket of its own for its answers.
    """

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()
        self._requests, self._other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def start(self) -> None:
        """Start the server, if that has not been done."""
        from onceclip.pipeline.decoding import decoders

        with self._starting:
            if self._server is not None:
                return
            handle = self._other.fileno()
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(handle)], pass_fds=[handle], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, env={**os.environ, **decoders._ENVIRONMENT})
            self._other.close()

    def close(self) -> None:
        """End the server."""
        self._requests.close()
        self._other.close()
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    def fork(self, command: Sequence[str], *, stderr: Any, pass_fds: Sequence[int], env: dict[str, str],
             **_: Any) -> ForkedProcess:
        """What `subprocess.Popen` does for `Decoders`. command: `python -c PROGRAM`."""
        self.start()
        request = {"program": command[-1], "folder": os.getcwd(), "environment": env, "numbers": [2, *pass_fds]}
        answers, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            socket.send_fds(self._requests, [json.dumps(request).encode()],
                            [other.fileno(), stderr.fileno(), *pass_fds])
        return ForkedProcess(answers)


@contextmanager
def forked_decoders(start: bool = False) -> Iterator[None]:
    """Have decode processes of this process be forked by a server, where the system has what that takes.

    start: whether at once, so that processes forked by this one find it, and not with the first of them.
    """
    if sys.platform != "linux":
        yield
        return
    from onceclip.pipeline.decoding import decoders

    server = DecodeServer()
    if start:
        server.start()
    decoders.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=server.fork, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired)
    try:
        yield
    finally:
        decoders.subprocess = subprocess
        server.close()


def serve(requests: socket.socket) -> None:
    """Fork a process for every request, until nobody can send one any more."""
    from PIL import Image

    from onceclip.pipeline.decoding import worker

    assert worker
    Image.init()  # as each of them would
    gc.collect()
    gc.freeze()  # a child's collections of garbage would copy all pages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that watch
    while True:
        request, handles, *_ = socket.recv_fds(requests, _MESSAGE, _FILES)
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            watch(json.loads(request), *handles)
        for handle in handles:
            os.close(handle)


def watch(request: dict[str, Any], handle: int, *files: int) -> NoReturn:
    """Fork the process that a request is for, and tell of its number and of its end. handle: of a socket."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        os.close(handle)
        carry_out(request, files)
    for file in files:
        os.close(file)
    with suppress(OSError), socket.socket(fileno=handle) as answers:  # whoever asked may have ended
        answers.send(str(child).encode())
        end = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert end is not None
        answers.send(str(end.si_status if end.si_code == os.CLD_EXITED else -end.si_status).encode())
        answers.recv(1)  # nobody else gets the number until it is not used any more
    os._exit(0)


def carry_out(request: dict[str, Any], files: Sequence[int]) -> NoReturn:
    """Do what `python -c PROGRAM` does, with open files of the numbers that the program knows."""
    numbers = request["numbers"]
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, max(numbers) + 1) for file in files]
    for file in files:
        os.close(file)
    for number, file in zip(numbers, moved, strict=True):
        os.dup2(file, number)
        os.close(file)
    code = 1
    try:
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        exec(compile(request["program"], "<string>", "exec"), {"__name__": "__main__"})
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as given:
        serve(given)
