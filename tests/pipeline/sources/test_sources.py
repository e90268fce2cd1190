"""Every source gives the same store for the same images, whatever they are called."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pytest

from onceclip.pipeline.errors import BadImage, SourceError
from onceclip.pipeline.sources import (
    Listing,
    RemoteFile,
    SourceOptions,
    natural_order,
    open_source,
)
from onceclip.stores import open_store
from onceclip.stores.identity import decode_key

Made = tuple[str, SourceOptions]
NAMES = ["0.png", "10.png", "2.PNG", "50%.png", "two\nlines.png", "cafe\u0301.png", "caf\u00e9.png",
         os.fsdecode(b"caf\xe9.png"), 'a "b", c.png', " space .png"]
CLASSES = ["plain", "50%", os.fsdecode(b"caf\xe9")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, glyph: Callable[..., Path]) -> Path:
    """Three splits of three classes, with odd names; file systems that refuse some have fewer."""
    root = tmp_path_factory.mktemp("sources") / "images"
    for number, name in enumerate(NAMES):
        split = ("train", "train", "val", "test")[number % 4]
        for kind, label in zip(("disc", "ring", "bar"), CLASSES, strict=True):
            try:
                glyph(root / split / label / name, kind, number)
            except OSError:
                continue
    return root


def files(root: Path) -> list[str]:
    """Names of the images in natural order, as text."""
    found = [str(path.relative_to(root)) for path in root.rglob("*") if path.suffix.lower() == ".png"]
    return [os.fsencode(name).decode("utf-8", "surrogateescape") for name in sorted(found, key=natural_order)]


def row(name: str) -> dict[str, str]:
    split, label, _ = name.split("/")
    return {"path": name, "label": label, "split": split}


def local_folder(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    return str(root), SourceOptions()


def file_url(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    return f"file://{root}", SourceOptions()


def memory_url(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    memory, folder = fsspec.filesystem("memory"), uuid4().hex
    for name in files(root):
        memory.pipe(f"/{folder}/pets/{name}", (root / name).read_bytes())
    memory.pipe(f"/{folder}/pets/train/.hidden/x.png", b"hidden")
    return f"memory://{folder}/pets", SourceOptions()


def csv_manifest(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    with (root / "pets.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([(f"./{name}", *name.split("/")[1::-1]) for name in files(root)])
    return str(root / "pets.csv"), SourceOptions()


def tsv_manifest(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    with (place / "pets.tsv").open("w", newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, ["split", "label", "path"], delimiter="\t")
        writer.writeheader()
        writer.writerows(map(row, files(root)))
    return str(place / "pets.tsv"), SourceOptions(root=str(root))


def json_lines(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    lines = [json.dumps({**row(name), "path": str(root / os.fsdecode(name.encode("utf-8", "surrogateescape")))})
             for name in files(root)]
    (place / "pets.jsonl").write_text("\n".join(lines))
    return str(place / "pets.jsonl"), SourceOptions(root=str(root))


def manifest_behind_a_url(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    url, _ = memory_url(root, place, monkeypatch)
    lines = "\n".join(json.dumps(row(name)) for name in files(root))
    fsspec.filesystem("memory").pipe(f"{url.removeprefix('memory:/')}/pets.ndjson", lines.encode())
    return f"{url}/pets.ndjson", SourceOptions()


def coop_file(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    number = {name.split("/")[1]: index for index, name in enumerate(files(root))}
    splits: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
    for name in files(root):
        split, label, _ = name.split("/")
        splits[split].append([name, number[label], label])
    (place / "split_zhou_Pets.json").write_text(json.dumps(splits))
    return str(place / "split_zhou_Pets.json"), SourceOptions(root=str(root))


def names_on_standard_input(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    content = "\0".join(files(root)).encode("utf-8", "surrogateescape")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    return "-", SourceOptions(root=str(root))


def own_function(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    (place / "own_source.py").write_text(
        "from pathlib import Path\n"
        "from onceclip.pipeline.sources import LocalFile, Record, natural_order\n"
        "from onceclip.stores.identity import encode_key\n"
        "def pets(root):\n"
        "    for path in sorted(map(str, Path(root).rglob('*.*')), key=natural_order):\n"
        "        name = path[len(root) + 1:]\n"
        "        if name.lower().endswith('png'):\n"
        "            split, label, _ = map(encode_key, name.split('/'))\n"
        "            yield Record(encode_key(name), LocalFile(path), label, split)\n")
    monkeypatch.chdir(place)
    monkeypatch.delitem(sys.modules, "own_source", raising=False)
    return "own_source:pets", SourceOptions(root=str(root))


def archive(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    with tarfile.open(place / "pets.tar", "w") as file:
        for name in files(root):
            file.add(root / os.fsdecode(name.encode("utf-8", "surrogateescape")), f"./{name}")
    return str(place / "pets.tar"), SourceOptions()


def shards_behind_a_url(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """WebDataset's own form: the class in a .cls file, the split in the name of the shard."""
    memory, folder = fsspec.filesystem("memory"), uuid4().hex
    for split in ("train", "val", "test"):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=tarfile.GNU_FORMAT) as file:
            for number, name in enumerate(name for name in files(root) if name.startswith(split)):
                image = (root / os.fsdecode(name.encode("utf-8", "surrogateescape"))).read_bytes()
                label = name.split("/")[1].encode("utf-8", "surrogateescape")
                for ending, part in (("cls", label), ("txt", b"a caption"), ("png", image)):
                    member = tarfile.TarInfo(f"{number:04d}.{ending}")
                    member.size = len(part)
                    file.addfile(member, io.BytesIO(part))
        memory.pipe(f"/{folder}/pets-{split}-00.tar", content.getvalue())
    return f"memory://{folder}/pets-{{train,val,test}}-{{00..00}}.tar", SourceOptions()


