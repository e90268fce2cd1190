"""Stores on URLs: the same bytes, the same commands, and what other processes write is seen."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from onceclip.stores import StoreError, StoreIncomplete, StoreWriter, open_store, write_lock

Extract = Callable[..., Any]
RunJson = Callable[..., dict[str, Any]]


def arrays_of(path: str) -> dict[str, zarr.Array]:
    members = open_store(path).group.members(max_depth=None)
    return {name: node for name, node in members if isinstance(node, zarr.Array)}


def test_a_store_behind_a_url_equals_a_local_one_array_by_array(
        url: str, image_folder: Path, store_path: Path, extract_demo: Extract) -> None:
    done = extract_demo(image_folder, url, unit_rows=16)
    assert (done.store, done.encoded, done.bad) == (url, 60, 0)
    found, expected = arrays_of(url), arrays_of(str(store_path))
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].metadata.to_dict() == array.metadata.to_dict(), name
        np.testing.assert_array_equal(found[name][...], array[...], name)
    assert open_store(url).attributes == open_store(str(store_path)).attributes
    assert open_store(url).text().fingerprint == open_store(str(store_path)).text().fingerprint


def test_a_second_extraction_encodes_nothing_and_a_new_image_only_itself(
        url: str, folder_of: Callable[..., Path], glyph: Callable[..., Path], extract_demo: Extract) -> None:
    root = folder_of({"disc": 5, "ring": 5})
    counts = []
    for _ in range(2):
        done = extract_demo(root, url, unit_rows=8)
        counts.append((done.encoded, done.reused))
    glyph(root / "cross" / "new.png", "cross", 1)
    (root / "disc" / "00.png").unlink()
    done = extract_demo(root, url)
    assert [*counts, (done.encoded, done.reused, done.removed)] == [(10, 0), (0, 10), (1, 9, 1)]
    assert len(open_store(url).embeddings()) == 10


def test_every_command_gives_on_s3_what_it_gives_on_a_disk(
        s3_store: str, store_path: Path, run_json: RunJson, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(elsewhere)
    ignored = {"store", "path", "seconds", "seconds_total", "adapter"}

    def both(*arguments: Any) -> None:
        found, expected = (run_json(*[place if each == "STORE" else each for each in arguments])
                           for place in (s3_store, store_path))
        assert {name: found[name] for name in set(found) - ignored} == \
               {name: expected[name] for name in set(expected) - ignored}

    both("info", "STORE")
    both("verify", "STORE")
    both("fit", "STORE", "--method", "tip-adapter", "--shots", 2, "--out", "adapter", "--overwrite")
    both("evaluate", "adapter", "STORE")
    both("predict", "adapter", "STORE", "--split", "test", "--top-k", 2)
    assert [path.name for path in elsewhere.iterdir()] == ["adapter"]


def test_arrays_are_imported_into_a_bucket(s3_url: str, tmp_path: Path, run_json: RunJson) -> None:
    embedding = np.random.default_rng(1).normal(size=(12, 8)).astype(np.float32)
    np.savez(tmp_path / "features.npz", embedding=embedding, label=np.arange(12) % 2, text=embedding[:2],
             split=np.repeat(["train", "test"], 6))
    assert run_json("import", tmp_path / "features.npz", s3_url)["images"] == 12
    np.testing.assert_array_equal(open_store(s3_url).embeddings(), embedding)


def test_a_killed_extraction_goes_on_and_what_another_process_writes_is_seen(
        s3_url: str, folder_of: Callable[..., Path], glyph: Callable[..., Path], forked: Callable[..., Any],
        run_process: Callable[..., Any]) -> None:
    """The fifth pass dies once the second unit, which the fourth has filled, is stored."""
    code = ("import os, signal, sys, time; from onceclip.pipeline.encoders import Encoder, EncoderSpec;"
            "from onceclip.pipeline.extraction.extract import extract;"
            "from onceclip.pipeline.extraction.survey import ExtractOptions; from onceclip.stores import open_store\n"
            "encode, left = Encoder.encode_images, [4]\n"
            "def dying(self, pixels, *rest, **options):\n"
            "    left[0] -= 1\n"
            "    while left[0] == -1 and sum(open_store(sys.argv[2]).table.state == 0) < 16: time.sleep(0.05)\n"
            "    if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return encode(self, pixels, *rest, **options)\n"
            "Encoder.encode_images = dying\n"
            "extract(sys.argv[1], sys.argv[2], EncoderSpec('demo'), ExtractOptions(batch_size=4, unit_rows=8))")
    root = folder_of({"disc": 10, "ring": 10})
    assert forked("-c", code, root, s3_url).returncode == -signal.SIGKILL
    with pytest.raises(StoreIncomplete, match=r"unfinished \(4 of 20 .* run the same"):
        open_store(s3_url).rows()
    for number in range(6):
        glyph(root / "cross" / f"{number}.png", "cross", number)
    done = run_process("extract", root, s3_url, "--model", "demo", "--json")
    assert done.returncode == 0, done.stderr
    told, seen = json.loads(done.stdout), open_store(s3_url)
    assert (told["encoded"], told["reused"]) == (10, 16)
    assert (seen.classes, len(seen.embeddings()), len(seen.table)) == (("cross", "disc", "ring"), 26, 26)


def test_damage_on_s3_is_found_marked_and_mended(s3: Any, s3_store: str, store_path: Path, image_folder: Path,
                                                 run: Callable[..., Any], extract_demo: Extract) -> None:
    changed, missing = (f"{s3_store}/image/embedding/c/{unit}/0" for unit in (1, 2))
    content = s3.cat(changed)
    s3.pipe(changed, bytes([content[0] ^ 1]) + content[1:])
    s3.rm(missing)
    found = run("verify", s3_store)
    assert found.exit_code == 1
    assert all(f"image/embedding, chunk {unit}" in found.output for unit in (1, 2))
    result = run("verify", s3_store, "--repair")
    assert result.exit_code == 0, result.stderr
    assert "2 units are marked" in result.stderr
    assert extract_demo(image_folder, s3_store).encoded == 32
    assert run("verify", s3_store).exit_code == 0
    np.testing.assert_allclose(open_store(s3_store).embeddings(), open_store(str(store_path)).embeddings(), atol=2e-3)


@pytest.mark.parametrize("name", ["notes.txt", "deep/inside/notes.txt"])
def test_a_place_that_holds_other_objects_is_left_alone(s3: Any, s3_url: str, image_folder: Path,
                                                        extract_demo: Extract, name: str) -> None:
    s3.pipe(f"{s3_url}/{name}", b"notes")
    with pytest.raises(StoreError, match="not a store"):
        extract_demo(image_folder, s3_url)
    with pytest.raises(StoreError, match="exists already"):
        StoreWriter.create(s3_url, {"name": "any", "fingerprint": "0"}, 4)
    assert s3.find(s3_url) == [f"{s3_url.removeprefix('s3://')}/{name}"]


def test_a_place_that_only_looks_like_another_is_free(s3: Any, s3_url: str) -> None:
    """A console makes an empty object for a new folder; names that begin alike are other names."""
    s3.call_s3("put_object", Bucket="bucket", Key=f"{s3_url.removeprefix('s3://bucket/')}/", Body=b"")
    s3.pipe(f"{s3_url}-notes", b"notes")
    StoreWriter.create(s3_url, {"name": "any", "fingerprint": "0"}, 4)
    assert open_store(s3_url).dim == 4


def test_a_file_url_is_locked_as_its_path_is(store_copy: Path) -> None:
    with write_lock(f"file://{store_copy}"):
        assert store_copy.with_name("copy.zarr.lock").exists()
