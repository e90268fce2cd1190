"""`onceclip text --captions`: sentences of single images or videos, joined by key, kept and checked as prompts are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.errors import PromptError
from onceclip.pipeline.prompts.captions import load_captions
from onceclip.stores import open_store

Json = Callable[..., dict[str, Any]]
TWO = {"disc/1.png": ("a full disc", "a disc without a hole"), "bar/0.png": ("a bar",)}


def keys(path: Path) -> list[str]:
    return [str(key) for key in open_store(str(path)).column("key")]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "text"), [
    ("a.csv", 'path,caption\ndisc/1.png,a full disc\nbar/0.png,a  bar\ndisc/1.png,"a disc without a hole"\n'),
    ("b.csv", "disc/1.png,a full disc\ndisc/1.png,a disc without a hole\nbar/0.png,a bar\n"),
    ("c.tsv", "id\timage\tsplit\tcaption\n1\tdisc/1.png\tx\ta full disc\n2\tdisc/1.png\tx\ta disc without a hole\n"
              "3\tbar/0.png\tx\ta bar\n"),
    ("d.json", '{"disc/1.png": ["a full disc", "a disc without a hole"], "bar/0.png": "a bar"}'),
    ("e.json", '[{"image": "disc/1.png", "caption": ["a full disc", "a disc without a hole"]}, '
               '{"image": "bar/0.png", "caption": "a bar"}]'),
    ("f.jsonl", '{"key": "disc/1.png", "text": "a full disc"}\n{"key": "disc/1.png", "text": "a disc without a hole"}\n'
                '\n{"key": "bar/0.png", "text": "a bar"}\n'),
    ("g.json", '{"images": [{"id": 7, "file_name": "disc/1.png"}, {"id": 8, "file_name": "bar/0.png"}], "annotations": '
               '[{"image_id": 7, "caption": "a full disc"}, {"image_id": 8, "caption": "a bar"}, '
               '{"image_id": 7, "caption": "a disc without a hole"}]}')])
def test_the_usual_files_of_captions_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    assert load_captions(write(tmp_path / name, text)).lines == TWO


@pytest.mark.parametrize(("name", "text", "said"), [
    ("a.csv", "path,caption\na.png,a dog, black\n", "line 2 has 3 cells, not 2: a caption with a comma needs quotes"),
    ("a.csv", "", "nothing in it"), ("a.csv", "path,caption\na.png,  \n", "the caption ''"),
    ("a.json", '{"a.png": [1]}', "caption 1"), ("a.json", '{"a.png": []}', r"caption \[\]"), ("a.json", "3", "neither"),
    ("a.json", '{"a.png": "x", "a.png": "y"}', "named twice"), ("a.json", "[[1]]", "without a path and a caption"),
    ("a.json", '{"images": [], "annotations": [{"image_id": 1, "caption": "x"}]}', "lacks 1"),
    ("a.csv", "\xff", "1 cells"), ("missing.csv", None, "No such file")])
def test_a_file_that_is_none_is_one_line(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        write(tmp_path / name, text)
    with pytest.raises(PromptError, match=said) as failed:
        load_captions(tmp_path / name)
    assert "\n" not in str(failed.value)


def test_captions_are_joined_by_key_and_stored_like_any_text(store_copy: Path, tmp_path: Path, run_json: Json,
                                                            run: Callable[..., Any]) -> None:
    first, second, *_ = keys(store_copy)
    file = write(tmp_path / "c.json", json.dumps({second: ["a ring", "a hollow ring"], f"./{first}": ["one"]}))
    before = open_store(str(store_copy)).fingerprint
    done = run_json("text", store_copy, "--captions", file)
    assert (done["name"], done["prompts"], done["classes"], done["encoded"]) == ("captions", 3, 2, 3)
    store = open_store(str(store_copy))
    text = store.text("captions")
    assert (store.fingerprint, text.is_captions, text.source["by"]) == (before, True, "key")
    assert text.classes == (second, first)
    assert text.prompts == ("a ring", "a hollow ring", "one")
    assert text.class_ptr.tolist() == [0, 2, 3]
    assert run_json("text", store_copy, "--captions", file)["encoded"] == 0
    assert run("verify", store_copy).exit_code == 0
    assert "3 captions of 2 items" in run("info", store_copy).stdout
    refused = run("fit", store_copy, "--method", "zero-shot", "--text", "captions")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "captions of single images" in refused.stderr
    other = write(tmp_path / "d.json", json.dumps({first: ["two"]}))
    assert "--overwrite" in run("text", store_copy, "--captions", other).stderr
    assert run_json("text", store_copy, "--captions", other, "--overwrite")["prompts"] == 1
    run_json("compact", store_copy, tmp_path / "compact.zarr")
    copy = open_store(str(tmp_path / "compact.zarr")).text("captions")
    assert (copy.classes, copy.fingerprint) == ((first,), open_store(str(store_copy)).text("captions").fingerprint)


def test_who_a_caption_belongs_to_is_part_of_its_identity(store_copy: Path, tmp_path: Path, run_json: Json) -> None:
    first, second, *_ = keys(store_copy)
    prints = {run_json("text", store_copy, "--name", name, "--captions", write(
        tmp_path / "c.json", json.dumps({key: "a"})))["fingerprint"] for name, key in [("a", first), ("b", second)]}
    assert len(prints) == 2


def test_captions_of_unknown_items_are_refused_with_the_nearest(store_copy: Path, tmp_path: Path,
                                                                run: Callable[..., Any]) -> None:
    first = keys(store_copy)[0]
    file = write(tmp_path / "c.json", json.dumps({first: "a", f"elsewhere/{first.rpartition('/')[2]}": "b"}))
    failed = run("text", store_copy, "--captions", file)
    assert (failed.exit_code, failed.stderr.count("\n")) == (1, 1)
    assert "1 of 2 names" in failed.stderr
    assert f"(nearest: '{first}')" in failed.stderr
    assert open_store(str(store_copy)).texts == ["default"]


@pytest.mark.parametrize("further", [["--name", "default"], ["--templates", "a {}"], ["--waffle", 2],
                                     ["--names", "cat,dog"], ["--states", "bottle"]])
def test_captions_are_no_class_prompts(store_copy: Path, tmp_path: Path, run: Callable[..., Any],
                                       further: list[Any]) -> None:
    file = write(tmp_path / "c.json", json.dumps({keys(store_copy)[0]: "a"}))
    assert run("text", store_copy, "--captions", file, *further).exit_code == 2


def test_captions_of_images_that_went_are_a_remark_of_verify(store_path: Path, tmp_path: Path, run_json: Json,
                                                             folder_of: Callable[..., Path], run: Callable[..., Any],
                                                             extract_demo: Callable[..., Any]) -> None:
    folder, path = folder_of({"disc": 3, "ring": 3}), tmp_path / "s.zarr"
    extract_demo(folder, path)
    gone = keys(path)[0]
    run_json("text", path, "--captions", write(tmp_path / "c.json", json.dumps(dict.fromkeys(keys(path), "a"))))
    (folder / gone).unlink()
    extract_demo(folder, path)
    found = run("verify", path)
    assert found.exit_code == 0
    assert gone in found.output
