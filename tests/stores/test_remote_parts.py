"""Parts of an extraction where storage has no lock: part 1 plans, the others wait for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from onceclip.pipeline.encoders import EncoderSpec
from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.extraction import extract as module
from onceclip.pipeline.extraction import processes
from onceclip.pipeline.extraction.survey import ExtractOptions
from onceclip.pipeline.workers import Part
from onceclip.stores import NotAStore, open_store
from onceclip.stores.location import is_url


@pytest.mark.parametrize("url", ["memory", "file"], indirect=True)
def test_parts_make_one_store_behind_a_url(url: str, image_folder: Path, store_path: Path, encoder: Any,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "open_encoder", lambda spec: encoder)
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    options = ExtractOptions(unit_rows=16, workers=1)

    def part(number: int) -> Any:
        return module.extract_part(image_folder, url, EncoderSpec("demo"), options, Part(number, 3))

    if is_url(url):
        with pytest.raises(SourceError, match=r"part 1 has not planned .* start --part 1/3 too"):
            part(2)
        with pytest.raises(NotAStore):
            open_store(url)
    assert [part(number).complete for number in (1, 3, 2, 3)] == [False, False, True, True]
    assert open_store(url).attributes == open_store(str(store_path)).attributes
    assert open_store(url).content().fingerprint == open_store(str(store_path)).fingerprint


def test_a_part_that_comes_when_all_is_done_has_nothing_to_wait_for(
        folder_of: Callable[..., Path], extract_demo: Callable[..., Any], encoder: Any,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "open_encoder", lambda spec: encoder)
    root, url = folder_of({"disc": 4, "ring": 4}), f"memory://{uuid4().hex}.zarr"
    extract_demo(root, url)
    done = module.extract_part(root, url, EncoderSpec("demo"), ExtractOptions(workers=1), Part(2, 2))
    assert (done.images, done.encoded, done.complete) == (0, 0, True)
