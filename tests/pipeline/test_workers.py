"""Processes of this machine: they die, are replaced, and what they cannot do is named; the rest is done."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.encoders import EncoderSpec
from onceclip.pipeline.errors import WorkerError
from onceclip.pipeline.extract import extract
from onceclip.pipeline.survey import ExtractOptions
from onceclip.pipeline.workers import ATTEMPTS, Processes
from onceclip.stores import open_store
from onceclip.stores.schema import STORED, TODO

pytestmark = pytest.mark.slow


def work_of(task: tuple[str, str]) -> str:
    """Note that a task was begun, then do it: end this process, fail, or give its own name."""
    name, note = task
    with open(note, "a") as file:
        file.write(f"{name}\n")
    if name == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "failing":
        raise WorkerError("as it should")
    return name


def test_a_task_that_ends_its_processes_is_set_aside_and_all_others_are_done(tmp_path: Path) -> None:
    note = str(tmp_path / "note")
    names = ["a", "deadly", *"bcdefg"]
    with Processes(2) as processes:
        work = processes.work(work_of, [(name, note) for name in names])
        done = [next(work) for _ in "abcdefg"]
        with pytest.raises(WorkerError, match=r"^1 task was set aside.*deadly.*SIGKILL"):
            next(work)
    assert sorted(done) == list("abcdefg")
    begun = Path(note).read_text().split()
    assert sorted(begun) == sorted([*"abcdefg", *["deadly"] * ATTEMPTS])


def test_what_a_task_raises_ends_the_work_and_the_processes(tmp_path: Path) -> None:
    with Processes(2) as processes:
        with pytest.raises(WorkerError, match="as it should"):
            list(processes.work(work_of, [(name, str(tmp_path / "note")) for name in ("a", "failing", "b")]))
        pids = [each.process.pid for each in processes._processes if each.process]
    assert pids
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_tasks_are_taken_as_they_are_needed(tmp_path: Path) -> None:
    """A billion images must not become a billion tasks in memory."""
    taken = 0

    def tasks() -> Any:
        nonlocal taken
        for number in range(50):
            taken += 1
            yield str(number), str(tmp_path / "note")

    with Processes(1) as processes:
        work = processes.work(work_of, tasks())
        assert next(work) == "0"
        assert taken <= 3
        work.close()


def test_what_workers_are_to_do_first_is_done_by_all_of_them_and_waits_for_nobody(tmp_path: Path) -> None:
    note = str(tmp_path / "note")
    with Processes(2) as processes:
        processes.begin(work_of, ("first", note))
        assert list(processes.work(work_of, [("second", note)])) == ["second"]
        while Path(note).read_text().split().count("first") < 2:
            time.sleep(0.02)
        processes.begin(time.sleep, 600)
    begun = Path(note).read_text().split()
    assert begun.index("first") < begun.index("second")


def test_an_extraction_by_processes_of_which_one_is_killed_equals_that_of_one_process(
        pictures: Path, means: str, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]],
        monkeypatch: pytest.MonkeyPatch) -> None:
    options = ExtractOptions(unit_rows=8, batch_size=4, workers=1)
    extract(pictures, tmp_path / "one.zarr", EncoderSpec(means), options)
    monkeypatch.setenv("MEANS_SECONDS", "0.1")
    killed = []
    with Processes(2) as processes:
        def kill() -> None:
            while not killed:
                time.sleep(0.02)
                if (tmp_path / "two.zarr" / "image" / "state" / "c").is_dir() and any(
                        open_store(str(tmp_path / "two.zarr")).column("state") == STORED):
                    killed.append(processes._processes[0].process.pid)
                    os.kill(killed[0], signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        done = extract(pictures, tmp_path / "two.zarr", EncoderSpec(means), options, processes)
        thread.join()
    assert (done.images, done.encoded, done.bad) == (48, 48, 0)
    assert contents(tmp_path / "two.zarr") == contents(tmp_path / "one.zarr")


def test_a_unit_whose_image_ends_every_process_is_named_and_the_others_are_stored(
        pictures: Path, means: str, tmp_path: Path, blank: Callable[[Path], None]) -> None:
    """An image that crashes the encoder, on a GPU say: the run neither hangs nor ends before the rest is there."""
    blank(pictures / "disc" / "03.png")
    options = ExtractOptions(unit_rows=8, batch_size=4, workers=1)
    with Processes(1) as processes, pytest.raises(WorkerError, match=r"unit 3 of .*rows 24 to 31.*ended 3 processes"):
        extract(pictures, tmp_path / "store.zarr", EncoderSpec(means), options, processes)
    state = open_store(str(tmp_path / "store.zarr")).column("state")
    assert (state[24:32] == TODO).all()
    assert (state[[*range(24), *range(32, 48)]] == STORED).all()
