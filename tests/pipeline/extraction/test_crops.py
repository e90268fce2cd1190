"""Boxes that a manifest gives become views of their images."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pytest
from PIL import Image

from onceclip.pipeline.decoding.views import CROPS, Views
from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.extraction.extract import extract
from onceclip.pipeline.extraction.outputs import OutputOptions
from onceclip.pipeline.extraction.survey import ExtractOptions
from onceclip.pipeline.sources import open_source
from onceclip.stores import StoreMismatch, open_store

OPTIONS = ExtractOptions(workers=1, dtype="float32", outputs=OutputOptions(Views(CROPS, 1), ("train", "val", "test")))


@pytest.fixture
def manifest(tmp_path: Path) -> Any:
    """Write pictures and a manifest: `manifest(lines)`; gives its path. Pictures are red left and blue right."""
    pixels = np.random.default_rng(1).integers(0, 9, (20, 40, 3)).astype(np.uint8)
    pixels[:, :20, 0] += 240
    pixels[:, 20:, 2] += 230
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pixels[0, 0, 1] += 1
        Image.fromarray(pixels).save(tmp_path / name)

    def write(lines: list[Any], name: str = "boxes.csv") -> str:
        with open(tmp_path / name, "w", newline="") as file:
            csv.writer(file).writerows([["path", "label", "split", "x0", "y0", "x1", "y1"], *lines])
        return str(tmp_path / name)

    return write


LINES = [["a/1.png", "a", "train", 0, 0, 20, 20], ["a/1.png", "a", "train", 20, 0, 40, 20],
         ["a/2.png", "a", "test", 20.4, 1, 500, 20], ["b/1.png", "b", "train", "", "", "", ""],
         ["b/2.png", "b", "test", 2, 2, 18, 18]]


def test_each_box_is_prepared_as_an_image_of_its_own_and_the_rest_is_the_image(
        manifest: Any, tmp_path: Path, means: str) -> None:
    from onceclip.pipeline.encoders import EncoderSpec

    done = extract(manifest(LINES), tmp_path / "s.zarr", EncoderSpec(means), OPTIONS)
    assert (done.images, done.bad, done.outputs["view"]) == (4, 0, [3, 3])
    store = open_store(str(tmp_path / "s.zarr"))
    keys = store.column("key").tolist()
    views = {key: store.embeddings(np.array([row]), "view")[0] for row, key in enumerate(keys)}
    plain = {key: store.embeddings(np.array([row]))[0] for row, key in enumerate(keys)}
    left, right = views["a/1.png"][1:]
    assert left[0] > 0.8 > 0.2 > left[2]
    assert right[2] > 0.8 > 0.2 > right[0]
    np.testing.assert_allclose(views["a/2.png"][1], right, atol=0.01)  # what reaches beyond the image is cut off
    np.testing.assert_allclose(views["b/1.png"], np.stack([plain["b/1.png"]] * 3), atol=1e-6)
    np.testing.assert_allclose(views["b/2.png"][2], plain["b/2.png"], atol=1e-6)
    assert views["b/2.png"][1][2] < 0.05


def test_boxes_of_images_that_this_process_reads_count_too(manifest: Any, tmp_path: Path, means: str) -> None:
    """Of memory:// all views were the plain image."""
    from onceclip.pipeline.encoders import EncoderSpec

    place, folder = manifest(LINES), uuid4().hex
    fsspec.filesystem("memory").put(str(tmp_path), f"/{folder}", recursive=True)
    for source, name in ((place, "a.zarr"), (f"memory://{folder}/{Path(place).name}", "b.zarr")):
        extract(source, tmp_path / name, EncoderSpec(means), OPTIONS)
    here, there = (open_store(tmp_path / name) for name in ("a.zarr", "b.zarr"))
    np.testing.assert_array_equal(there.embeddings(name="view"), here.embeddings(name="view"))


