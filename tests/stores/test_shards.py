"""Stores whose chunks lie in shards: the same numbers as zarr's own reading, and the same promises as plain ones."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, Crc32cCodec

from onceclip import OnceclipError
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec
from onceclip.stores import NotAStore, StoreDamaged, StoreError, StoreIncomplete, open_store
from onceclip.stores.compact import compact
from onceclip.stores.flat_files import ABSENT, FlatArray, checksum, row_checksums
from onceclip.stores.rows import Checksums, put_rows, read_rows
from onceclip.stores.verification import repair, verify

TABLE = ("key", "label", "split", "state", "digest", "reason", "group")


def sharded(path: Path, values: np.ndarray, chunk: int, shard: int) -> zarr.Array:
    """An array with the layout of a compacted store, empty."""
    return zarr.create_array(str(path), shape=values.shape, chunks=(chunk, *values.shape[1:]),
                             shards=(shard, *values.shape[1:]) if shard else None, dtype=values.dtype,
                             fill_value=np.nan, filters=None, serializer=BytesCodec(), compressors=[Crc32cCodec()],
                             overwrite=True, config={"write_empty_chunks": True})


def shuffle_shard(path: Path, chunks: int, seed: int) -> None:
    """Write a shard anew with its chunks in another order and a gap between them, as the format allows."""
    content, size = path.read_bytes(), 16 * chunks
    index = np.frombuffer(content[-size - 4:-4], "<u8").reshape(chunks, 2).copy()
    moved = b"gap"
    for place in np.random.default_rng(seed).permutation(chunks):
        offset, length = index[place]
        if offset != ABSENT:
            index[place, 0] = len(moved)
            moved += content[offset:offset + length]
    path.write_bytes(moved + index.tobytes() + np.array(checksum(index), "<u4").tobytes())


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 70), st.sampled_from([(1, 0), (4, 0), (8, 8), (4, 8), (3, 9), (4, 64)]),
       st.sampled_from([(3,), (2, 3), (1,)]), st.sampled_from(["float16", "float32", "float64"]),
       st.sampled_from(["whole", "rows", "shuffled"]), st.integers(0, 2**32 - 1))
def test_every_layout_reads_as_zarr_reads_it(tmp_path_factory: pytest.TempPathFactory, rows: int,
                                             heights: tuple[int, int], shape: tuple[int, ...], dtype: str, writer: str,
                                             seed: int) -> None:
    chance, path = np.random.default_rng(seed), tmp_path_factory.mktemp("layout") / "array"
    values = chance.standard_normal((rows, *shape)).astype(dtype)
    chunk, shard = heights
    array = sharded(path, values, chunk, shard)
    if writer == "whole":
        array[...] = values
    else:
        put_rows(array, slice(0, rows), values)
    if writer == "shuffled" and shard:
        for each in (path / "c").rglob("*"):
            if each.is_file():
                shuffle_shard(each, shard // chunk, seed)
    flat = FlatArray.of(array)
    assert flat is not None
    np.testing.assert_array_equal(array[...], values)
    checksums = row_checksums(values)
    for wanted in (np.arange(rows), chance.integers(0, rows, 5), np.sort(chance.permutation(rows)[:rows // 2 + 1]),
                   np.arange(rows)[chunk:], np.zeros(0, np.int64)):
        for found, whole in (read_rows(array, flat, wanted, Checksums(array, lambda: checksums)),
                             read_rows(array, flat, wanted), read_rows(array, None, wanted)):
            assert found.tobytes() == array[...][wanted].tobytes()
            assert whole


@pytest.fixture
def compacted(store_path: Path, tmp_path: Path) -> Path:
    """The shared store, of 60 rows in 4 units of 16, as shards of 32 rows."""
    compact(str(store_path), str(tmp_path / "compact.zarr"), 32)
    return tmp_path / "compact.zarr"


def contents(path: Path | str) -> dict[str, Any]:
    store = open_store(str(path))
    return {"fingerprint": store.fingerprint, "classes": store.classes, "embedding": store.embeddings().tobytes(),
            "texts": [(name, store.text(name).embedding.tobytes()) for name in store.texts],
            "encoder": store.encoder, **{name: store.column(name).tolist() for name in TABLE}}


def test_a_compacted_store_is_the_same_store_in_fewer_files(compacted: Path, store_path: Path) -> None:
    assert contents(compacted) == contents(store_path)
    array = open_store(str(compacted)).array("embedding")
    assert (array.shards[0], array.chunks[0]) == (32, 16)
    assert sorted(path.name for path in (compacted / "image" / "embedding" / "c").iterdir()) == ["0", "1"]
    assert verify(str(compacted)).faults == []
    before = fit(open_store(str(store_path)), RunSpec("tip-adapter", 4)).row
    after = fit(open_store(str(compacted)), RunSpec("tip-adapter", 4)).row
    assert (after["accuracy"], after["nll"]) == (before["accuracy"], before["nll"])


def test_a_small_store_is_compacted_into_small_files(store_path: Path, tmp_path: Path) -> None:
    """Zarr writes whole chunks: one of as many rows as a large shard has would be four megabytes of digests."""
    compact(str(store_path), str(tmp_path / "c.zarr"))
    assert open_store(str(tmp_path / "c.zarr")).array("digest").chunks == (64, 16)
    assert contents(tmp_path / "c.zarr") == contents(store_path)


def test_a_foreign_file_beside_the_arrays_of_the_encoder_is_passed_over(store_copy: Path, tmp_path: Path) -> None:
    (store_copy / "encoder" / "notes.txt").write_text("by hand")
    compact(str(store_copy), str(tmp_path / "c.zarr"))  # a warning would be an error here
    assert contents(tmp_path / "c.zarr") == contents(store_copy)
    assert not (tmp_path / "c.zarr" / "encoder" / "notes.txt").exists()


def test_xarray_and_plain_zarr_read_shards(compacted: Path, store_path: Path) -> None:
    whole = open_store(str(store_path)).embeddings()
    with xarray.open_zarr(compacted, group="image", consolidated=False) as data:
        np.testing.assert_array_equal(data["embedding"].values, whole)
    np.testing.assert_array_equal(zarr.open_group(str(compacted), mode="r")["image/embedding"][...], whole)


def test_compacting_goes_from_and_to_any_url_and_from_shards_too(url: str, store_path: Path, tmp_path: Path) -> None:
    compact(str(store_path), url, 32)
    compact(url, str(tmp_path / "again.zarr"), 48)
    assert contents(url) == contents(tmp_path / "again.zarr") == contents(store_path)
    assert verify(url).faults == verify(str(tmp_path / "again.zarr")).faults == []


def test_extract_goes_on_with_a_compacted_store(image_folder: Path, compacted: Path, store_path: Path, tmp_path: Path,
                                                glyph: Callable[..., Path], extract_demo: Callable[..., Any]) -> None:
    root = shutil.copytree(image_folder, tmp_path / "images")
    for number in range(8):
        glyph(root / "cross" / f"new-{number}.png", "cross", 100 + number)
    done = extract_demo(root, compacted)
    assert (done.encoded, done.reused) == (8, 60)
    grown = open_store(str(compacted))
    assert (grown.array("embedding").shards[0], len(grown.embeddings())) == (32, 68)
    np.testing.assert_array_equal(grown.embeddings(np.arange(60)), open_store(str(store_path)).embeddings())
    assert verify(str(compacted)).faults == []


@pytest.mark.parametrize("place", [100, -3], ids=["a chunk", "the index"])
def test_damage_in_a_shard_is_found_marked_and_mended(place: int, image_folder: Path, compacted: Path, store_path: Path,
                                                      extract_demo: Callable[..., Any]) -> None:
    """zarr-python#3413: a shard with a torn index cannot be read at all."""
    shard = compacted / "image" / "embedding" / "c" / "1" / "0"
    content = bytearray(shard.read_bytes())
    content[place] ^= 1
    shard.write_bytes(content)
    found = verify(str(compacted))
    assert {fault.unit for fault in found.faults} == {1}
    with pytest.raises(StoreDamaged, match="damaged"):
        open_store(str(compacted)).embeddings()
    assert repair(str(compacted), found) == 1
    assert extract_demo(image_folder, compacted).encoded == 28
    assert verify(str(compacted)).faults == []
    np.testing.assert_allclose(open_store(str(compacted)).embeddings(), open_store(str(store_path)).embeddings(),
                               atol=2e-3)


