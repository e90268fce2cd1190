"""An extraction that stopped half-way: the store says so, and the same command finishes it."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest

from onceclip.pipeline.encoders import Encoder
from onceclip.pipeline.extraction.inventory import Inventory, take_inventory
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec
from onceclip.stores import Store, StoreIncomplete, StoreWriter, open_store
from onceclip.stores.schema import TODO
from onceclip.stores.storage import DiskStore

Extract = Callable[..., Any]
Consistent = Callable[[Path, Path], Store]


@pytest.fixture
def root(folder_of: Callable[..., Path]) -> Path:
    return folder_of({"disc": 10, "ring": 10})


@pytest.fixture
def whole(root: Path, tmp_path: Path, extract_demo: Extract) -> Store:
    """A store of `root` made at once."""
    extract_demo(root, tmp_path / "whole.zarr")
    return open_store(str(tmp_path / "whole.zarr"))


def same(found: Store, expected: Store) -> None:
    assert found.fingerprint == expected.fingerprint
    assert found.text().fingerprint == expected.text().fingerprint
    np.testing.assert_allclose(found.embeddings(), expected.embeddings(), atol=2e-3)


@pytest.mark.parametrize(("passes", "kept"), [(0, 0), (5, 15)])
def test_an_interrupted_extraction_says_so_and_the_same_command_finishes_it(
        root: Path, whole: Store, tmp_path: Path, extract_demo: Extract, consistent: Consistent,
        monkeypatch: pytest.MonkeyPatch, passes: int, kept: int) -> None:
    """clip-retrieval#368: a job of 120 hours was killed and began again at zero."""
    path, encode, left = tmp_path / "half.zarr", Encoder.encode_images, iter(range(passes))

    def stopping(self: Encoder, pixels: Any, *rest: Any, **options: Any) -> dict[str, np.ndarray]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return encode(self, pixels, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode_images", stopping)
        with pytest.raises(KeyboardInterrupt):
            extract_demo(root, path, unit_rows=8, batch_size=3)
    assert not open_store(str(path)).complete
    with pytest.raises(StoreIncomplete, match=rf"half.zarr is unfinished \({20 - kept} of 20 .* run the same"):
        fit(open_store(str(path)), RunSpec("tip-adapter", 1))
    done = extract_demo(root, path, unit_rows=8, batch_size=3)
    assert (done.encoded, done.reused) == (20 - kept, kept)
    same(consistent(path, root), whole)


def test_a_unit_that_comes_in_while_the_extraction_goes_on_again_is_whole(
        root: Path, whole: Store, tmp_path: Path, extract_demo: Extract, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was given up for dead may write its unit late, when the same command has begun to plan."""
    path = tmp_path / "late.zarr"
    extract_demo(root, path, unit_rows=8)
    writer = StoreWriter.open(str(path), whole.encoder)
    table, (where, embedding, outputs) = open_store(str(path)).table, writer.unit(1)
    writer.update(complete=False)
    writer.commit(1, np.full_like(embedding, np.nan), np.zeros_like(table.digest[where]), table.reason[where],
                  np.full_like(table.state[where], TODO), outputs)

    def late() -> None:
        writer.commit(1, embedding, table.digest[where], table.reason[where], table.state[where], outputs)

    def taken(*given: Any) -> Inventory:
        inventory = take_inventory(*given)
        late()
        return inventory

    put = StoreWriter._put_column

    def put_and_late(self: StoreWriter, name: str, *given: Any) -> None:
        put(self, name, *given)
        if name == "state":
            late()

    monkeypatch.setattr("onceclip.pipeline.extraction.extract.take_inventory", taken)
    monkeypatch.setattr(StoreWriter, "_put_column", put_and_late)
    extract_demo(root, path, unit_rows=8)
    np.testing.assert_array_equal(open_store(str(path)).table.digest, table.digest)
    same(open_store(str(path)), whole)


def test_a_killed_process_leaves_a_store_that_goes_on(
        root: Path, whole: Store, tmp_path: Path, extract_demo: Extract, forked: Callable[..., Any], passed: list[int],
        consistent: Consistent) -> None:
    """clip-retrieval#368, datasets#5089: what was done when the process died is kept."""
    code = ("import os, signal, sys; from onceclip.pipeline.encoders import Encoder, EncoderSpec;"
            "from onceclip.pipeline.extraction.extract import extract;"
            "from onceclip.pipeline.extraction.survey import ExtractOptions\n"
            "encode, left = Encoder.encode_images, [8]\n"
            "def dying(self, pixels, *rest, **options):\n"
            "    left[0] -= 1\n"
            "    if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return encode(self, pixels, *rest, **options)\n"
            "Encoder.encode_images = dying\n"
            "extract(sys.argv[1], sys.argv[2], EncoderSpec('demo'), ExtractOptions(batch_size=2, unit_rows=4))")
    path = tmp_path / "half.zarr"
    assert forked("-c", code, root, path).returncode == -signal.SIGKILL
    assert not open_store(str(path)).complete
    passed.clear()
    done = extract_demo(root, path)
    # Whole units are kept; the last of those that were encoded may not have been written yet.
    assert done.reused in (4, 8, 12, 16)
    assert sum(passed) == done.encoded == 20 - done.reused
    same(consistent(path, root), whole)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["nothing", "a store that grows"])
def test_a_power_cut_between_any_two_writes_costs_no_row(
        folder_of: Callable[..., Path], glyph: Callable[..., Path], tmp_path: Path, extract_demo: Extract,
        consistent: Consistent, encoder: Any, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    """SciStudio#167, zarr-python#3413: data first, marker last; at no moment is a store complete and wrong.

    Everything after the n-th write is lost, for every n; every fourth of these stores is gone on with. The store that
    grows has new, changed and removed images.
    """
    monkeypatch.setattr("onceclip.pipeline.extraction.processes.open_encoder", lambda spec: encoder)
    root, path = folder_of({"disc": 3, "ring": 3}), tmp_path / "s.zarr"
    if start != "nothing":
        extract_demo(root, path, unit_rows=4)
    glyph(root / "cross" / "new.png", "cross", 1)
    glyph(root / "disc" / "00.png", "cross", 2)
    (root / "ring" / "01.png").unlink()
    write, writing, cuts = DiskStore._write, Lock(), []

    def copied(self: DiskStore, *arguments: Any) -> None:
        with writing:
            write(self, *arguments)
            cuts.append(shutil.copytree(path, tmp_path / f"cut-{len(cuts)}.zarr",
                                        ignore=shutil.ignore_patterns("*.partial")))

    with monkeypatch.context() as patch:
        patch.setattr(DiskStore, "_write", copied)
        extract_demo(root, path)
    expected = open_store(str(path))
    vectors = dict(zip(expected.table.key[expected.rows()], expected.embeddings(), strict=True))
    assert len(cuts) > 30
    for number, cut in enumerate(cuts):
        assert open_store(str(cut)).complete == (number == len(cuts) - 1), f"after {number + 1} writes"
        if number % 4 == 0:
            extract_demo(root, cut)
            finished = consistent(cut, root)
            for key, vector in zip(finished.table.key[finished.rows()], finished.embeddings(), strict=True):
                np.testing.assert_allclose(vector, vectors[key], atol=2e-3)
