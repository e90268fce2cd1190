"""Manifests and split files: every line is an image, or the one thing that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.sources import Listing, SourceOptions, open_source
from onceclip.stores import open_store
from onceclip.stores.schema import SPLITS

FolderOf = Callable[..., Path]


@pytest.fixture
def place(folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder `images` of two classes."""
    root = folder_of({"cat": 3, "dog": 3})
    monkeypatch.chdir(root.parent)
    return root.parent


def listed(content: str, name: str = "m.csv", **options: Any) -> Listing:
    Path(name).write_text(content)
    return open_source(name, SourceOptions(**{"root": "images", **options}))


def rows_of(listing: Listing) -> list[tuple[str, str | None, str | None, str]]:
    return [(record.key, record.label, record.split, record.group) for record in listing.records]


@pytest.mark.parametrize(("name", "content"), [
    ("m.csv", "cat/00.png,cat,train,a\ndog/00.png,dog,test,\n"),
    ("m.csv", "\ufeffpath,label,split,group\r\ncat/00.png,cat,train,a\r\n\r\ndog/00.png,dog,test,\r\n"),
    ("m.csv", 'Label, Path , split,group\ncat,cat/00.png, train,a\ndog, "dog/00.png",Testing,\n'),
    ("m.tsv", "group\tsplit\tpath\tlabel\na\ttrain\tcat/00.png\tcat\n\ttest\tdog/00.png\tdog\n"),
    ("m.TSV", "cat/00.png\tcat\tTrain\ta\ndog/00.png\tdog\ttest\t\n"),
    ("m.jsonl", '{"path": "cat/00.png", "label": "cat", "split": "train", "group": "a"}\n\n'
                '{"label": "dog", "path": "dog/00.png", "split": "test", "group": null}\n'),
])
def test_columns_are_known_by_their_names_or_their_order(place: Path, name: str, content: str) -> None:
    assert rows_of(listed(content, name)) == [("cat/00.png", "cat", "train", "a"), ("dog/00.png", "dog", "test", "")]


def test_numbers_are_names_of_classes_and_groups(place: Path) -> None:
    found = listed('{"path": "cat/00.png", "label": 0, "group": 7}\n{"path": "dog/00.png", "label": 1}', "m.jsonl")
    assert rows_of(found) == [("cat/00.png", "0", None, "7"), ("dog/00.png", "1", None, "")]


def test_paths_are_relative_to_the_manifest_unless_a_root_is_named(place: Path) -> None:
    (place / "images" / "m.csv").write_text("cat/00.png,cat\ndog/00.png,dog\n")
    assert [record.key for record in open_source("images/m.csv").records] == ["cat/00.png", "dog/00.png"]
    absolute = listed(f"{place}/images/cat/00.png,cat\n./dog/../dog/00.png,dog\n{place}/m.csv,dog\n")
    assert [record.key for record in absolute.records] == ["cat/00.png", "dog/00.png", f"{place}/m.csv"]
    assert absolute.records[0].content.read() == (place / "images/cat/00.png").read_bytes()


def test_an_image_without_a_label_is_a_row_without_a_class(place: Path, extract_demo: Callable[..., Any]) -> None:
    content = "path,label\n" + "".join(f"{kind}/0{number}.png,{kind if number else ''}\n"
                                       for kind in ("cat", "dog") for number in range(3))
    Path("m.csv").write_text(content)
    done = extract_demo("m.csv", place / "s.zarr", source=SourceOptions(root="images"))
    assert done.warnings == ["2 of 6 images stored without a class: cat/00.png, dog/00.png"]
    store = open_store(str(place / "s.zarr"))
    assert len(store.rows()) == 4
    assert {SPLITS[each] for each in store.table.split[store.rows()]} == {"train", "test"}
    assert set(store.table.split[store.table.label < 0]) == {-1}


