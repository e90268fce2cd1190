"""Videos: chosen frames as rows, exactly those of a plain decoding, all of one video in one split."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onceclip.pipeline.errors import BadImage, SourceError
from onceclip.pipeline.sources import Record, SourceOptions, open_source
from onceclip.pipeline.sources.videos import close_video
from onceclip.stores import open_store

av = pytest.importorskip("av")


@pytest.fixture(autouse=True)
def _closed() -> Any:
    yield
    close_video()


def film(path: Path, frames: int = 25, codec: str = "mpeg4", seed: int = 0, **options: str) -> Path:
    """A video of a moving square, with key frames every 10 frames, and frames between that need later ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width = stream.height = 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = 10
        stream.codec_context.max_b_frames = 0 if codec == "mjpeg" else 2
        noise = random.integers(0, 60, (48, 48, 3), np.uint8)
        for number in range(frames):
            picture = noise.copy()
            picture[8:30, number:number + 20] = 255 - 9 * (number % 20)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def pixels(record: Record) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(record.content.read())))


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mpeg4"), ("a.mkv", "mpeg4"), ("a.avi", "mpeg4"),
                                             ("a.mov", "mjpeg"), ("a.mpg", "mpeg2video"), ("a.webm", "libvpx-vp9")])
@pytest.mark.parametrize("order", ["forward", "backward", "mixed"])
def test_frames_are_those_of_a_plain_decoding_in_any_order_of_reading(tmp_path: Path, name: str, codec: str,
                                                                      order: str) -> None:
    path = film(tmp_path / "cat" / name, codec=codec)
    expected = decoded(path)
    assert len(expected) == 25
    records = open_source(str(tmp_path), SourceOptions(every=3)).records
    assert [record.key for record in records] == [f"cat/{name}#frame={number:06d}" for number in range(0, 25, 3)]
    places = list(range(len(records)))
    places = {"forward": places, "backward": places[::-1], "mixed": [4, 5, 0, 8, 8, 2]}[order]
    for place in places:
        np.testing.assert_array_equal(pixels(records[place]), expected[3 * place])


@pytest.mark.parametrize(("frames", "numbers"), [(1, [12]), (2, [6, 18]), (5, [2, 7, 12, 17, 22]),
                                                 (25, list(range(25))), (99, list(range(25)))])
def test_a_number_of_frames_is_spread_evenly(tmp_path: Path, frames: int, numbers: list[int]) -> None:
    film(tmp_path / "cat" / "a.mp4")
    found = open_source(str(tmp_path), SourceOptions(frames=frames)).records
    assert [record.key for record in found] == [f"cat/a.mp4#frame={number:06d}" for number in numbers]


def test_every_frame_belongs_to_its_video_and_no_video_stands_in_two_splits(
        tmp_path: Path, glyph: Callable[..., Path], extract_demo: Callable[..., Any]) -> None:
    """webui#1, image-annotator#93: frames of one video were scattered over training and validation."""
    for kind in ("cat", "dog"):
        for number in range(5):
            film(tmp_path / "in" / kind / f"{number}.mp4", 12, seed=number + 10 * len(kind))
        glyph(tmp_path / "in" / kind / "still.png", "disc", ord(kind[0]))
    options = SourceOptions(every=4)
    done = extract_demo(tmp_path / "in", tmp_path / "s.zarr", source=options)
    assert (done.images, done.bad) == (32, 0)
    table = open_store(str(tmp_path / "s.zarr")).table
    assert set(table.group) == {"", *(f"{kind}/{number}.mp4" for kind in ("cat", "dog") for number in range(5))}
    for group in set(table.group) - {""}:
        assert len(set(table.split[table.group == group])) == 1
    assert min(done.splits.values()) > 0
    again = extract_demo(tmp_path / "in", tmp_path / "s.zarr", source=options)
    assert (again.encoded, again.reused) == (0, 32)


