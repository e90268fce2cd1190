"""One folder with every kind of name that a file system allows, from the files to the commands and back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.sources import natural_order
from onceclip.stores import Store, open_store
from onceclip.stores.identity import decode_key

NFC, NFD = "caf\u00e9.png".encode(), "cafe\u0301.png".encode()
NAMES = [b"caf\xe9.png", NFC, NFD, "\N{FIRE}.png".encode(), b"two\nlines.png", b"100%.png", b"100%25.png", b"%E9.png",
         b"x" * 251 + b".png", "é".encode() * 125 + b"a.png", b"\xff" * 251 + b".png", b"tab\t\x1b[31m.PNG", b"-- .png"]
CLASSES = [b"caf\xe9", "cafe\u0301".encode(), "caf\u00e9".encode(), b"50%", b"two\nlines"]


def bare(root: Path) -> bool:
    """Whether the file system keeps names as they are: some refuse bytes, some see one name in NFC and NFD."""
    try:
        for name in (NFC, NFD, b"caf\xe9", b"a\n"):
            (root / os.fsdecode(name)).touch()
        return len(list(root.iterdir())) == 4
    except OSError:
        return False


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, glyph: Callable[..., Path]) -> Path:
    """Classes of odd names, files of odd names, and links to a file, to outside, in a loop and to nothing."""
    place = tmp_path_factory.mktemp("names")
    (place / "try").mkdir()
    if not bare(place / "try"):
        pytest.skip("this file system changes or refuses names")
    root = place / "images"
    for number, name in enumerate(NAMES):
        glyph(root / "odd" / os.fsdecode(name), "disc", number)
    for number, name in enumerate(CLASSES):
        for seed in range(6):
            glyph(root / os.fsdecode(name) / f"{seed}.png", "ring", 100 * (number + 1) + seed)
    glyph(place / "outside" / "a.png", "cross", 1)
    glyph(place / "outside" / "inner" / "b.png", "cross", 2)
    glyph(place / "elsewhere.png", "cross", 3)
    (root / "linked").symlink_to(place / "outside")
    (root / "odd" / "to-a-file.png").symlink_to(place / "elsewhere.png")
    (root / "odd" / "to-nothing.png").symlink_to(place / "nothing.png")
    (root / "odd" / "to-itself.png").symlink_to("to-itself.png")
    (root / "odd" / "loop").symlink_to(root)
    (place / "outside" / "inner" / "back").symlink_to(root / "50%")
    (root / "50%" / "there").symlink_to(place / "outside")
    return root


GOOD = len(NAMES) + 6 * len(CLASSES) + 3
BAD = {"odd/to-nothing.png", "odd/to-itself.png"}


@pytest.fixture(scope="module")
def path(root: Path, extract_demo: Callable[..., Any]) -> Path:
    extract_demo(root, root.parent / "s.zarr")
    return root.parent / "s.zarr"


@pytest.fixture(scope="module")
def adapter(path: Path) -> Path:
    from onceclip.pipeline.runs.fit import fit
    from onceclip.pipeline.runs.run import RunSpec

    fit(open_store(str(path)), RunSpec("tip-adapter", 2)).classifier.save(path.parent / "adapter")
    return path.parent / "adapter"


def keys(store: Store) -> list[str]:
    return [str(key) for key in store.table.key[store.rows()]]


def test_every_good_file_is_stored_once_under_a_key_that_leads_back_to_it(root: Path, path: Path) -> None:
    store = open_store(str(path))
    found = keys(store)
    assert len(found) == len(set(found)) == GOOD
    files = [(root / decode_key(key)).resolve(strict=True) for key in found]
    everything = {file.resolve() for folder in (root, root.parent / "outside") for file in folder.rglob("*")
                  if file.suffix.lower() == ".png" and file.is_file()}
    assert len(set(files)) == GOOD
    assert set(files) == everything
    assert {os.fsencode(decode_key(key)) for key in found} >= {b"odd/" + name for name in NAMES}


def test_classes_of_odd_names_are_classes(path: Path) -> None:
    store = open_store(str(path))
    assert {os.fsencode(decode_key(name)) for name in store.classes} == {*CLASSES, b"odd", b"linked"}
    assert store.text().classes == store.classes


def test_links_to_nothing_are_bad_images_and_loops_are_none(path: Path) -> None:
    table = open_store(str(path)).table
    assert set(map(str, table.key[table.state == 1])) == BAD
    assert not any("loop/" in key for key in table.key)


def test_another_extraction_and_verify_find_nothing_to_do(root: Path, path: Path, run_json: Callable[..., Any]) -> None:
    done = run_json("extract", root, path, "--model", "demo")
    assert (done["encoded"], done["moved"], done["removed"], done["bad"]) == (0, 0, 0, 2)
    assert run_json("verify", path)["faults"] == []


@contextmanager
def nobody() -> Iterator[None]:
    """No more rights than anybody: root reads every folder."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="this system has other rights")
