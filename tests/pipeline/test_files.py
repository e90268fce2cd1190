"""Files have their name when they are whole, and never write where somebody else's link points."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onceclip.pipeline.errors import BadImage
from onceclip.pipeline.files import LARGEST_IMAGE, LocalFile, whole_file

WRITE = """
import sys
from pathlib import Path
from onceclip.pipeline.files import whole_file
with whole_file(Path("labels.csv")) as file:
    for _ in range(20):
        file.write(sys.argv[1].encode() * 1000)
        file.flush()
        print("written", flush=True)
        sys.stdin.readline()
"""


def test_of_two_processes_that_write_one_file_the_last_one_is_whole(tmp_path: Path) -> None:
    both = [subprocess.Popen([sys.executable, "-c", WRITE, letter], cwd=tmp_path, text=True, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE) for letter in "ab"]
    for _ in range(20):  # each writes a piece in turn
        for process in both:
            assert process.stdout
            assert process.stdout.readline() == "written\n"
        for process in both:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
    for process in both:
        process.communicate()
    assert [process.returncode for process in both] == [0, 0]
    assert (tmp_path / "labels.csv").read_bytes() in (b"a" * 20_000, b"b" * 20_000)
    assert os.listdir(tmp_path) == ["labels.csv"]


def test_links_are_not_followed_and_modes_are_those_of_the_umask(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("labels.csv", "labels.csv.part"):
        (tmp_path / name).symlink_to(victim)
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "labels.csv") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "labels.csv").is_symlink()
    assert (tmp_path / "labels.csv").stat().st_mode & 0o777 == 0o640


def test_a_failure_names_the_file_and_leaves_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"), whole_file(tmp_path / "file" / "a.csv"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught, whole_file(tmp_path / "folder"):
        pass
    assert caught.value.filename == str(tmp_path / "folder")
    with pytest.raises(OSError, match="No space") as full, whole_file(tmp_path / "b.csv"):
        raise OSError(28, "No space left on device")
    assert full.value.filename == str(tmp_path / "b.csv")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_file_that_is_larger_than_any_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(LARGEST_IMAGE + 1)
    with pytest.raises(BadImage, match="too large"):
        LocalFile(tmp_path / "sparse.jpg").read()
