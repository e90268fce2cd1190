"""What a worker does for an extraction: one unit at a time, with what it has opened before."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from onceclip.pipeline.encoders import Encoder, EncoderSpec, open_encoder
from onceclip.pipeline.encoders.images import EncoderThreads
from onceclip.pipeline.extraction.extract import extract
from onceclip.pipeline.extraction.processes import (
    CACHE,
    EquipmentCache,
    EquipmentSpec,
    TextTask,
    UnitTask,
    _for_workers,
    embed_text,
    encode_unit,
    plan_store,
)
from onceclip.pipeline.extraction.survey import ExtractOptions
from onceclip.pipeline.extraction.units import Unit
from onceclip.pipeline.sources import LocalFile, RemoteFile
from onceclip.stores import StoreWriter, open_store
from onceclip.stores.schema import STORED, TODO

pytestmark = pytest.mark.slow
OPTIONS = ExtractOptions(unit_rows=8, batch_size=4, workers=1)


def units_of(store: Path, pictures: Path, spec: EquipmentSpec) -> list[UnitTask]:
    """All units of a store of 48 pictures, to be encoded again."""
    files = [(row, LocalFile(pictures / str(key))) for row, key in enumerate(open_store(str(store)).table.key)]
    return [UnitTask(str(store), Unit(number, tuple(files[8 * number:8 * number + 8])), spec) for number in range(6)]


def test_units_that_two_workers_write_at_once_are_as_if_one_had(
        pictures: Path, means: str, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]],
        monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker we lost contact with may still write when another has the unit."""
    extract(pictures, tmp_path / "one.zarr", EncoderSpec(means), OPTIONS)
    store = Path(shutil.copytree(tmp_path / "one.zarr", tmp_path / "two.zarr"))
    writer = StoreWriter.open(str(store), open_encoder(EncoderSpec(means)).info)
    writer.update(complete=False)
    array = writer.store.array("state")
    array[...] = TODO
    monkeypatch.setattr("onceclip.pipeline.extraction.units.FLUSH_SECONDS", 0.0)
    spec = EquipmentSpec(EncoderSpec(means), OPTIONS)
    tasks = units_of(store, pictures, spec)

    def work(opened: EquipmentCache) -> None:
        try:
            for task in tasks:
                barrier.wait()
                assert encode_unit(task, opened.get(spec)).rows == 8
                rows = slice(8 * task.unit.number, 8 * task.unit.number + 8)
                assert (np.asarray(array[rows]) == STORED).all()  # whatever the other one is at
        except BaseException:
            barrier.abort()  # the other one must not wait for this one
            raise

    barrier, before = threading.Barrier(2), torch.get_num_threads()
    both = [EquipmentCache(), EquipmentCache()]
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(work, opened) for opened in both]
    for opened in both:
        opened.close()
    torch.set_num_threads(before)
    for future in futures:
        future.result()
    assert contents(store / "image") == contents(tmp_path / "one.zarr" / "image")


def test_a_unit_that_another_worker_has_done_meanwhile_is_not_encoded_again(
        pictures: Path, means: str, tmp_path: Path, passed: list[int]) -> None:
    extract(pictures, tmp_path / "store.zarr", EncoderSpec(means), OPTIONS)
    spec, opened = EquipmentSpec(EncoderSpec(means), OPTIONS), EquipmentCache()
    passed.clear()
    assert encode_unit(units_of(tmp_path / "store.zarr", pictures, spec)[1], opened.get(spec)).rows == 8
    opened.close()
    assert passed == []


def test_a_worker_keeps_what_it_has_opened_and_encodes_in_as_many_threads_as_it_has(
        pictures: Path, means: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(pictures, tmp_path / "store.zarr", EncoderSpec(means), OPTIONS)
    opened, before, numbers = EquipmentCache(), torch.get_num_threads(), []

    def noting(encoder: Encoder, cores: int) -> EncoderThreads:
        numbers.append(cores)
        return EncoderThreads(encoder, cores)

    monkeypatch.setattr("onceclip.pipeline.extraction.processes.CACHE", opened)
    monkeypatch.setattr("onceclip.pipeline.extraction.units.EncoderThreads", noting)
    spec = EquipmentSpec(EncoderSpec(means), OPTIONS)
    try:
        plan_store(spec)
        equipment = opened.get(spec)
        for threads in (2, 1):
            torch.set_num_threads(threads)
            for task in units_of(tmp_path / "store.zarr", pictures, spec)[:2]:
                encode_unit(task)
                assert torch.get_num_threads() == threads
        assert numbers == [2, 2, 1, 1]
        assert opened.get(spec) is equipment
        larger = opened.get(replace(spec, options=replace(OPTIONS, batch_size=8)))
        assert larger is not equipment
        assert larger.encoder is equipment.encoder
    finally:
        opened.close()
        torch.set_num_threads(before)


def test_a_worker_embeds_text_with_as_many_threads_as_the_command_would(
        store_path: Path, means: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last bits of a sum depend on their number, and stores are to be equal byte for byte."""
    monkeypatch.setattr("onceclip.pipeline.extraction.processes.open_writer", lambda store, encoder: None)
    monkeypatch.setattr("onceclip.pipeline.extraction.processes.embed_prompts", lambda *_: torch.get_num_threads())
    before = torch.get_num_threads()
    task = TextTask(str(store_path), EquipmentSpec(EncoderSpec(means), OPTIONS), (), before + 1)
    try:
        assert embed_text(task) == before + 1
        assert torch.get_num_threads() == before
    finally:
        CACHE.close()


def test_workers_get_absolute_paths_of_images_and_masks() -> None:
    mask = LocalFile("masks/1.png")
    unit = _for_workers(Unit(0, ((0, LocalFile("1.png", mask=mask)), (1, RemoteFile("s3://b", "1.png", mask=mask)))))
    (_, here), (_, there) = unit.images
    assert here == LocalFile(os.path.abspath("1.png"), mask=LocalFile(os.path.abspath("masks/1.png")))
    assert there == RemoteFile("s3://b", "1.png", mask=LocalFile(os.path.abspath("masks/1.png")))
