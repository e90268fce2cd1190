"""One writer per store: a lock that ends with its process, however that ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from onceclip.stores.errors import StoreBusy, StoreError
from onceclip.stores.location import is_url, local_path, require_writable

try:
    import fcntl
except ImportError:  # Windows has no flock; there the user has to see to it
    fcntl = None  # type: ignore[assignment]

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def write_lock(path: str) -> Iterator[None]:
    """Hold the lock of a store on a local disk, the file `PATH.lock` beside it, while writing.

    The operating system drops the lock when the process dies, so a killed one cannot keep others out. Object stores
    have no such lock.
    Raises StoreBusy if another process is writing, StoreError if something else stands at the lock's place, or
    the path is a URL at which no store can be written.
    """
    require_writable(path)
    if is_url(path) or fcntl is None:
        yield
        return
    name = _name(path)
    os.makedirs(os.path.dirname(name), exist_ok=True)
    handle = _acquire(name, local_path(path))
    try:
        yield
    finally:
        if _is_at(name, handle):  # not a file that another writer made after ours was deleted by hand
            os.unlink(name)
        os.close(handle)


def has_lock(path: str) -> bool:
    """Whether a store's lock is there: that of a process that writes, or a file that a killed one left."""
    return not is_url(path) and os.path.lexists(_name(path))


def _name(path: str) -> str:
    """One for all ways to name the store: through a link, or as the working directory."""
    return os.path.realpath(local_path(path)) + ".lock"


def _acquire(name: str, path: str) -> int:
    while True:
        handle = _open(name)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise StoreBusy(f"{path} is being written by another process (number {owner}): wait until it has ended, "
                            "then run the command again") from None
        if _is_at(name, handle):  # the last owner may have removed the file between our opening and our locking it
            with suppress(OSError):  # on a full disk; the number is for people, the lock holds without it
                os.truncate(handle, 0)
                os.write(handle, str(os.getpid()).encode("ascii"))
            return handle
        os.close(handle)


def _open(name: str) -> int:
    try:
        return os.open(name, _FLAGS, 0o666)  # less the umask
    except OSError as error:
        # A link may name any file of the user's, and the lock's file is written to.
        found = {errno.ELOOP: "a symbolic link", errno.EISDIR: "a folder"}.get(error.errno or 0)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(f"{name} cannot be opened ({error.strerror}), and who writes a store holds this lock: "
                             "give a path where you may write") from None
        if found is None:
            raise
        raise StoreError(f"{name} is {found}, but has to be the store's lock, a plain file: move it away") from None


def _is_at(name: str, handle: int) -> bool:
    try:
        return os.path.samestat(os.lstat(name), os.fstat(handle))
    except FileNotFoundError:
        return False
