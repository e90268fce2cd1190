"""Files have their name when they are whole, and never write where somebody else's link points."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from onceclip.pipeline import files
from onceclip.pipeline.errors import BadImage
from onceclip.pipeline.files import LARGEST_IMAGE, LocalFile, RemoteFile
from onceclip.stores.location import whole_file

WRITE = """
import sys
from pathlib import Path
from onceclip.stores.location import whole_file
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
    for name in ("labels.csv", "labels.csv.partial"):
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


@pytest.fixture
def parts() -> Iterator[tuple[str, list[int]]]:
    """A server of files of zeros, as long as they are named; the sizes of what it sent. Of nothing it has no part."""
    sent: list[int] = []

    class Zeros(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            size, asked = int(self.path[1:]), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            first, last = (int(asked[1]), min(int(asked[2]) + 1, size)) if asked else (0, size)
            self.send_response((206 if first < size else 416) if asked else 200)
            self.send_header("Content-Length", str(last - first))
            self.end_headers()
            if self.command == "GET":
                sent.append(last - first)  # before the client has it
                self.wfile.write(bytes(last - first))

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Zeros)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", sent
    server.shutdown()
    thread.join()
    server.server_close()


def test_of_a_remote_file_no_more_is_fetched_than_an_image_may_have(parts: tuple[str, list[int]],
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    url, sent = parts
    monkeypatch.setattr(files, "LARGEST_IMAGE", 1000)
    assert RemoteFile(url, "1000").read() == bytes(1000)
    with pytest.raises(BadImage, match="too large"):
        RemoteFile(url, "50000000").read()
    assert sent == [1000, 1001]
    with pytest.raises(BadImage, match="empty file"):
        RemoteFile(url, "0").read()
    with pytest.raises(BadImage, match="too large"):
        RemoteFile(url, "50000000", start=5, size=1001).read()