SAME_KEYS = [local_folder, file_url, memory_url, csv_manifest, tsv_manifest, json_lines, manifest_behind_a_url,
             coop_file, names_on_standard_input, own_function]
OWN_KEYS = [archive, shards_behind_a_url]


@pytest.fixture(scope="module")
def expected(root: Path, extract_demo: Callable[..., Any]) -> Path:
    """The store of the folder."""
    extract_demo(root, root.parent / "folder.zarr")
    return root.parent / "folder.zarr"


@pytest.fixture(params=[*SAME_KEYS, *OWN_KEYS], ids=lambda make: make.__name__)
def made(request: pytest.FixtureRequest, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A source of the same images."""
    text, options = request.param(root, tmp_path, monkeypatch)
    return text, options


def test_every_source_gives_the_same_store_for_the_same_images(
        request: pytest.FixtureRequest, made: Made, expected: Path, tmp_path: Path,
        extract_demo: Callable[..., Any]) -> None:
    done = extract_demo(made[0], tmp_path / "s.zarr", source=made[1])
    found, wanted = open_store(str(tmp_path / "s.zarr")), open_store(str(expected))
    assert (done.bad, done.warnings) == (0, [])
    assert found.classes == wanted.classes
    stored, folder = (_by_content(store) for store in (found, wanted))
    assert set(stored) == set(folder)
    for content, (label, split, vector) in folder.items():
        assert stored[content][:2] == (label, split)
        np.testing.assert_allclose(stored[content][2], vector, atol=2e-3)
    if request.node.callspec.params["made"] in SAME_KEYS:
        assert sorted(found.table.key) == sorted(wanted.table.key)
        assert found.fingerprint == wanted.fingerprint


def _by_content(store: Any) -> dict[bytes, tuple[str, int, np.ndarray]]:
    rows = store.rows()
    table = store.table
    found = {bytes(table.digest[row]): (store.classes[table.label[row]], int(table.split[row]), vector)
             for row, vector in zip(rows, store.embeddings(rows), strict=True)}
    assert len(found) == len(rows)
    return found


def test_records_are_small_and_another_process_can_read_them(root: Path, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    sent = {}
    for make in (*SAME_KEYS, *OWN_KEYS):
        text, options = make(root, tmp_path, monkeypatch)
        if "memory://" not in text:  # which is this process's own
            sent[make.__name__] = [record.content for record in open_source(text, options).records]
            assert len(pickle.dumps(sent[make.__name__])) < 400 * len(sent[make.__name__])
    code = ("import pickle, sys; sent = pickle.load(sys.stdin.buffer)\n"
            "pickle.dump({name: [each.read() for each in contents] for name, contents in sent.items()},"
            " sys.stdout.buffer)\n"
            "assert {'torch', 'open_clip', 'zarr', 'av'}.isdisjoint(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(sent), capture_output=True, check=True)
    expected = sorted(path.read_bytes() for path in root.rglob("*.*") if path.suffix.lower() == ".png")
    for name, contents in pickle.loads(done.stdout).items():
        assert sorted(contents) == expected, name


@pytest.mark.parametrize("make", SAME_KEYS, ids=lambda make: make.__name__)
def test_keys_lead_back_to_the_files_in_the_order_of_the_folder(
        make: Callable[..., Made], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """clip-retrieval#12: rows could not be mapped back to images."""
    records = open_source(*make(root, tmp_path, monkeypatch)).records
    if make is coop_file:  # its order is train, val, test
        records = sorted(records, key=lambda record: natural_order(decode_key(record.key)))
    assert [os.fsencode(decode_key(record.key)).decode("utf-8", "surrogateescape") for record in records] == files(root)


@pytest.mark.slow
def test_a_list_of_lines_in_a_real_process_takes_the_parent_folder_as_class(
        tmp_path: Path, glyph: Callable[..., Path]) -> None:
    for kind in ("disc", "ring"):
        for number in range(4):
            glyph(tmp_path / "deep" / kind / f"{number}.png", kind, number)
    command = f"find deep -name '*.png' | sort | {sys.executable} -m onceclip extract - s.zarr --model demo --json"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["classes"] == {"disc": 4, "ring": 4}
    assert open_store(str(tmp_path / "s.zarr")).table.key[0] == "deep/disc/0.png"


def test_a_file_that_left_the_storage_is_bad_and_no_answer_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe("/lost/a.png", b"")
    with pytest.raises(BadImage, match="cannot be read"):
        RemoteFile("memory://lost", "b.png").read()
    with pytest.raises(BadImage, match="empty"):
        RemoteFile("memory://lost", "a.png").read()
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", lambda *_, **__: 1 / 0)
    with pytest.raises(SourceError, match=r"memory://lost/a\.png: the storage cannot be used"):
        RemoteFile("memory://lost", "a.png").read()


REFUSALS = [
    ("memory://nothing/here", {}, "memory://nothing/here does not exist"),
    ("nowhere://bucket", {}, "nothing is known of nowhere:// URLs"),
    ("torchvision:CIFAR01", {}, "did you mean 'CIFAR10'"),
    ("torchvision:CIFAR10", {}, "--download"),
    ("torchvision:SVHN", {"root": "missing"}, "cannot be opened in 'missing'"),
    ("torchvision:EMNIST", {}, "manifest"),
    ("torchvision:Kinetics", {}, "manifest"),
    ("missing.csv", {}, "missing.csv does not exist"),
    ("missing.json", {}, "missing.json does not exist"),
    ("missing.tar", {}, "missing.tar does not exist"),
    ("missing-{0..3}.tar", {}, "missing-0.tar does not exist"),
    ("missing-*.tar", {}, "no such archive"),
    ("no_module:function", {}, "No module named 'no_module'"),
    ("json:nothing", {}, "json has no function 'nothing': "),
    ("json:dumpss", {}, "did you mean 'dumps'?"),
    ("builtins:len", {"root": "there"}, "builtins:len failed (TypeError: 'int' object is not iterable"),
    ("builtins:list", {"root": "there"}, "builtins:list gave a str: it must give onceclip.Record"),
    ("images", {"root": "there"}, "--root says nothing to the source images"),
    ("images", {"download": True}, "--download says nothing"),
    ("images", {"every": 5}, "there are no videos"),
]


@pytest.mark.parametrize(("text", "options", "message"), REFUSALS, ids=[text for text, _, _ in REFUSALS])
def test_a_source_that_cannot_be_listed_is_named_with_what_to_do(
        text: str, options: dict[str, Any], message: str, folder_of: Callable[..., Path],
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder_of({"disc": 2, "ring": 2}).parent)
    with pytest.raises(SourceError) as caught:
        open_source(text, SourceOptions(**options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_choices_of_frames_are_refused() -> None:
    with pytest.raises(SourceError, match="two ways"):
        SourceOptions(every=2, frames=2)


def test_images_without_classes_are_stored_for_predict_where_that_is_asked_for(
        folder_of: Callable[..., Path], adapter_path: Path, tmp_path: Path, run: Callable[..., Any],
        run_json: Callable[..., Any]) -> None:
    """The plain mistake, images in one heap, still says what to do."""
    root = folder_of({".": 5})
    refused = run("extract", root, tmp_path / "s.zarr", "--model", "demo")
    assert refused.exit_code == 1
    assert "has no classes: a classifier needs two" in refused.stderr
    assert "--unlabelled" in refused.stderr
    done = run_json("extract", root, tmp_path / "s.zarr", "--model", "demo", "--unlabelled")
    assert (done["images"], done["classes"], done["encoded"]) == (5, {}, 5)
    assert run_json("extract", root, tmp_path / "s.zarr", "--model", "demo", "--unlabelled")["encoded"] == 0
    labels = run_json("predict", adapter_path, tmp_path / "s.zarr")["predictions"]
    directly = run_json("predict", adapter_path, root)["predictions"]
    assert [each["class"] for each in labels] == [each["class"] for each in directly]
    assert run("verify", tmp_path / "s.zarr").exit_code == 0
    assert run("fit", tmp_path / "s.zarr", "--method", "zero-shot").exit_code == 1


def test_some_images_without_a_class_are_rows_and_are_named(folder_of: Callable[..., Path], tmp_path: Path,
                                                            extract_demo: Callable[..., Any]) -> None:
    done = extract_demo(folder_of({"disc": 3, "ring": 3, ".": 1}), tmp_path / "s.zarr")
    assert done.warnings == ["1 of 7 images stored without a class: 00.png"]
    store = open_store(str(tmp_path / "s.zarr"))
    assert (len(store.rows(labelled=False)), len(store.rows())) == (7, 6)


def test_listing_gives_one_order_whatever_the_file_system_says(folder_of: Callable[..., Path],
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """RETRO-pytorch#13: 10.npy was read before 2.npy."""
    root = folder_of({"10": 2, "9": 2, "1": 1, "a2": 1, "a10": 1, "a": 1})
    keys = [record.key.split("/")[0] for record in open_source(str(root)).records]
    assert keys == ["1", "9", "9", "10", "10", "a2", "a10", "a"]
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *given, **named: ((a, b, c[::-1]) for a, b, c in walk(*given, **named)))
    again: Listing = open_source(str(root))
    assert [record.key.split("/")[0] for record in again.records] == keys
