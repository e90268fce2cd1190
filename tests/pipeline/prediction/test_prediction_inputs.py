"""What can be labelled: files, folders, manifests, lists, archives and URLs, in the order given."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from onceclip.pipeline.errors import PredictionError, SourceError
from onceclip.pipeline.prediction.inputs import list_inputs, store_among
from onceclip.pipeline.sources import SourceOptions


def names(*inputs: Any, **options: Any) -> list[str]:
    return [record.key for record in list_inputs(inputs, SourceOptions(**options)).records]


@pytest.fixture
def photos(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the folders a/ and b/, both with 1.png, and c.jpg."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for target in ("a/1.png", "a/10.png", "a/2.png", "b/1.png"):
        shutil.copy(image_folder / "ring" / "ring-1.png", target)
    shutil.copy(image_folder / "disc" / "disc-2.jpg", "c.jpg")
    return tmp_path


def test_several_inputs_come_one_after_the_other_and_folders_tell_their_images_apart(photos: Path) -> None:
    assert names("c.jpg", "b", "a", "missing.png", "c.jpg") == [
        "c.jpg", "b/1.png", "a/1.png", "a/2.png", "a/10.png", "missing.png", "c.jpg"]
    assert names("a") == ["1.png", "2.png", "10.png"]
    assert names(photos / "c.jpg") == [str(photos / "c.jpg")]


def test_a_manifest_without_labels_lists_its_paths_in_its_order(photos: Path) -> None:
    Path("list.csv").write_text("path\nb/1.png\na/2.png\nc.jpg\n")
    Path("list.jsonl").write_text('{"path": "a/2.png"}\n{"path": "b/1.png", "label": "ring"}\n')
    assert names("list.csv") == ["b/1.png", "a/2.png", "c.jpg"]
    assert names("list.jsonl", "list.csv") == ["a/2.png", "b/1.png", "b/1.png", "a/2.png", "c.jpg"]
    Path("ids.csv").write_text("id,path\n7,c.jpg\n")
    listing = list_inputs(["ids.csv"])
    assert [record.key for record in listing.records] == ["c.jpg"]
    assert "not used: id" in listing.remarks[0]
    Path("elsewhere").mkdir()
    shutil.move("list.csv", "elsewhere/list.csv")
    assert names("elsewhere/list.csv", root=".") == ["b/1.png", "a/2.png", "c.jpg"]


def test_standard_input_tar_archives_and_urls_are_inputs_too(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open("photos.tar", "w") as file:
        file.add("a/1.png")
        file.add("c.jpg")
    assert names("photos.tar") == ["photos.tar/a/1.png", "photos.tar/c.jpg"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"c.jpg\0a/10.png\0")))
    assert names("-") == ["c.jpg", "a/10.png"]
    content = Path("c.jpg").read_bytes()
    with fsspec.open("memory://photos/x/9.jpg", "wb") as file:
        file.write(content)
    listed = list_inputs(["memory://photos/x/9.jpg", "c.jpg", "memory://photos"]).records
    assert [each.key for each in listed] == ["memory://photos/x/9.jpg", "c.jpg", "memory://photos/x/9.jpg"]
    assert [each.content.read() for each in listed] == [content] * 3


def test_a_store_is_told_from_images_and_stands_alone(photos: Path, store_path: Path) -> None:
    store = store_among([str(store_path)])
    assert store is not None
    assert len(store.rows()) == 60
    assert store_among(["a"]) is None
    assert store_among(["memory://photos/nothing.jpg"]) is None
    with pytest.raises(PredictionError, match="label it alone"):
        store_among(["c.jpg", str(store_path)])


def test_what_cannot_be_listed_is_said(photos: Path, folder_of: Callable[..., Path]) -> None:
    Path("empty").mkdir()
    with pytest.raises(PredictionError, match=r"empty is empty: give images, or a folder that has some$"):
        names("c.jpg", "empty")
    Path("empty", "notes.txt").write_text("notes")
    with pytest.raises(PredictionError, match=r"empty has no images \(1 other file\): give images"):
        names("empty")
    with pytest.raises(PredictionError, match=r"no-photos\.v2 does not exist: give images"):
        names("no-photos.v2")
    Path("a", "scan.mpo").write_bytes(b"")
    assert list_inputs(["a"]).remarks == ["a: 1 other file passed over, not images by their endings: scan.mpo"]
    with pytest.raises(SourceError, match=r"none\.csv does not exist"):
        names("none.csv")
    with pytest.raises(SourceError, match="no videos"):
        names("a", every=2)


def test_videos_give_the_frames_that_are_asked_for(photos: Path) -> None:
    av = pytest.importorskip("av")
    with av.open("film.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for shade in range(6):
            frame = av.VideoFrame(32, 32, "rgb24")
            frame.planes[0].update(bytes([40 * shade]) * frame.planes[0].buffer_size)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert names("c.jpg", "film.mp4", every=3) == ["c.jpg", "film.mp4#frame=000000", "film.mp4#frame=000003"]
    listing = list_inputs(["film.mp4", "c.jpg"])
    assert [record.key for record in listing.records] == ["c.jpg"]
    assert "--every N" in listing.remarks[0]


def test_a_zipped_store_among_images_is_told_and_so_is_a_root_of_a_file(photos: Path, store_path: Path) -> None:
    shutil.make_archive("store", "zip", store_path.parent, store_path.name)
    with pytest.raises(PredictionError, match=r"store\.zip is a store among 2 inputs"):
        store_among(["store.zip", "a"])
    assert store_among(["a/1.png", "missing.png", "a"]) is None
    with pytest.raises(PredictionError, match=r"c\.jpg is a file: leave it out"):
        names("c.jpg", root="a")
