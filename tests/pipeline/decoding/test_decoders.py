"""Decode processes: everything comes back, in order, whatever one image does to the process that has it."""

from __future__ import annotations

import importlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onceclip.pipeline.decoding import decoders
from onceclip.pipeline.decoding.decoders import Decoders
from onceclip.pipeline.decoding.preparation import Preparation
from onceclip.pipeline.errors import DecoderError, SourceError
from onceclip.pipeline.sources import LocalFile
from onceclip.stores.identity import digest

SMALL = Preparation((8, 8))
# What cannot be written as a file. A worker imports this module by its name, as it does with a plug-in's.
STRANGE = '''
import ctypes, errno, os, pathlib, signal, time
from dataclasses import dataclass
from onceclip.pipeline.errors import BadImage, SourceError

@dataclass
class Strange:
    how: str
    path: object = None
    reading: str = "disk"
    times: int = 99

    def read(self):
        if self.how == "computes": spin()
        if self.path and self.how in ("hangs", "noted"):
            pathlib.Path(f"{self.path}.{os.getpid()}.{time.monotonic_ns()}").touch()
        if self.how == "hangs": ctypes.PyDLL(None).sleep(1000)  # in C and without letting other threads run
        if self.how == "crashes": os.kill(os.getpid(), signal.SIGSEGV)
        if self.how == "exits": os._exit(3)
        if self.how in ("SIGKILL", "SIGSTOP"):
            tries = self.path.with_suffix(".tries")
            tries.write_text((tries.read_text() if tries.exists() else "") + ".")
            if len(tries.read_text()) <= self.times: os.kill(os.getpid(), getattr(signal, self.how))
        if self.how == "no memory": raise MemoryError
        if self.how == "broken disk":
            raise BadImage("cannot be read (Input/output error)") from OSError(errno.EIO, "Input/output error")
        if self.how == "raises": raise RuntimeError("of a library")
        if self.how == "gives text": return "text"
        if self.how == "storage is gone": raise SourceError("s3://bucket does not answer: try later")
        if self.how == "only here": assert os.getpid() == HERE
        if self.how == "comes back":
            tries = pathlib.Path(str(self.path) + ".tries")
            tries.write_text(tries.read_text() + "." if tries.exists() else ".")
            if len(tries.read_text()) < 3:
                error = OSError(errno.EIO, "Input/output error")
                raise BadImage("cannot be read (Input/output error)") from error
        return self.path.read_bytes()

HERE = os.getpid()

def spin():
    while True: pass

def prepare(image):
    if image.size == (13, 13): spin()
    if image.size == (17, 17): ctypes.string_at(0)
    import numpy
    return numpy.full((3, 8, 8), image.width, "f4")
'''