def test_a_store_keeps_to_its_boxes(manifest: Any, tmp_path: Path, means: str) -> None:
    from onceclip.pipeline.encoders import EncoderSpec

    extract(manifest(LINES), tmp_path / "s.zarr", EncoderSpec(means), OPTIONS)
    assert extract(manifest(LINES), tmp_path / "s.zarr", EncoderSpec(means), OPTIONS).encoded == 0
    other = [*LINES[:-1], ["b/2.png", "b", "test", 2, 2, 17, 18]]
    with pytest.raises(StoreMismatch, match="extract into another store"):
        extract(manifest(other), tmp_path / "s.zarr", EncoderSpec(means), OPTIONS)
    plain = ExtractOptions(workers=1)
    for lines, warned in ((LINES, False), (other, True), ([[*line[:3], "", "", "", ""] for line in LINES[1:]], True)):
        done = extract(manifest(lines), tmp_path / "s.zarr", EncoderSpec(means), plain)
        assert any("gives other boxes than those of the store's views" in each for each in done.warnings) == warned


def test_a_box_outside_of_its_image_makes_it_a_bad_one_with_the_reason(
        manifest: Any, tmp_path: Path, means: str) -> None:
    from onceclip.pipeline.encoders import EncoderSpec

    lines = [*LINES[:-1], ["b/2.png", "b", "train", 40, 0, 60, 20]]
    done = extract(manifest(lines), tmp_path / "s.zarr", EncoderSpec(means), OPTIONS)
    assert done.bad_images == {"b/2.png": "the box 40, 0, 60, 20 lies outside of its 40 x 20 pixels"}


def test_crops_need_boxes(pictures: Path, tmp_path: Path, means: str) -> None:
    from onceclip.pipeline.encoders import EncoderSpec

    with pytest.raises(SourceError, match="gives no boxes for --crops: give a manifest with the columns path"):
        extract(pictures, tmp_path / "s.zarr", EncoderSpec(means), OPTIONS)


@pytest.mark.parametrize(("line", "message"), [
    (["a/1.png", "b", "train", 1, 1, 2, 2], "line 7: a/1.png has another label, split, group or mask than in line 2"),
    (["a/1.png", "a", "train", "", "", "", ""], "line 7: a/1.png was in line 2 already"),
    (["b/1.png", "b", "train", 1, 1, 2, 2], "line 7: b/1.png was in line 5 already"),
    (["a/3.png", "a", "train", 5, 1, 2, 2], "line 7: the box 5, 1, 2, 2 is none: give 0 <= x0 < x1"),
    (["a/3.png", "a", "train", 1, "", 2, 2], "line 7: the box 1, , 2, 2 is none"),
    (["a/3.png", "a", "train", 1, 1, "nan", 2], "line 7: the box 1, 1, nan, 2 is none"),
    (["a/3.png", "a", "train", -1, 1, 2, 2], "line 7: the box -1, 1, 2, 2 is none"),
    (["a/3.mp4", "a", "train", 1, 1, 2, 2], "line 7: a/3.mp4 is a video, and boxes are for images"),
])
def test_a_wrong_line_is_named(manifest: Any, line: list[Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(manifest([*LINES, line]))


def test_three_columns_of_four_are_refused(tmp_path: Path) -> None:
    (tmp_path / "three.csv").write_text("path,label,x0,y0,x1\na.png,a,1,2,3\n")
    with pytest.raises(SourceError, match="y1 is not there: give all four or none"):
        open_source(str(tmp_path / "three.csv"))


def test_json_lines_have_boxes_too(manifest: Any, tmp_path: Path) -> None:
    manifest(LINES)
    line = '{"path": "a/1.png", "label": "a", "x0": 1.5, "y0": 2, "x1": 3, "y1": 4}\n'
    (tmp_path / "boxes.jsonl").write_text(line + line.replace("1.5", "0"))
    record, = open_source(str(tmp_path / "boxes.jsonl")).records
    assert record.content.boxes == ((1.5, 2.0, 3.0, 4.0), (0.0, 2.0, 3.0, 4.0))  # type: ignore[attr-defined]
