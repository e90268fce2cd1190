"""Two processes never write one store at a time, and a dead one keeps nobody out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onceclip.stores import StoreError, open_store, write_lock

HOLD = ("import sys; from onceclip.stores import write_lock\n"
        "with write_lock(sys.argv[1]):\n"
        "    print('held', flush=True); sys.stdin.read()")


@pytest.fixture
def writer(store_copy: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is writing the store."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(store_copy)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other
        other.kill()


def beside(store: Path) -> list[str]:
    return [path.name for path in store.parent.iterdir() if path.is_file()]


def test_a_second_writer_is_told_who_is_writing(store_copy: Path, writer: subprocess.Popen[str]) -> None:
    """zarr-python#3682, #2077: two writers of one unit lose rows in silence."""
    with pytest.raises(StoreError, match=rf"copy\.zarr is being written by another process \(number {writer.pid}\)"), \
            write_lock(str(store_copy)):
        pytest.fail("two processes hold the lock")


def test_a_store_that_is_being_written_can_be_read(store_copy: Path, writer: subprocess.Popen[str]) -> None:
    assert writer.poll() is None
    assert len(open_store(str(store_copy)).embeddings()) == 60


def test_a_killed_writer_keeps_nobody_out(store_copy: Path, writer: subprocess.Popen[str]) -> None:
    writer.kill()
    writer.wait()
    with write_lock(str(store_copy)):
        pass
    assert beside(store_copy) == []


def test_a_lock_leaves_nothing_behind_even_after_a_failure(store_copy: Path) -> None:
    def failing() -> None:
        with write_lock(str(store_copy)):
            assert beside(store_copy) == ["copy.zarr.lock"]
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            failing()
        assert beside(store_copy) == []
