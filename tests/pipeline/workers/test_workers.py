"""Extractions by workers of this machine: what they store, when they are killed and when an image kills them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.encoders import EncoderSpec
from onceclip.pipeline.errors import WorkerError
from onceclip.pipeline.extraction.extract import extract
from onceclip.pipeline.extraction.processes import CACHE, UnitTask
from onceclip.pipeline.extraction.survey import ExtractOptions
from onceclip.pipeline.workers.cluster import local, refuse
from onceclip.stores import open_store
from onceclip.stores.schema import STORED, TODO


@pytest.mark.slow
def test_an_extraction_by_processes_of_which_one_is_killed_equals_that_of_one_process(
        pictures: Path, means: str, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]],
        monkeypatch: pytest.MonkeyPatch) -> None:
    options = ExtractOptions(unit_rows=8, batch_size=4, workers=1)
    extract(pictures, tmp_path / "one.zarr", EncoderSpec(means), options)
    monkeypatch.setenv("MEANS_SECONDS", "0.3")
    with local(2) as workers:
        first, _ = workers.client.run(os.getpid).values()

        def kill() -> None:
            while not (tmp_path / "two.zarr" / "image" / "state" / "c").is_dir() or not any(
                    open_store(str(tmp_path / "two.zarr")).column("state") == STORED):
                time.sleep(0.02)
            os.kill(first, signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        done = extract(pictures, tmp_path / "two.zarr", EncoderSpec(means), options, workers)
        thread.join()
        assert first not in workers.client.run(os.getpid).values()
    assert (done.images, done.encoded, done.bad) == (48, 48, 0)
    assert contents(tmp_path / "two.zarr") == contents(tmp_path / "one.zarr")


class Losing:
    """Workers that lose the task of one unit, each time that they try."""

    per_machine = 1

    def begin(self, function: Callable[[Any], Any], task: Any) -> None:
        """Nothing."""

    def work(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        """Carry out tasks here."""
        lost = []
        for task in tasks:
            if isinstance(task, UnitTask) and task.unit.number == 3:
                lost.append((str(task), "it ended every worker that took it"))
            else:
                yield function(task)
        refuse(lost)


def test_a_unit_that_is_set_aside_is_named_and_the_others_are_stored(pictures: Path, means: str,
                                                                     tmp_path: Path) -> None:
    """An image that crashes the encoder, on a GPU say: the run does not end before the rest is there."""
    options = ExtractOptions(unit_rows=8, batch_size=4, workers=1)
    try:
        with pytest.raises(WorkerError, match=r"unit 3 of .*rows 24 to 31.*ended every worker"):
            extract(pictures, tmp_path / "store.zarr", EncoderSpec(means), options, Losing())
    finally:
        CACHE.close()  # the worker was this process
    state = open_store(str(tmp_path / "store.zarr")).column("state")
    assert (state[24:32] == TODO).all()
    assert (state[[*range(24), *range(32, 48)]] == STORED).all()