@pytest.fixture
def strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "strange_contents.py").write_text(STRANGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("strange_contents", None)
    return importlib.import_module("strange_contents")


@pytest.fixture
def square(tmp_path: Path) -> Callable[[int], LocalFile]:
    """A grey picture as large as its number."""

    def make(number: int) -> LocalFile:
        path = tmp_path / f"{number}.png"
        Image.new("L", (number, number), number).save(path)
        return LocalFile(path)

    return make


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stands still for 15 looks is taken for one that hangs, and is looked at more often."""
    monkeypatch.setattr(decoders, "_LOOK", 0.1)
    monkeypatch.setattr(decoders, "_QUIET", 1.5)


def collect(images: list[Any], size: int = 4, preparation: Preparation = SMALL, **options: Any) -> list[Any]:
    """(number, first pixel or None, reason, digest) of all images."""
    found: list[Any] = []
    with Decoders(len(images), **options) as decoders:
        for batch in decoders.batches(enumerate(images), preparation, size, slots=2):
            good = set(batch.good.tolist())
            found += [(row, float(batch.pixels[place].flat[0]) if place in good else None, batch.reasons[place],
                       bytes(batch.digests[place])) for place, row in enumerate(batch.rows)]
            decoders.release(batch)
    return found


@pytest.mark.parametrize(("number", "size", "processes"), [(0, 4, 2), (1, 4, 2), (23, 4, 1), (61, 7, 3), (40, 64, 2)])
def test_every_image_comes_back_once_and_in_order(square: Callable[[int], LocalFile], number: int, size: int,
                                                  processes: int) -> None:
    """LAVIS#246: every batch-size-th image and the last batch were dropped."""
    images = [square(each % 40 + 1) for each in range(number)]
    found = collect(images, size, processes=processes)
    assert [(row, pixel) for row, pixel, _, _ in found] == [(each, each % 40 + 1.0) for each in range(number)]
    assert [content for _, _, _, content in found] == [digest(image.read()) for image in images]


@pytest.mark.parametrize(("how", "reason"), [
    ("computes", "took longer than 0.5 s of processor time to read and decode"),
    ("crashes", r"crashed the decoder \(SIGSEGV\)"),
    ("exits", r"crashed the decoder \(exit code 3\)"), ("raises", r"cannot be read \(of a library\)"),
])
def test_an_image_that_ends_its_process_is_bad_and_costs_no_other(strange: Any, square: Callable[[int], LocalFile],
                                                                  how: str, reason: str) -> None:
    """clip-retrieval#13: one image hung the run."""
    images = [square(each + 1) for each in range(12)]
    images[5:5] = [strange.Strange(how)]
    found = collect(images, 16, processes=1, timeout=0.5)
    assert [row for row, *_ in found] == list(range(13))
    bad = [(row, text) for row, pixel, text, _ in found if pixel is None]
    assert [row for row, _ in bad] == [5]
    assert re.fullmatch(reason, bad[0][1])
    assert [pixel for _, pixel, _, _ in found if pixel is not None] == [each + 1.0 for each in range(12)]


@pytest.mark.parametrize(("size", "reason"), [(13, "took longer than 0.5 s"), (17, "crashed the decoder (SIGSEGV)")])
def test_what_a_decoder_dies_of_keeps_its_digest_so_that_it_is_not_tried_again(
        strange: Any, square: Callable[[int], LocalFile], size: int, reason: str) -> None:
    images = [square(each) for each in (3, 4, size, 5, size, 6)]
    found = collect(images, 6, Preparation((8, 8), custom="strange_contents:prepare"), processes=2, timeout=0.5)
    assert [pixel for _, pixel, _, _ in found] == [3.0, 4.0, None, 5.0, None, 6.0]
    assert all(found[place][2].startswith(reason) for place in (2, 4))
    assert [content for *_, content in found] == [digest(image.read()) for image in images]


@pytest.mark.parametrize(("how", "times"), [("SIGKILL", 2), ("SIGSTOP", 1)])
def test_an_image_whose_process_is_killed_or_stopped_is_done_by_another_one(
        strange: Any, square: Callable[[int], LocalFile], how: str, times: int, request: pytest.FixtureRequest) -> None:
    """As by the kernel for want of memory; a stopped process ends by no timer of its own."""
    if how == "SIGSTOP":
        request.getfixturevalue("impatient")
    images = [square(each + 1) for each in range(12)]
    images[5] = strange.Strange(how, Path(square(6).path), times=times)
    found = collect(images, 16, processes=1, timeout=0.5)
    assert [(row, pixel, text) for row, pixel, text, _ in found] == [(each, each + 1.0, "") for each in range(12)]


@pytest.mark.parametrize(("how", "reason"), [
    ("SIGKILL", "ended from outside (SIGKILL"), ("no memory", "ended from outside (SIGKILL"),
    ("hangs", "hung while it was read"),
    ("broken disk", "cannot be read (Input/output error)"),
])
def test_an_image_that_the_machine_never_lets_through_is_interrupted_and_not_bad(
        strange: Any, square: Callable[[int], LocalFile], how: str, reason: str,
        request: pytest.FixtureRequest) -> None:
    if how == "hangs":
        request.getfixturevalue("impatient")
    images = [square(1), strange.Strange(how, Path(square(9).path)), square(2)]
    with Decoders(3, 1, timeout=0.5) as decoders:
        batch, = decoders.batches(enumerate(images), SMALL, 4, slots=2)
        assert (batch.interrupted, batch.good.tolist()) == ([1], [0, 2])
        assert reason in batch.reasons[1]


def test_a_failure_of_reading_that_passes_is_tried_again_and_another_is_not(strange: Any, tmp_path: Path,
                                                                            square: Callable[[int], LocalFile]) -> None:
    """Tip-Adapter's `while True: try open except IOError`: one bad file is an endless loop."""
    path = Path(square(9).path)
    begun = time.monotonic()
    found = collect([strange.Strange("comes back", path), LocalFile(tmp_path / "none.png")], processes=1)
    assert [(pixel, reason) for _, pixel, reason, _ in found] == [
        (9.0, ""), (None, "cannot be read (No such file or directory)")]
    assert (tmp_path / "9.png.tries").read_text() == "..."
    assert time.monotonic() - begun > 0.5


def test_a_storage_that_fails_ends_the_run_and_blames_no_image(strange: Any,
                                                               square: Callable[[int], LocalFile]) -> None:
    with pytest.raises(SourceError, match="does not answer"):
        collect([square(1), strange.Strange("storage is gone"), square(2)], processes=1)


@pytest.mark.parametrize("reading", ["process", "network"])
def test_contents_say_where_they_are_read(strange: Any, square: Callable[[int], LocalFile], reading: str) -> None:
    how = "only here" if reading == "process" else "plain"
    images = [strange.Strange(how, Path(square(each + 1).path), reading) for each in range(20)]
    assert [pixel for _, pixel, _, _ in collect(images, processes=2)] == [each + 1.0 for each in range(20)]


@pytest.mark.parametrize("reading", ["process", "disk"])
def test_contents_fail_alike_wherever_they_are_read(strange: Any, square: Callable[[int], LocalFile],
                                                    reading: str) -> None:
    images = [strange.Strange(how, None, reading) for how in ("raises", "broken disk", "gives text")]
    with Decoders(4, 1) as decoders:
        batch, = decoders.batches(enumerate([*images, square(2)]), SMALL, 4, slots=2)
        assert batch.reasons == ["cannot be read (of a library)", "cannot be read (Input/output error)",
                                 "cannot be read (its content is str, not bytes)", ""]
        assert batch.interrupted == [1]


def test_processes_that_cannot_work_are_one_line(monkeypatch: pytest.MonkeyPatch,
                                                 square: Callable[[int], LocalFile]) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    with pytest.raises(DecoderError, match=r"end by themselves \(.+\): "):
        collect([square(1)], processes=1)


def test_waiting_for_something_else_keeps_the_processes_at_work(strange: Any, tmp_path: Path,
                                                                square: Callable[[int], LocalFile]) -> None:
    """What is waited for comes only when all images have been read."""
    images = [strange.Strange("noted", Path(square(each + 1).path)) for each in range(8)]
    with Decoders(8, 2) as decoders, ThreadPoolExecutor(1) as pool:
        batches = decoders.batches(enumerate(images), SMALL, 2, slots=4)
        first = next(batches)
        assert decoders.wait(pool.submit(wait_for, lambda: len(list(tmp_path.glob("*.png.*"))) == 8)) is True
        assert sum(len(batch.rows) for batch in [first, *batches]) == 8


def test_no_more_batches_are_in_memory_than_allowed(square: Callable[[int], LocalFile]) -> None:
    """thingsvision#96: memory grew with the data set."""
    with Decoders(100, 2) as decoders:
        batches = decoders.batches(((each, square(3)) for each in range(40)), SMALL, 4, slots=3)
        held = [next(batches) for _ in range(3)]
        assert decoders._stream is not None
        assert not decoders._stream.free
        assert len({batch.slot for batch in held}) == 3
        decoders.release(held[1])
        assert next(batches).slot == held[1].slot


def test_a_second_pass_uses_the_same_processes(square: Callable[[int], LocalFile]) -> None:
    images = [square(each + 1) for each in range(6)]
    with Decoders(6, 2) as decoders:
        left = decoders.batches(enumerate(images), SMALL, 2, slots=2)
        next(left)
        left.close()  # given up with tasks under way
        before = [process.popen.pid for process in decoders._processes]
        found = [float(batch.pixels[0].flat[0]) for batch in
                 decoders.batches(enumerate(images), Preparation((64, 64)), 1, slots=6)]
        assert found == [each + 1.0 for each in range(6)]
        assert [process.popen.pid for process in decoders._processes] == before


def wait_for(true: Callable[[], object]) -> bool:
    """Whether something comes true; given up only when no machine takes as long."""
    end = time.monotonic() + 300
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(true())


def children(pid: int) -> list[int]:
    return [int(each) for each in subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True,
                                                 text=True, check=False).stdout.split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("busy", ["waits", pytest.param("hangs", marks=pytest.mark.slow)])
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
def test_no_process_outlives_a_parent_that_is_killed(strange: Any, square: Callable[[int], LocalFile], tmp_path: Path,
                                                     busy: str) -> None:
    """A decoder that hangs in C does not notice that its parent is gone; the kernel's timer ends it."""
    code = ("import sys, time; sys.path.insert(0, sys.argv[1]); import strange_contents as s, pathlib;"
            "from onceclip.pipeline.decoding.decoders import Decoders;"
            "from onceclip.pipeline.decoding.preparation import Preparation;"
            "d = Decoders(2, 2, timeout=0.1); c = s.Strange(sys.argv[2], pathlib.Path(sys.argv[3]));"
            "b = d.batches(enumerate([c, c]), Preparation((8, 8)), 1, 2)\n"
            "if sys.argv[2] == 'waits': next(b); print('ready', flush=True); time.sleep(60)\n"
            "else: print('ready', flush=True); next(b)")
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path), busy, str(square(3).path)],
                          stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        assert busy == "waits" or wait_for(lambda: len(list(tmp_path.glob("*.png.*"))) == 2)
        workers = children(parent.pid)
        assert len(workers) == 2
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert wait_for(lambda: not any(map(alive, workers)))


def test_pictures_come_as_the_preparation_makes_them(tmp_path: Path) -> None:
    random, images = np.random.default_rng(2), []
    for number in range(5):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(file, "jpeg")
        (tmp_path / f"{number}.jpg").write_bytes(file.getvalue())
        images.append(LocalFile(tmp_path / f"{number}.jpg"))
    preparation = Preparation((16, 24), decode="fast")
    with Decoders(5, 2) as decoders:
        batch, = decoders.batches(enumerate(images), preparation, 5, slots=1)
        np.testing.assert_array_equal(batch.pixels, [preparation.pixels(image.read()) for image in images])