def test_a_missing_file_is_a_bad_image_but_a_wrong_root_is_an_error(place: Path) -> None:
    found = listed("cat/00.png,cat\ncat/nothing.png,cat\n")
    assert [record.key for record in found.records] == ["cat/00.png", "cat/nothing.png"]
    with pytest.raises(SourceError, match=r"line 1: there is no cat/00\.png in \..*--root"):
        listed("cat/00.png,cat\ndog/00.png,dog\n", root=".")


def test_columns_that_are_not_used_are_named(place: Path) -> None:
    found = listed("path,label,width,licence\ncat/00.png,cat,5,CC0\n")
    assert found.remarks == ["columns of m.csv that are not used: width, licence (used are path, label, split, group)"]
    lines = listed('{"path": "cat/00.png", "label": "cat", "url": 1}\n{"path": "dog/00.png", "width": 1}', "m.jsonl")
    assert "not used: url, width" in lines.remarks[0]


WRONG = [
    ("m.csv", "", "lists no images"),
    ("m.csv", "path,label\n", "lists no images"),
    ("m.csv", "file,class\ncat/00.png,cat\n", "line 1: 'file,class' is neither a header with a column path nor"),
    ("m.csv", "cat/00.png,cat,train,g,more\n", "neither a header"),
    ("m.csv", "path,lable\ncat/00.png,cat\n", "no column 'lable': did you mean 'label'?"),
    ("m.csv", "path,class\ncat/00.png,cat\n", "no column label, but 'class'"),
    ("m.csv", "path,label,spilt\ncat/00.png,cat,train\n", "no column 'spilt': did you mean 'split'?"),
    ("m.csv", "path,label,label\ncat/00.png,cat,dog\n", "two columns 'label'"),
    ("m.csv", "cat/00.png,cat\ndog/00.png\n", "line 2: 1 cells, though the first line has 2"),
    ("m.csv", "cat/00.png,cat\ncat/./00.png,dog\n", "line 2: cat/00.png was in line 1 already"),
    ("m.csv", "path,label,split\ncat/00.png,cat,train\ndog/00.png,dog,\n", "dog/00.png has no split, though"),
    ("m.csv", "cat/00.png,cat,training set\n", "line 1 has split 'training set': there are train, val and test"),
    ("m.csv", "path,label\n,cat\n", "line 2: there is no path"),
    ("m.csv", 'cat/00.png,cat\n"dog/00.png"x,dog\n', "line 2: "),
    ("m.csv", 'cat/00.png,cat\n\n"dog/\n00.png",dog\ncat/00.png,cat\n', "line 5: cat/00.png was in line 1 already"),
    ("m.jsonl", '{"path": "cat/00.png"}\n{"path": \n', "line 2: not JSON"),
    ("m.jsonl", '["cat/00.png", "cat"]\n', "line 1: not an object with a path"),
    ("m.jsonl", '{"path": "cat/00.png", "label": ["cat"]}\n', 'line 1: label is ["cat"]: give text'),
    ("m.jsonl", '{"path": "cat/00.png", "label": true}\n', "line 1: label is true"),
    ("m.jsonl", '{"path": "cat/00.png", "lable": "cat"}\n', "did you mean 'label'?"),
    ("m.jsonl", '{"path": "a\\u0000b", "label": "cat"}\n', "line 1: there is no path"),
    ("m.jsonl", '{"path": "a\\ud800", "label": "cat"}\n', "is not text"),
    ("m.json", "{", "not JSON"),
    ("m.json", "[]", "is not a split file"),
    ("m.json", '{"images": []}', "is not a split file"),
    ("m.json", '{"train": {}}', "train is not a list"),
    ("m.json", '{"train": []}', "lists no images"),
    ("m.json", '{"train": [["cat/00.png", 0]]}', "train[0]: "),
    ("m.json", '{"train": [["cat/00.png", "0", "cat"]]}', "is not [path, number, name]"),
    ("m.json", '{"train": [["cat/00.png", 0, "cat"], ["dog/00.png", 0, "dog"]]}',
     "class 0 is 'cat' in train[0] and 'dog' in train[1]"),
    ("m.json", '{"train": [["cat/00.png", 0, "cat"]], "test": [["cat/01.png", 1, "cat"]]}',
     "class 'cat' has number 0 in train[0] and 1 in test[0]"),
    ("m.json", '{"train": [["cat/00.png", 0, "cat"]], "test": [["cat/00.png", 0, "cat"]]}',
     "test[0]: cat/00.png was in train[0] already"),
]


