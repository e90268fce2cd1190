"""One writer per store: a lock that ends with its process, however that ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from onceclip.stores.errors import StoreBusy
from onceclip.stores.location import is_remote, local_path

try:
    import fcntl
except ImportError:  # Windows has no flock; there the user has to see to it
    fcntl = None  # type: ignore[assignment]


@contextmanager
def write_lock(path: str) -> Iterator[None]:
    """Hold the lock of a store on a local disk, the file `PATH.lock` beside it, while writing.

    The operating system drops the lock when the process dies, so a killed one cannot keep others out. Object stores
    have no such lock.
    Raises StoreBusy if another process is writing.
    """
    path = local_path(path)
    if is_remote(path) or fcntl is None:
        yield
        return
    name = path.rstrip(os.sep) + ".lock"
    os.makedirs(os.path.dirname(os.path.abspath(name)), exist_ok=True)
    handle = _acquire(name, path)
    try:
        yield
    finally:
        os.unlink(name)
        os.close(handle)


def _acquire(name: str, path: str) -> int:
    while True:
        handle = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise StoreBusy(f"{path} is being written by another process (number {owner}): wait until it has ended, "
                            "then run the command again") from None
        # The last owner may have removed the file between our opening and our locking it.
        try:
            current = os.stat(name).st_ino == os.fstat(handle).st_ino
        except FileNotFoundError:
            current = False
        if current:
            with suppress(OSError):  # on a full disk; the number is for people, the lock holds without it
                os.truncate(handle, 0)
                os.write(handle, str(os.getpid()).encode("ascii"))
            return handle
        os.close(handle)
