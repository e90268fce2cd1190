"""Tar archives: indexed once, then every image is read from its own bytes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.sources import open_source
from onceclip.pipeline.sources.archives import expand_braces, index
from onceclip.stores import open_store


def tar_of(members: dict[str, bytes], path: Path | None = None) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        for name, part in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(part)
            file.addfile(member, io.BytesIO(part))
    if path:
        path.write_bytes(content.getvalue())
    return content.getvalue()


def test_members_of_any_name_are_where_the_index_says(tmp_path: Path) -> None:
    members = {"cat/é.png": b"abc", "cat/" + "long" * 60 + ".png": b"x" * 1500, "bytes \udcff.png": b"", "last": b"1"}
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "t.tar", "w", format=form, errors="surrogateescape") as file:
            for name, part in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(part)
                file.addfile(member, io.BytesIO(part))
        content = (tmp_path / "t.tar").read_bytes()
        found = {each.name: content[each.start:each.start + each.size] for each in index("t", io.BytesIO(content))}
        assert found == members


def test_folders_links_and_long_names_of_every_format_are_understood(tmp_path: Path) -> None:
    long = "/".join(["directory" * 5] * 4) + "/image.png"
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(b"abc")
    (tmp_path / "cat" / "link.png").symlink_to("a.png")
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "t.tar", "w", format=form) as file:
            file.add(tmp_path / "cat", "cat")
            member = tarfile.TarInfo(long)
            member.size = 3
            file.addfile(member, io.BytesIO(b"xyz"))
        with (tmp_path / "t.tar").open("rb") as stream:
            assert sorted(each.name for each in index("t", stream)) == ["cat/a.png", long]


def test_times_of_an_incremental_archive_are_no_part_of_a_name() -> None:
    """`tar --format=gnu --incremental` writes them where other formats have the beginning of a long name."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.GNU_FORMAT) as file:
        file.addfile(tarfile.TarInfo("cat/a.png"))
    header = bytearray(content.getvalue())
    header[345:369] = b"15303265502\x0015303265502\0"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:512]) + 8 * 32)
    assert [each.name for each in index("t", io.BytesIO(bytes(header)))] == ["cat/a.png"]


def test_an_archive_that_was_cut_short_is_an_error(tmp_path: Path) -> None:
    """An archive may be without its end mark; where a file of it ends early, others behind that are missing too."""
    image = b"x" * 700
    whole = tar_of({"a/1.png": image, "b/2.png": image})
    listed = {}
    for size in range(0, 3585, 64):
        (tmp_path / "t.tar").write_bytes(whole[:size])
        with suppress(SourceError):
            listed[size] = [record.content.read() for record in open_source(str(tmp_path / "t.tar")).records]
    assert listed == {1536: [image], 3072: [image, image], 3584: [image, image]}


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is not a tar archive"), (b"words", "is not a tar archive"), (b"w" * 5000, "is not a tar archive"),
    (b"\x1f\x8b" + b"w" * 600, "is compressed"), (bytes(1024), "has no images"),
    (tar_of({"a.txt": b"1"}), r"has no images \(1 archives"),
    (tar_of({"a.png": b"1", "b.png": b"2"}).replace(b"b.png", b"c.png"), r"is damaged or cut short behind a\.png"),
    (tar_of({"a.png": b"1", "a.json": b"{"}), r"a\.json is not JSON"),
    (tar_of({"a.png": b"1", "a.json": b'{"split": "dev"}'}), "has split 'dev'"),
])
def test_what_is_wrong_with_an_archive_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.tar").write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(str(tmp_path / "t.tar"))
    assert str(tmp_path / "t.tar") in str(caught.value)


def test_classes_come_from_cls_json_or_folders(tmp_path: Path) -> None:
    tar_of({
        "x/1.cls": b"cat\n", "x/1.jpg": b"1", "x/1.json": b'{"label": "not this", "split": "train"}',
        "x/2.left.png": b"2", "x/2.right.png": b"3", "x/2.json": b'{"class_name": "dog", "group": 7, "split": "val"}',
        "y/3.JPEG": b"4", "y/3.txt": b"a caption", "y/3.json": b'{"split": "test"}', "y/.4.png": b"hidden",
        "z/5.webp": b"5", "z/5.json": b'{"url": "u", "split": "valid"}',
    }, tmp_path / "t.tar")
    found = [(each.key, each.label, each.split, each.group) for each in open_source(str(tmp_path / "t.tar")).records]
    assert found == [("t.tar/x/1.jpg", "cat", "train", ""), ("t.tar/x/2.left.png", "dog", "val", "7"),
                     ("t.tar/x/2.right.png", "dog", "val", "7"), ("t.tar/y/3.JPEG", "y", "test", ""),
                     ("t.tar/z/5.webp", "z", "val", "")]