def test_a_folder_that_cannot_be_read_is_named(glyph: Callable[..., Path], run: Callable[..., Any],
                                               encoder: Any) -> None:
    """Passed over in silence, its rows would count as removed and have to be encoded again."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for kind in ("disc", "ring", "shut"):
            for seed in range(3):
                glyph(place / "images" / kind / f"{seed}.png", kind, seed)
        place.chmod(0o777)
        (place / "images" / "shut").chmod(0)
        with nobody():
            done = run("extract", place / "images", place / "s.zarr", "--model", "demo")
        assert f"{place / 'images' / 'shut'}" in done.stderr, done.stdout + done.stderr
        assert isinstance(done.exception, SystemExit | None)


COMMANDS = ["extract {root} {store} --model demo", "info {store}", "verify {store}", "predict {adapter} {store}",
            "predict {adapter} {root}", "evaluate {adapter} {store}", "fit {store} --method zero-shot"]


@pytest.mark.parametrize("command", COMMANDS)
def test_json_output_is_one_ascii_object(root: Path, path: Path, adapter: Path, run: Callable[..., Any],
                                         command: str) -> None:
    done = run(*command.format(root=root, store=path, adapter=adapter).split(), "--json")
    assert done.exit_code == 0, done.stderr or repr(done.exception)
    values = json.loads(done.stdout_bytes.decode("ascii"))
    if command.startswith("predict"):
        images = [each["image"] for each in values["predictions"] if each["state"] == "ok"]
        assert sorted(images) == sorted(keys(open_store(str(path))))


def test_predictions_have_a_line_per_image_whatever_its_name(root: Path, adapter: Path,
                                                             run: Callable[..., Any]) -> None:
    done = run("predict", adapter, root)
    lines = done.stdout.removesuffix("\n").split("\n")
    assert len(lines) == GOOD + len(BAD)
    assert {line.count("\t") for line in lines} == {2, 3}  # a bad image has a reason and no class
    assert all(character.isprintable() or character in "\t\n" for character in done.stdout)


@pytest.mark.slow
def test_a_locale_that_knows_ascii_alone_changes_no_key_and_breaks_no_output(
        root: Path, path: Path, adapter: Path, tmp_path: Path) -> None:
    """In a real process; output for people."""
    copy = shutil.copytree(path, tmp_path / "copy.zarr")
    lines = [command.format(root=root, store=copy, adapter=adapter).split() for command in COMMANDS]
    code = ("import sys; from onceclip.cli import main\n"
            "assert sys.getfilesystemencoding() == 'ascii', sys.getfilesystemencoding()\n"
            f"for words in {lines!r}:\n"
            "    main(words, 'onceclip', standalone_mode=False)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, cwd=tmp_path,
                          env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert done.stdout.decode()
    assert sorted(keys(open_store(str(copy)))) == sorted(keys(open_store(str(path))))
    assert open_store(str(copy)).fingerprint == open_store(str(path)).fingerprint


def test_names_of_equal_numbers_have_one_order() -> None:
    """Classes 1 and 01 had the order of a set, which is another one in every process."""
    names = ["img10", "img1", "img01", "img2", "img001"]
    assert sorted(names, key=natural_order) == sorted(names[::-1], key=natural_order) == [
        "img001", "img01", "img1", "img2", "img10"]
