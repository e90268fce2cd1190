"""Manifests and folders as other programs leave them: read, or refused with a line that says what they are."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.files import read_json
from onceclip.pipeline.sources import Listing, open_source


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two classes, which is the working directory's."""
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(b"image")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "pets"


def listed(content: bytes, name: str = "pets/m.csv") -> Listing:
    Path(name).write_bytes(content)
    return open_source(name)


@pytest.mark.parametrize(("content", "message"), [
    ("path,label\ncat/1.png,café\n".encode("cp1252"), r"line 2: the label 'caf\?' is not text in UTF-8"),
    ("path,label\ncat/1.png,café\n".encode("utf-16"), "UTF-16"),
    (b"path;label\ncat/1.png;cat\n", "line 1: its cells stand between semicolons"),
    (b"cat/1.png;cat\n", "line 1: its cells stand between semicolons"),
    (b"path\tlabel\ncat/1.png\tcat\n", "line 1: its cells stand between tabs"),
    (b"path,label\ncat\\1.png,cat\n", r"line 2: .*as on Windows: write / instead"),
])
def test_a_manifest_of_another_program_is_refused_by_what_it_is(pets: Path, content: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        listed(content)
    assert "\n" not in str(caught.value)


def test_an_index_column_without_a_name_is_named_and_not_used(pets: Path) -> None:
    found = listed(b",path,label\n0,cat/1.png,cat\n1,dog/1.png,dog\n")
    assert [record.label for record in found.records] == ["cat", "dog"]
    assert found.remarks == ["columns of pets/m.csv that are not used: one without a name (used are path, label, "
                             "split, group)"]


def test_paths_in_another_unicode_form_than_the_files_are_told(pets: Path) -> None:
    name = unicodedata.normalize("NFD", "caf\u00e9.png")
    (pets / name).write_bytes(b"image")
    with pytest.raises(SourceError, match="another Unicode form"):
        listed(f"path,label\n{unicodedata.normalize('NFC', name)},cat\n".encode())


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("text", [DEEP, "[" * 500 + "]" * 500, '{"a": ' * 70 + "1" + "}" * 70])
def test_nested_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="64 lists or objects in each other"):
        read_json(text)


@pytest.mark.parametrize("name", ["pets/m.jsonl", "pets/m.json"])
def test_nested_json_in_a_manifest_is_one_line(pets: Path, name: str) -> None:
    with pytest.raises(SourceError, match="not JSON"):
        listed(DEEP.encode(), name)


def test_folders_of_a_storage_system_are_passed_over_and_named(pets: Path) -> None:
    for name in ("@eaDir/1.png", "cat/@eaDir/2.png", "#recycle/old.png", "lost+found/3.png", ".git/4.png"):
        (pets / name).parent.mkdir(parents=True, exist_ok=True)
        (pets / name).write_bytes(b"thumbnail")
    with tarfile.open("pets.tar", "w") as file:
        for path in sorted(pets.rglob("*.png")):
            member = tarfile.TarInfo(str(path.relative_to(pets)))
            member.size = path.stat().st_size
            file.addfile(member, io.BytesIO(path.read_bytes()))
    for source, prefix in (("pets", ""), ("pets.tar", "pets.tar/")):
        found = open_source(source)
        assert [record.key for record in found.records] == [prefix + name for name in
                                                            ("cat/1.png", "cat/2.png", "dog/1.png")]
        assert found.remarks == ["passed over, as a system makes them: #recycle, @eaDir (2), lost+found"]


def test_folders_may_lie_deeper_than_python_may_recurse(pets: Path) -> None:
    here = Path.cwd()
    os.chdir(pets / "cat")
    for _ in range(1200):
        Path("d").mkdir()
        os.chdir("d")
    Path("3.png").write_bytes(b"image")
    os.chdir(here)
    try:
        assert len(open_source("pets").records) == 4
    finally:
        subprocess.run(["rm", "-rf", pets / "cat" / "d"], check=True)  # shutil.rmtree and so pytest recurse


def test_predict_passes_over_them_too(pets: Path, adapter_path: Path, glyph: Callable[..., Path],
                                      run: Callable[..., Any]) -> None:
    glyph(pets / "cat" / "1.png")
    (pets / "@eaDir").mkdir()
    glyph(pets / "@eaDir" / "thumb.png")
    done = run("predict", adapter_path, "pets")
    assert ("thumb" in done.stdout, "@eaDir" in done.stderr) == (False, True)
