"""A disk that fills up during an extraction: one line says so, and with more room the same command finishes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip import OnceclipError
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec
from onceclip.stores import NotAStore, open_store
from onceclip.stores.verification import verify

Extract = Callable[..., Any]


def mount(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *options], capture_output=True, text=True, check=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own in memory."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        made = mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path))
    except FileNotFoundError:
        pytest.skip("there is no command mount here")
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def resize(disk: Path) -> Callable[[int], None]:
    """Give the disk room for so many pages of 4 KiB; every file, folder and link to one needs its own."""

    def change(pages: int) -> None:
        made = mount("-o", f"remount,size={4 * pages}k", str(disk))
        assert made.returncode == 0, made.stderr

    return change


@pytest.fixture
def root(folder_of: Callable[..., Path]) -> Path:
    return folder_of({"disc": 10, "ring": 10})


@pytest.fixture
def expected(root: Path, tmp_path: Path, extract_demo: Extract) -> Any:
    extract_demo(root, tmp_path / "expected.zarr", unit_rows=4)
    return open_store(str(tmp_path / "expected.zarr"))


def check_refused(path: Path) -> None:
    """What a full disk leaves behind is nothing, or calls itself unfinished; nobody can fit on it."""
    with suppress(NotAStore):
        assert not open_store(str(path)).complete
    with pytest.raises(OnceclipError):
        fit(open_store(str(path)), RunSpec("tip-adapter", 1))


def check_whole(path: Path, expected: Any) -> None:
    """What is there in the end is what a disk with room has; sizes of batches may move the last bit."""
    assert verify(str(path)).faults == []
    found = open_store(str(path))
    assert found.complete
    rows = {key: row for row, key in zip(found.rows(), found.table.key[found.rows()], strict=True)}
    order = [rows[key] for key in expected.table.key[expected.rows()]]
    np.testing.assert_allclose(found.embeddings(np.array(order)), expected.embeddings(expected.rows()), atol=2e-3)
    assert found.text().fingerprint == expected.text().fingerprint
    assert found.fingerprint == expected.fingerprint


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_moment_is_one_line_and_with_room_the_same_command_finishes(
        disk: Path, resize: Callable[[int], None], root: Path, expected: Any, run: Callable[..., Any]) -> None:
    path = disk / "s.zarr"
    command = ("extract", root, path, "--model", "demo", "--unit-rows", 4, "--batch-size", 3, "--workers", 1)
    failures = 0
    for pages in [*range(1, 16, 5), *range(16, 500, 50)]:
        resize(pages)
        done = run(*command)
        if done.exit_code == 0:
            break
        failures += 1
        assert done.exit_code == 1, f"{pages} pages: {done.exception!r}"
        assert "No space left" in done.stderr, f"{pages} pages"
        assert len(done.stderr.splitlines()) == 1, f"{pages} pages"
        check_refused(path)
        resize(4000)
        done = run(*command)
        assert done.exit_code == 0, f"{pages} pages: {done.stderr or repr(done.exception)}"
        check_whole(path, expected)
        for left in [path, *disk.glob("*.lock")]:
            subprocess.run(["rm", "-r", str(left)], check=True)
    assert failures > 6


def test_a_store_that_grows_on_a_full_disk_keeps_what_it_had(
        disk: Path, resize: Callable[[int], None], root: Path, tmp_path: Path, glyph: Callable[..., Path],
        extract_demo: Extract, run: Callable[..., Any]) -> None:
    path = disk / "s.zarr"
    command = ("extract", root, path, "--model", "demo", "--batch-size", 3, "--workers", 1, "--json")
    extract_demo(root, path, unit_rows=4)
    for number in range(15):
        glyph(root / "cross" / f"{number}.png", "cross", number)
    extract_demo(root, tmp_path / "grown.zarr", unit_rows=4)
    used = sum(file.stat().st_blocks * 512 // 4096 for file in path.rglob("*") if file.is_file())
    resize(used + 60)
    done = run(*command)
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "No space left" in done.stderr
    check_refused(path)
    left = open_store(str(path))
    assert (left.table.state == 0).sum() >= 20
    resize(4000)
    assert run(*command).exit_code == 0
    check_whole(path, open_store(str(tmp_path / "grown.zarr")))


@pytest.mark.slow
def test_a_process_on_a_full_disk_ends_with_one_line(disk: Path, resize: Callable[[int], None], root: Path,
                                                     expected: Any, run_process: Callable[..., Any]) -> None:
    path = disk / "s.zarr"
    resize(40)
    done = run_process("extract", root, path, "--model", "demo", "--unit-rows", 4)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert "No space left" in done.stderr
    assert done.stderr.count("\n") == 1
    resize(4000)
    done = run_process("extract", root, path, "--model", "demo")
    assert done.returncode == 0, done.stderr
    check_whole(path, expected)


def test_a_disk_without_a_single_byte_left_locks_nobody_out(disk: Path, resize: Callable[[int], None], root: Path,
                                                            expected: Any, run: Callable[..., Any]) -> None:
    path = disk / "s.zarr"
    command = ("extract", root, path, "--model", "demo", "--unit-rows", 4)
    resize(3)
    (disk / "other").write_bytes(bytes(3 * 4096))
    done = run(*command)
    assert done.exit_code == 1
    assert "No space left" in done.stderr
    resize(4000)
    done = run(*command)
    assert done.exit_code == 0, done.stderr or repr(done.exception)
    check_whole(path, expected)
    assert sorted(file.name for file in disk.iterdir()) == ["other", "s.zarr"]


def test_an_adapter_that_finds_no_room_leaves_the_one_that_was_there(
        store_path: Path, disk: Path, run: Callable[..., Any]) -> None:
    command = ("fit", store_path, "--shots", "1", "--out", disk / "adapter")
    assert run(*command, "--method", "zero-shot").exit_code == 0
    before = {file.name: file.read_bytes() for file in (disk / "adapter").iterdir()}
    with suppress(OSError):
        (disk / "filler").write_bytes(bytes(16 << 20))
    refused = run(*command, "--method", "tip-adapter-f", "--overwrite")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "cannot be written" in refused.stderr.splitlines()[-1]
    assert "No space left" in refused.stderr.splitlines()[-1]
    assert {file.name: file.read_bytes() for file in (disk / "adapter").iterdir()} == before