@pytest.mark.slow
def test_a_compaction_killed_before_any_of_its_files_goes_on(compacted: Path, store_path: Path, tmp_path: Path) -> None:
    """A child per file that gets its name: killed there, looked at, and gone on with."""
    replace, counted = Path.replace, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", lambda *arguments: counted.append(arguments) or replace(*arguments))
        compact(str(store_path), str(tmp_path / "counted.zarr"), 32)
    expected = {str(file.relative_to(compacted)): file.read_bytes() for file in compacted.rglob("*") if file.is_file()}
    unfinished = 0
    for last in range(0, len(counted), 9):
        path = tmp_path / f"{last}.zarr"
        child = os.fork()
        if child == 0:
            left = iter(range(last))
            Path.replace = lambda *arguments, left=left: (  # type: ignore[method-assign]
                os.kill(os.getpid(), signal.SIGKILL) if next(left, None) is None else replace(*arguments))
            compact(str(store_path), str(path), 32)
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        with pytest.raises((StoreIncomplete, NotAStore), match=r"run the same `onceclip compact` command|no Zarr"):
            open_store(str(path)).rows()
        unfinished += (path / "zarr.json").exists()
        compact(str(store_path), str(path), 32)
        found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
        assert found == expected, f"killed before {counted[last]}"
    assert unfinished > 2


def test_finished_shards_are_not_written_again(store_path: Path, tmp_path: Path) -> None:
    """datasets#5089: a job that is killed begins at zero."""
    path, seen = str(tmp_path / "c.zarr"), []

    def stop(fraction: float) -> None:
        seen.append(fraction)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compact(str(store_path), path, 32, stop)
    done = compact(str(store_path), path, 32)
    assert (seen, done.units, done.reused) == ([0.5], 1, 1)
    assert contents(path) == contents(store_path)


def test_what_cannot_be_compacted_is_refused_in_one_line(store_copy: Path, store_path: Path, tmp_path: Path,
                                                         run: Callable[..., Any]) -> None:
    new = tmp_path / "c.zarr"
    with pytest.raises(StoreError, match="multiple of 16"):
        compact(str(store_path), str(new), 40)
    assert not new.exists()
    with pytest.raises(StoreError, match="exists already and is no unfinished copy"):
        compact(str(store_path), str(store_copy))
    chunk = store_copy / "image" / "embedding" / "c" / "2" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\0")
    result = run("compact", store_copy, new, "--shard-rows", 32)
    assert result.exit_code == 1
    assert "rows 32 to 59 cannot be read (chunk 2: the checksum does not match)" in result.stderr
    assert open_store(str(new)).complete is False
    (store_copy / "image" / "state" / "c" / "0").unlink()
    with pytest.raises(OnceclipError):
        compact(str(store_copy), str(tmp_path / "d.zarr"))
