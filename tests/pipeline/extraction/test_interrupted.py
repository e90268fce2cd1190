"""What failed for a reason of the machine is not done: the row stays to be encoded, and the same command goes on."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.pipeline.decoding.views import Views
from onceclip.pipeline.errors import DecoderError
from onceclip.pipeline.extraction.outputs import OutputOptions
from onceclip.stores import open_store
from onceclip.stores.schema import STORED, TODO

Extract = Callable[..., Any]
# One image whose decode process is killed each time, while the file `killer` is there.
SOURCE = '''
import os, pathlib, signal
from dataclasses import dataclass
from onceclip.pipeline.sources import Record

@dataclass(frozen=True)
class Image:
    path: str

    def read(self):
        if self.path.endswith("03.png") and pathlib.Path(KILLER).exists(): os.kill(os.getpid(), signal.SIGKILL)
        return pathlib.Path(self.path).read_bytes()

def images(root):
    return [Record(str(path.relative_to(root)), Image(str(path)), path.parent.name, "train")
            for path in sorted(pathlib.Path(root).rglob("*.png"))]
'''


@pytest.fixture
def killer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "killer"
    (tmp_path / "killed_images.py").write_text(f"KILLER = {str(path)!r}\n{SOURCE}")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("killed_images", None)
    importlib.import_module("killed_images")
    path.touch()
    return path


@pytest.fixture
def options(folder_of: Callable[..., Path]) -> dict[str, Any]:
    from onceclip.pipeline.sources import SourceOptions

    return {"source": SourceOptions(root=str(folder_of({"disc": 5, "ring": 2}))), "unit_rows": 4, "batch_size": 1}


def test_an_image_whose_processes_are_killed_is_named_and_left_to_the_next_run(
        killer: Path, options: dict[str, Any], tmp_path: Path, extract_demo: Extract,
        contents: Callable[[Path], dict[str, bytes]]) -> None:
    """The kernel's killer takes the largest process, not the one to blame."""
    path = tmp_path / "s.zarr"
    with pytest.raises(DecoderError, match=r"^1 image could not be .*disc/03.png: .*SIGKILL.*run the same command"):
        extract_demo("killed_images:images", path, **options)
    store = open_store(str(path))
    assert not store.complete
    assert store.column("state").tolist() == [STORED, STORED, STORED, TODO, STORED, STORED, STORED]
    killer.unlink()
    done = extract_demo("killed_images:images", path, **options)
    assert (done.images, done.encoded, done.bad) == (7, 1, 0)
    extract_demo("killed_images:images", tmp_path / "whole.zarr", **options)
    assert contents(path) == contents(tmp_path / "whole.zarr")


def test_views_that_are_interrupted_are_made_by_the_next_run(
        killer: Path, options: dict[str, Any], tmp_path: Path, extract_demo: Extract) -> None:
    path = tmp_path / "s.zarr"
    killer.unlink()
    options["outputs"] = OutputOptions(views=Views(number=2))
    extract_demo("killed_images:images", tmp_path / "whole.zarr", **options)
    killer.touch()
    with pytest.raises(DecoderError):
        extract_demo("killed_images:images", path, **options)
    killer.unlink()
    extract_demo("killed_images:images", path, **options)
    found, expected = (open_store(str(each)) for each in (path, tmp_path / "whole.zarr"))
    np.testing.assert_array_equal(found.array("view")[...], expected.array("view")[...])


def test_predict_says_interrupted_where_nothing_is_known_of_the_image_and_ends_with_an_error(
        killer: Path, options: dict[str, Any], adapter_path: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    root = Path(options["source"].root)
    (root / "ring" / "bad.png").write_bytes(b"no image")
    asked = ["predict", adapter_path, "killed_images:images", "--root", root]
    for further in ([], ["--inference", "dn", "--inference-set", "fit_on=query"]):
        result = run(*asked, *further)
        assert result.exit_code == 1, result.stderr
        states = {line.split("\t")[0]: line.split("\t")[1] for line in result.stdout.splitlines()}
        assert {name: state for name, state in states.items() if state != "ok"} == {
            "disc/03.png": "interrupted", "ring/bad.png": "bad"}
        assert "1 image could not be read or decoded for reasons of this machine" in result.stderr
        assert "run the same command again" in result.stderr
    killer.unlink()
    result = run(*asked, "--out", tmp_path / "labels.csv")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path}/labels.csv: 8 images, 0 unsure, 1 bad\n")


def test_bad_images_are_tried_again_where_that_is_asked_for(folder_of: Callable[..., Path], tmp_path: Path,
                                                            run_json: Callable[..., Any]) -> None:
    root = folder_of({"disc": 3, "ring": 3})
    (root / "ring" / "bad.png").write_bytes(b"no image")
    command = ("extract", root, tmp_path / "s.zarr", "--model", "demo", "--workers", 1)
    assert run_json(*command)["bad"] == 1
    writer_state = open_store(str(tmp_path / "s.zarr")).column("state").tolist()
    done = run_json(*command, "--retry-bad")
    assert (done["encoded"], done["reused"], done["bad"]) == (0, 6, 1)
    assert open_store(str(tmp_path / "s.zarr")).column("state").tolist() == writer_state