@pytest.mark.parametrize(("name", "content", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_what_is_wrong_with_a_manifest_is_one_line_with_its_place(place: Path, name: str, content: str,
                                                                  message: str) -> None:
    with pytest.raises(SourceError) as caught:
        listed(content, name)
    assert message in str(caught.value)
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)


def test_a_split_file_of_coop_gives_names_splits_and_order(place: Path) -> None:
    values = {"train": [["dog/00.png", 1, "big_dog"], ["cat/00.png", 0, "cat"]], "val": [["cat/01.png", 0, "cat"]],
              "test": [["dog/01.png", 1, "big_dog"]]}
    assert rows_of(listed(json.dumps(values), "split_zhou_Pets.json")) == [
        ("dog/00.png", "big_dog", "train", ""), ("cat/00.png", "cat", "train", ""), ("cat/01.png", "cat", "val", ""),
        ("dog/01.png", "big_dog", "test", "")]


def test_groups_of_a_manifest_stay_together_in_drawn_splits(place: Path, extract_demo: Callable[..., Any],
                                                            folder_of: FolderOf) -> None:
    """RemoteCLIP#13, image-annotator#93: what belongs together stood on both sides."""
    folder_of({"cat": 24, "dog": 24})
    content = "path,label,group\n" + "".join(f"{kind}/{number:02d}.png,{kind},{kind}-{number // 3}\n"
                                             for kind in ("cat", "dog") for number in range(24))
    Path("m.csv").write_text(content)
    for _ in range(2):  # the second time from the store's own columns
        done = extract_demo("m.csv", place / "s.zarr", source=SourceOptions(root="images"))
        table = open_store(str(place / "s.zarr")).table
        for group in {f"{kind}-{number}" for kind in ("cat", "dog") for number in range(8)}:
            assert len(set(table.split[table.group == group])) == 1, group
        assert done.splits == {"train": 24, "val": 9, "test": 15} or min(done.splits.values()) >= 6
    assert done.encoded == 0


def test_given_splits_that_cut_a_group_are_told_and_kept_from_the_draws(place: Path,
                                                                        extract_demo: Callable[..., Any]) -> None:
    from onceclip.pipeline.tasks.tasks import draw_task

    content = "path,label,split,group\n" + "".join(
        f"{kind}/0{number}.png,{kind},{split},{group}\n" for kind in ("cat", "dog")
        for number, split, group in ((0, "train", "g0"), (1, "train", f"{kind}-own"), (2, "test", "g0")))
    Path("m.csv").write_text(content)
    done = extract_demo("m.csv", place / "s.zarr", source=SourceOptions(root="images"))
    assert len(done.warnings) == 1
    assert done.warnings[0].startswith("1 group in several splits: 'g0' (train and test)")
    drawn = draw_task(open_store(str(place / "s.zarr")))
    assert sorted(drawn.support.keys) == ["cat/01.png", "dog/01.png"]
    assert drawn.remarks == ["2 train images left out: others of the group stand in a later split"]


def test_spaces_around_a_class_are_none_of_its_name(place: Path) -> None:
    found = listed('path,label\ncat/00.png,cat \ncat/01.png,"  cat"\ncat/02.png,cat\ndog/00.png,big  dog\n')
    assert [record.label for record in found.records] == ["cat", "cat", "cat", "big  dog"]
    assert found.remarks == []


