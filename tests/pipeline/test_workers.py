"""Extractions by workers of this machine: what they store, when they are killed and when an image kills them."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onceclip.pipeline.cluster import worker
from onceclip.pipeline.cluster.scheduler import local
from onceclip.pipeline.cluster.worker import Equipment, Unit
from onceclip.pipeline.encoders import EncoderSpec, open_encoder
from onceclip.pipeline.errors import WorkerError
from onceclip.pipeline.extract import ExtractOptions, extract
from onceclip.pipeline.sources import LocalFile
from onceclip.stores import StoreWriter, open_store
from onceclip.stores.schema import STORED, TODO

pytestmark = pytest.mark.slow


def test_an_extraction_by_processes_of_which_one_is_killed_equals_that_of_one_process(
        pictures: Path, means: str, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]],
        monkeypatch: pytest.MonkeyPatch) -> None:
    options = ExtractOptions(unit_rows=8, batch_size=4, workers=1)
    extract(pictures, tmp_path / "one.zarr", EncoderSpec(means), options)
    monkeypatch.setenv("MEANS_SECONDS", "0.1")
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


def test_units_that_two_workers_write_at_once_are_as_if_one_had(
        pictures: Path, means: str, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]],
        monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was given up for dead may still write when another has the unit."""
    options = ExtractOptions(unit_rows=8, batch_size=4, workers=1)
    extract(pictures, tmp_path / "one.zarr", EncoderSpec(means), options)
    store = Path(shutil.copytree(tmp_path / "one.zarr", tmp_path / "two.zarr"))
    table, encoder = open_store(str(store)).table, open_encoder(EncoderSpec(means))
    writer = StoreWriter.open(str(store), encoder.info)
    writer.update(complete=False)
    array = writer.store.array("state")
    array[...] = TODO
    files = [(row, LocalFile(pictures / str(key))) for row, key in enumerate(table.key)]
    monkeypatch.setattr("onceclip.pipeline.units.FLUSH_SECONDS", 0.0)

    def work(held: worker.Held) -> None:
        for number in range(6):
            unit = Unit(str(store), number, tuple(files[8 * number:8 * number + 8]), Equipment(EncoderSpec(means), 4))
            barrier.wait()
            assert worker.encode_unit(unit, held).rows == 8
            assert (np.asarray(array[8 * number:8 * number + 8]) == STORED).all()  # whatever the other one is at

    barrier, helds = threading.Barrier(2, timeout=60), [worker.Held(), worker.Held()]
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(work, held) for held in helds]
    for held in helds:
        held.close()
    for future in futures:
        future.result()
    assert contents(store / "image") == contents(tmp_path / "one.zarr" / "image")


def test_a_worker_of_several_threads_keeps_what_it_has_opened_for_its_next_unit(
        means: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held, before = worker.Held(), torch.get_num_threads()
    monkeypatch.setattr(worker, "_HELD", held)
    equipment = Equipment(EncoderSpec(means), 4, decoders=1)
    try:
        worker.give_threads(2)
        worker.get_ready(equipment)
        opened = held.crew(equipment)
        assert opened[1].number == 2
        worker.give_threads(2)
        assert held.crew(equipment) is opened
        worker.give_threads(1)
        assert held.crew(equipment)[1].number == 1
    finally:
        held.close()
        torch.set_num_threads(before)


def test_a_unit_whose_image_ends_every_process_is_named_and_the_others_are_stored(
        pictures: Path, means: str, tmp_path: Path, blank: Callable[[Path], None]) -> None:
    """An image that crashes the encoder, on a GPU say: the run neither hangs nor ends before the rest is there."""
    blank(pictures / "disc" / "03.png")
    options = ExtractOptions(unit_rows=8, batch_size=4, workers=1)
    with local(1) as workers, pytest.raises(WorkerError, match=r"unit 3 of .*rows 24 to 31.*ended every worker"):
        extract(pictures, tmp_path / "store.zarr", EncoderSpec(means), options, workers)
    state = open_store(str(tmp_path / "store.zarr")).column("state")
    assert (state[24:32] == TODO).all()
    assert (state[[*range(24), *range(32, 48)]] == STORED).all()


def test_a_profile_of_workers_is_refused_before_anything_is_written(pictures: Path, means: str, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="do not say where their time goes"):
        extract(pictures, tmp_path / "store.zarr", EncoderSpec(means), ExtractOptions(profile=True), Any)
    assert not (tmp_path / "store.zarr").exists()