def test_a_manifest_may_name_videos_and_their_groups(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", 6)
    film(tmp_path / "b.mp4", 6)
    (tmp_path / "m.csv").write_text("path,label,split,group\na.mp4,cat,train,\nb.mp4,dog,test,rex\n")
    records = open_source(str(tmp_path / "m.csv"), SourceOptions(frames=1)).records
    assert [(each.key, each.label, each.split, each.group) for each in records] == [
        ("a.mp4#frame=000003", "cat", "train", "a.mp4"), ("b.mp4#frame=000003", "dog", "test", "rex")]


def test_videos_behind_a_url_are_read_too(tmp_path: Path) -> None:
    import fsspec

    path = film(tmp_path / "a.mp4")
    fsspec.filesystem("memory").pipe("/films/cat/a.mp4", path.read_bytes())
    records = open_source("memory://films", SourceOptions(every=8)).records
    np.testing.assert_array_equal(pixels(records[2]), decoded(path)[16])


def test_videos_are_named_where_no_frames_are_asked_for(tmp_path: Path, glyph: Callable[..., Path]) -> None:
    film(tmp_path / "cat" / "a.mp4", 3)
    with pytest.raises(SourceError, match=r"no images: 1 video left out \(cat/a.mp4\).*--every N or --frames N"):
        open_source(str(tmp_path))
    glyph(tmp_path / "cat" / "b.png")
    found = open_source(str(tmp_path))
    assert [record.key for record in found.records] == ["cat/b.png"]
    assert found.remarks == ["1 video left out (cat/a.mp4): take frames with --every N or --frames N"]


def test_without_the_decoder_videos_are_named_and_frames_are_refused(tmp_path: Path, glyph: Callable[..., Path],
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    film(tmp_path / "cat" / "a.mp4", 3)
    glyph(tmp_path / "cat" / "b.png")
    monkeypatch.setitem(sys.modules, "av", None)
    assert "cat/a.mp4" in open_source(str(tmp_path)).remarks[0]
    with pytest.raises(SourceError, match=r"pip install 'onceclip\[video\]'"):
        open_source(str(tmp_path), SourceOptions(every=1))


def test_a_damaged_video_is_a_bad_row_with_a_remark(tmp_path: Path, glyph: Callable[..., Path],
                                                    extract_demo: Callable[..., Any]) -> None:
    for kind in ("cat", "dog"):
        for seed in range(3):
            glyph(tmp_path / "in" / kind / f"{seed}.png", "disc", seed + len(kind))
    (tmp_path / "in" / "cat" / "words.mp4").write_bytes(b"words")
    (tmp_path / "in" / "cat" / "empty.mp4").write_bytes(b"")
    done = extract_demo(tmp_path / "in", tmp_path / "s.zarr", source=SourceOptions(every=2))
    assert set(done.bad_images) == {"cat/words.mp4", "cat/empty.mp4"}
    told = sorted(remark.split(":")[0] for remark in done.warnings if ".mp4:" in remark)
    assert told == ["cat/empty.mp4", "cat/words.mp4"]


def test_frames_that_a_cut_video_has_lost_are_bad_images(tmp_path: Path) -> None:
    path = film(tmp_path / "cat" / "a.mkv")
    records = open_source(str(tmp_path), SourceOptions(every=1)).records
    path.write_bytes(path.read_bytes()[:path.stat().st_size * 4 // 5])
    states = []
    for record in records:
        try:
            states.append(bool(pixels(record).size))
        except BadImage:
            states.append(False)
    assert states[0]
    assert not states[-1]


def test_frames_are_read_in_another_process(tmp_path: Path) -> None:
    import pickle

    path = film(tmp_path / "cat" / "a.mp4")
    records = open_source(str(tmp_path), SourceOptions(every=12)).records
    code = "import pickle, sys; sys.stdout.buffer.write(pickle.load(sys.stdin.buffer).read())"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(records[1].content), capture_output=True,
                          check=True)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(done.stdout))), decoded(path)[12])