def test_an_archive_of_one_folder_has_the_classes_that_are_in_it(tmp_path: Path) -> None:
    tar_of({"pets/cat/1.jpg": b"1", "pets/dog/2.jpg": b"2"}, tmp_path / "t.tar")
    assert [each.label for each in open_source(str(tmp_path / "t.tar")).records] == ["cat", "dog"]
    tar_of({"train/cat/1.jpg": b"1", "train/dog/2.jpg": b"2"}, tmp_path / "t.tar")
    assert {each.split for each in open_source(str(tmp_path / "t.tar")).records} == {"train"}


def test_patterns_stand_for_archives_in_natural_order(tmp_path: Path) -> None:
    for number in (0, 2, 10):
        tar_of({"a.png": b"%d" % number}, tmp_path / f"d-{number}.tar")
        (tmp_path / "more").mkdir(exist_ok=True)
        tar_of({"a.png": b"%d" % number}, tmp_path / "more" / f"d-{number}.tar")

    def keys(pattern: str) -> list[str]:
        return [each.key for each in open_source(f"{tmp_path}/{pattern}").records]

    assert keys("d-*.tar") == ["d-0.tar/a.png", "d-2.tar/a.png", "d-10.tar/a.png"]
    assert keys("d-{10,0}.tar") == ["d-10.tar/a.png", "d-0.tar/a.png"]
    assert keys("{.,more}/d-2.tar") == ["./d-2.tar/a.png", "more/d-2.tar/a.png"]
    assert [each.key for each in open_source(f"file://{tmp_path}/d-?.tar").records] == ["d-0.tar/a.png",
                                                                                         "d-2.tar/a.png"]


@pytest.mark.parametrize(("pattern", "texts"), [
    ("a.tar", ["a.tar"]), ("d-{08..11}.tar", ["d-08.tar", "d-09.tar", "d-10.tar", "d-11.tar"]),
    ("d{8..11}", ["d8", "d9", "d10", "d11"]), ("{a,b}{2..1}", ["a2", "a1", "b2", "b1"]), ("a{b}c{", ["a{b}c{"]),
    ("{train,val}-{000..001}", ["train-000", "train-001", "val-000", "val-001"]),
])
def test_braces_are_ranges_and_choices(pattern: str, texts: list[str]) -> None:
    assert expand_braces(pattern) == texts


def test_a_range_without_end_is_refused() -> None:
    with pytest.raises(SourceError, match="too many archives"):
        expand_braces("{0..99999999}.tar")


def test_an_extraction_from_shards_goes_on_where_it_stopped(
        tmp_path: Path, glyph: Callable[..., Path], extract_demo: Callable[..., Any], passed: list[int],
        monkeypatch: pytest.MonkeyPatch) -> None:
    """webdataset#234, #271: stream readers cannot say which samples were done."""
    from onceclip.pipeline.encoders import Encoder

    for shard in range(2):
        members = {}
        for number in range(10):
            image = glyph(tmp_path / "x.png", "disc" if number % 2 else "ring", 10 * shard + number)
            members |= {f"{number}.png": image.read_bytes(), f"{number}.cls": str(number % 2).encode()}
        tar_of(members, tmp_path / f"d-{shard}.tar")
    source = str(tmp_path / "d-{0..1}.tar")
    counting = Encoder.encode_images

    def dying(self: Encoder, pixels: Any, *rest: Any, **options: Any) -> Any:
        if sum(passed) >= 12:
            raise KeyboardInterrupt
        return counting(self, pixels, *rest, **options)

    monkeypatch.setattr(Encoder, "encode_images", dying)
    with pytest.raises(KeyboardInterrupt):
        extract_demo(source, tmp_path / "s.zarr", batch_size=4, unit_rows=8)
    monkeypatch.setattr(Encoder, "encode_images", counting)
    before = sum(passed)
    done = extract_demo(source, tmp_path / "s.zarr", batch_size=4)
    assert done.reused > 0
    assert done.encoded + done.reused == 20
    assert sum(passed) - before == done.encoded
    keys = [str(key) for key in open_store(str(tmp_path / "s.zarr")).table.key]
    assert keys == [f"d-{shard}.tar/{number}.png" for shard in range(2) for number in range(10)]
    assert json.dumps(done.classes) == '{"0": 10, "1": 10}'
