"""What is written reaches the disk in its order, and what is replaced counts until the new is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.pipeline.prompts.embedding import add_text, prompts_for
from onceclip.stores import StoreWriter, TextSet, open_store
from onceclip.stores.location import PARTIAL
from onceclip.stores.rows import unusable_rows
from onceclip.stores.verification import verify


@pytest.fixture
def writer(store_copy: Path) -> StoreWriter:
    return StoreWriter.open(str(store_copy), open_store(str(store_copy)).encoder)


def test_a_unit_is_on_the_disk_before_its_states_are(writer: StoreWriter, store_copy: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """A power loss costs the last unit and nothing else."""
    events: list[tuple[str, str]] = []
    fsync, rename = os.fsync, Path.replace

    def synced(handle: int) -> None:
        events.append(("on disk", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        assert ("on disk", str(path)) in events, f"{target} gets its name before its bytes are on the disk"
        events.append(("named", str(target)))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    where, embedding, outputs = writer.unit(1)
    table = writer.store.table
    shutil.rmtree(store_copy / "image" / "embedding" / "c" / "1")
    writer.commit(1, embedding, table.digest[where], table.reason[where], table.state[where], outputs)
    image = store_copy / "image"
    last = events.index(("named", str(image / "state" / "c" / "1")))
    for chunk in ("embedding/c/1/0", "checksum/c/1", "digest/c/1/0", "reason/c/1"):
        named = events.index(("named", str(image / chunk)))
        assert named < events.index(("on disk", str((image / chunk).parent))) < last
    assert ("on disk", str(image / "embedding" / "c")) in events[:last]  # which has a new folder
    events.clear()
    writer.update(note="x")
    assert events[0] == ("on disk", str(image / "state" / "c"))
    assert events[-1] == ("on disk", str(store_copy))


def of_other_prompts(text: TextSet) -> TextSet:
    return replace(text, embedding=text.embedding + 1, prompts=tuple(f"{each}!" for each in text.prompts))


def test_a_text_set_that_is_replaced_counts_until_the_new_one_is_whole(store_path: Path, tmp_path: Path) -> None:
    old = open_store(str(store_path)).text()
    new, rename = of_other_prompts(old), Path.replace
    seen = []
    for allowed in range(0, 300, 3):
        path = shutil.copytree(store_path, tmp_path / f"{allowed}.zarr")
        writer = StoreWriter.open(str(path), open_store(str(path)).encoder)
        left = iter(range(allowed))

        def stopping(*arguments: Any, left: Any = left) -> Any:
            if next(left, None) is None:
                raise OSError
            return rename(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "replace", stopping)
            try:
                writer.put_text("default", new)
                finished = True
            except OSError:
                finished = False
        found = open_store(str(path)).text()
        assert found.fingerprint in (old.fingerprint, new.fingerprint)
        np.testing.assert_array_equal(found.embedding, (old if found.fingerprint == old.fingerprint else new).embedding)
        seen.append(found.fingerprint == new.fingerprint)
        assert verify(str(path)).faults == []
        again = StoreWriter.open(str(path), open_store(str(path)).encoder)
        again.put_text("default", old)
        assert open_store(str(path)).text().fingerprint == old.fingerprint
        assert [each.name for each in (path / "text").iterdir() if each.is_dir()] == ["default"]
        if finished:
            break
    assert seen == sorted(seen)
    # In the end the set lies where older versions look for it.
    assert (seen[0], seen[-1]) == (False, True)
    assert [each.name for each in (path / "text").iterdir() if each.is_dir()] == ["default"]


def test_the_rest_of_a_replaced_text_set_is_removed_by_the_next_extraction(writer: StoreWriter,
                                                                           store_copy: Path) -> None:
    """A process may be killed while it deletes, when the group's own metadata has gone already."""
    rest = store_copy / "text" / "default,new" / "prompt" / "zarr.json"
    rest.parent.mkdir(parents=True)
    rest.write_text("{}")
    before = open_store(str(store_copy))
    assert writer.finish(before.table.split).fingerprint == before.fingerprint
    assert [each.name for each in (store_copy / "text").iterdir() if each.is_dir()] == ["default"]


class PowerCut(BaseException):
    """What ends a run without any clean-up."""


def test_a_replacement_of_a_text_set_that_was_cut_short_ends_as_one_that_was_not(
        store_path: Path, tmp_path: Path, encoder: Any, contents: Callable[[Path], dict[str, bytes]]) -> None:
    """Whatever file was the last to get its name or to be deleted, the same command leaves the same files."""
    prompts = prompts_for(open_store(str(store_path)), ("a {}.",))

    def replaced(path: Path, allowed: int) -> bool:
        """Replace the prompts, with no file changed any more after some; gives whether that was enough."""
        left = iter(range(allowed))

        def limited(action: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if not str(arguments[0]).endswith(".lock") and next(left, None) is None:
                    raise PowerCut
                return action(*arguments, **options)

            return call

        with pytest.MonkeyPatch.context() as patch, suppress(PowerCut):
            patch.setattr(Path, "replace", limited(Path.replace))
            patch.setattr(os, "unlink", limited(os.unlink))
            add_text(str(path), "default", prompts, encoder, overwrite=True)
            return True
        return False

    expected = Path(shutil.copytree(store_path, tmp_path / "expected.zarr"))
    assert replaced(expected, 1000)
    for allowed in range(0, 1000, 5):
        path = Path(shutil.copytree(store_path, tmp_path / f"{allowed}.zarr"))
        if replaced(path, allowed):
            break
        assert replaced(path, 1000)
        assert contents(path) == contents(expected), f"cut after {allowed} files"
        assert list(path.rglob(f"*{PARTIAL}")) == []
    assert allowed > 30


def test_what_was_left_where_nothing_was_made_yet_is_not_kept(tmp_path: Path) -> None:
    """A process may be killed before even the store's own description has its name."""
    (tmp_path / f"zarr.json.0{PARTIAL}").write_text("{")
    StoreWriter.create(str(tmp_path), {"name": "any", "fingerprint": "0"}, 4)
    assert list(tmp_path.rglob(f"*{PARTIAL}")) == []


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_that_are_no_embeddings_are_told_with_their_reason(dtype: str) -> None:
    """Others write zeros for what they could not read."""
    values = np.array([[1, 0], [0, 0], [np.nan, 0], [-np.inf, 1], [0, -0.0]], dtype)
    assert unusable_rows(values).tolist() == ["", "zeros", "not finite", "not finite", "zeros"]
