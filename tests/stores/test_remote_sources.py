"""Images on S3: folders, manifests, archives and videos there give what they give on a disk."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.sources import SourceOptions, open_source
from onceclip.stores import open_store


@pytest.fixture
def bucket(s3: Any, s3_url: str, image_folder: Path) -> str:
    """The URL of a copy of the shared image folder, with names that only S3 allows."""
    url = s3_url.removesuffix(".zarr")
    s3.put(str(image_folder), url, recursive=True)
    s3.call_s3("put_object", Bucket="bucket", Key=f"{url.removeprefix('s3://bucket/')}/bar/", Body=b"")
    return url


def test_a_folder_on_s3_gives_the_store_of_the_folder(bucket: str, image_folder: Path, store_path: Path, tmp_path: Path,
                                                      extract_demo: Callable[..., Any]) -> None:
    """autogluon#4919: images from S3 wanted."""
    done = extract_demo(bucket, tmp_path / "s.zarr")
    assert (done.encoded, done.bad, done.warnings) == (60, 0, [])
    assert open_store(str(tmp_path / "s.zarr")).fingerprint == open_store(str(store_path)).fingerprint
    assert [each.key for each in open_source(f"{bucket}/").records] == [each.key for each
                                                                        in open_source(str(image_folder)).records]


def test_odd_names_on_s3_are_kept(s3: Any, s3_url: str) -> None:
    names = ["a/caf\u00e9.png", "a/cafe\u0301.png", "a/50%.png", "a/%E9.png", "a/#1 ?x=+ [y] {z}.png", "a/*.png"]
    for name in names:
        s3.pipe_file(f"{s3_url}/{name}", name.encode())
    records = open_source(s3_url).records
    assert {each.content.read().decode() for each in records} == set(names)
    assert len({each.key for each in records}) == len(names)


def test_manifests_and_archives_on_s3_are_read_there(s3: Any, bucket: str, image_folder: Path) -> None:
    s3.pipe_file(f"{bucket}/m.csv", b"path,label\nbar/bar-0.jpg,bar\ndisc/disc-0.jpg,disc\n")
    records = open_source(f"{bucket}/m.csv").records
    assert records[1].content.read() == (image_folder / "disc/disc-0.jpg").read_bytes()
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        file.add(image_folder / "bar", "bar")
    for number in range(3):
        s3.pipe_file(f"{bucket}/shards/d-{number}.tar", content.getvalue())
    for pattern in ("d-{0..2}.tar", "d-*.tar"):
        records = open_source(f"{bucket}/shards/{pattern}").records
        assert len(records) == 45
        assert records[-1].key.startswith("d-2.tar/bar/")
        assert records[0].content.read() == (image_folder / records[0].key.removeprefix("d-0.tar/")).read_bytes()


@pytest.mark.parametrize(("text", "message"), [
    ("s3://no-such-bucket/pets", "does not exist"), ("s3://bucket/no-folder", "no-folder (does not exist|is empty)"),
    ("s3://bucket/no/m.csv", "does not exist"), ("s3://bucket/no.tar", "does not exist"),
    ("s3://bucket/no-*.tar", "no such archive"), ("s3://no-such-bucket/m.csv", "does not exist"),
])
def test_what_is_not_on_s3_is_named(s3: Any, text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(text, SourceOptions())


def test_storage_that_does_not_answer_is_named(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from onceclip.pipeline.files import remote_folder

    def forget() -> None:
        type(s3).clear_instance_cache()
        remote_folder.cache_clear()

    forget()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(SourceError, match=r"s3://elsewhere/pets: the storage cannot be used \(.*check the network"):
        open_source("s3://elsewhere/pets")
    forget()
