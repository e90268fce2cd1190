"""Two processes never write one store at a time, and a dead one keeps nobody out."""

from __future__ import annotations

import os
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


def test_a_lock_that_is_a_link_leaves_the_file_that_it_names_alone(store_copy: Path, tmp_path: Path) -> None:
    """An archive from a stranger may hold `pets.zarr.lock -> ~/.ssh/authorized_keys`."""
    (tmp_path / "victim").write_text("precious")
    for target in ("victim", "nothing"):
        lock = store_copy.with_name("copy.zarr.lock")
        lock.symlink_to(tmp_path / target)
        with pytest.raises(StoreError, match=r"copy\.zarr\.lock is a symbolic link, .*: move it away"), \
                write_lock(str(store_copy)):
            pytest.fail("the link was followed")
        lock.unlink()
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "nothing").exists()


def test_a_folder_in_the_place_of_the_lock_is_one_line(store_copy: Path) -> None:
    store_copy.with_name("copy.zarr.lock").mkdir()
    with pytest.raises(StoreError, match=r"copy\.zarr\.lock is a folder, .*: move it away"), \
            write_lock(str(store_copy)):
        pytest.fail("a folder was locked")


def test_a_lock_deleted_by_hand_is_no_error_and_not_the_next_writers(store_copy: Path) -> None:
    lock = store_copy.with_name("copy.zarr.lock")
    with write_lock(str(store_copy)):
        lock.unlink()
    with write_lock(str(store_copy)):
        lock.unlink()
        lock.write_text("of another writer")
    assert lock.read_text() == "of another writer"


def test_a_store_has_one_lock_by_whatever_name_it_is_called(store_copy: Path, writer: subprocess.Popen[str],
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writers, one through a link, would lose each other's rows."""
    store_copy.with_name("link.zarr").symlink_to("copy.zarr")
    monkeypatch.chdir(store_copy)
    for name in (str(store_copy.with_name("link.zarr")), ".", "../copy.zarr/", f"file://{store_copy}"):
        with pytest.raises(StoreError, match="is being written by another process"), write_lock(name):
            pytest.fail("two processes hold the lock")


def test_a_lock_can_be_opened_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with write_lock(str(tmp_path / "s.zarr")):
            assert (tmp_path / "s.zarr.lock").stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)
