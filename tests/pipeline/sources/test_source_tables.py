"""Images in tables: what `datasets` saved, its hub and Parquet files give what a folder of the images gives."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.sources import SourceOptions, image_tables, open_source
from onceclip.pipeline.sources.table_file import TableFile
from onceclip.stores import open_store

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def saved(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `save_to_disk` with the shared images, the first of each class for testing; and its Parquet files."""
    root = tmp_path_factory.mktemp("saved")
    files = sorted(path for path in image_folder.glob("*/*") if path.suffix == ".jpg")
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(
        names=["unused", *sorted({path.parent.name for path in files})])})
    parts = {}
    for split, chosen in (("train", [path for path in files if not path.stem.endswith("-0")]),
                          ("test", [path for path in files if path.stem.endswith("-0")])):
        parts[split] = datasets.Dataset.from_dict(
            {"picture": [{"bytes": path.read_bytes(), "path": path.name} for path in chosen],
             "label": [path.parent.name for path in chosen]}, features=features)
    datasets.disable_progress_bars()
    datasets.DatasetDict(parts).save_to_disk(root / "set", num_shards={"train": 3, "test": 1})
    (root / "hub" / "data").mkdir(parents=True)
    for split, part in parts.items():
        part.to_parquet(root / f"hub/data/{split}-00000-of-00001.parquet", batch_size=7)
    return root


def told(records: Any) -> list[tuple[Any, ...]]:
    return [(each.key, each.label, each.split, each.content.read()) for each in records]


def test_every_kind_of_table_gives_the_images_of_the_folder(saved: Path, image_folder: Path, hub: Path) -> None:
    (hub / "datasets" / "me").mkdir(parents=True)
    (saved / "hub" / "data").rename(hub / "datasets/me/pictures")
    try:
        found = [told(open_source(text).records) for text in (
            f"hf-dataset:{saved / 'set'}", "hf-dataset:me/pictures", "parquet:hf://datasets/me/pictures",
            f"parquet:{hub}/datasets/me/pictures/*.parquet")]
    finally:
        (hub / "datasets/me/pictures").rename(saved / "hub" / "data")
    files = {path.name: path for path in image_folder.glob("*/*")}
    expected = [(f"{split}/{name}", path.parent.name, split, path.read_bytes()) for split in ("train", "test")
                for name, path in sorted(files.items(), key=lambda each: each[1])
                if path.suffix == ".jpg" and (split == "test") == path.stem.endswith("-0")]
    assert [sorted(each) for each in found] == [sorted(expected)] * 4
    assert found[1] == found[2] == found[3]


def test_extraction_of_a_table_keeps_its_splits_and_goes_on(saved: Path, tmp_path: Path, extract_demo: Any,
                                                            store_path: Path) -> None:
    source, store = f"hf-dataset:{saved / 'set'}", tmp_path / "s.zarr"
    done = extract_demo(source, store, unit_rows=16)
    made, folder = open_store(str(store)), open_store(str(store_path))
    assert done.bad == 0
    assert made.classes == folder.classes
    place = {bytes(digest): row for row, digest in enumerate(folder.column("digest"))}
    rows = np.array([place[bytes(digest)] for digest in made.column("digest")])
    np.testing.assert_allclose(made.embeddings(), folder.embeddings(rows), atol=2e-3)
    assert {key.split("/")[0] for key in made.column("key")[made.rows("test")]} == {"test"}
    again = extract_demo(source, store, unit_rows=16)
    assert (again.encoded, again.reused) == (0, done.encoded)


def png(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (4, 4), shade).save(content, "png")
    return content.getvalue()


def test_columns_are_found_by_type_or_named(tmp_path: Path) -> None:
    table = pyarrow.table({
        "jpg": [png(number) for number in range(3)], "id": ["x", "y", "z"], "species": ["cat", "dog", None],
        "breed": [4, 5, -1], "split": ["train", "valid", "test"], "film": ["a", "a", "b"]})
    parquet.write_table(table, tmp_path / "pets.parquet")
    source = str(tmp_path / "pets.parquet")
    plain = open_source(source).records
    assert [(each.key, each.label, each.split) for each in plain] == [
        ("train/000000", None, "train"), ("val/000000", None, "val"), ("test/000000", None, "test")]
    named = open_source(source, SourceOptions(columns=(("label", "species"), ("key", "id"), ("group", "film")))).records
    assert [(each.key, each.label, each.group) for each in named] == [("x", "cat", "a"), ("y", "dog", "a"),
                                                                      ("z", None, "b")]
    numbered = open_source(source, SourceOptions(columns=(("label", "breed"),))).records
    assert [each.label for each in numbered] == ["4", "5", None]
    assert [each.content.read() for each in numbered] == [png(0), png(1), png(2)]


def test_paths_in_a_table_are_not_followed(tmp_path: Path) -> None:
    """A stranger's table could name any file of this machine."""
    (tmp_path / "secret.png").write_bytes(png(1))
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    rows = [{"bytes": None, "path": str(tmp_path / "secret.png")}, {"bytes": png(2), "path": "../../b.png"}, None]
    parquet.write_table(pyarrow.table({"image": pyarrow.array(rows, kind)}), tmp_path / "t.parquet")
    first, second, third = open_source(str(tmp_path / "t.parquet")).records
    for record in (first, third):
        with pytest.raises(Exception, match="no image in the table"):
            record.content.read()
    assert second.content.read() == png(2)
    assert second.key == "t/000001"


@pytest.mark.parametrize(("columns", "given", "message"), [
    ({"a": [1, 2]}, (), r"no column of images \(it has: a\)"),
    ({"a": [b"1"], "b": [b"2"]}, (), "several columns that may be the image: a, b: choose with --column image=a"),
    ({"image": ["a.jpg"]}, (), "'image' is string: images are bytes"),
    ({"image": [b"1"]}, (("label", "species"),), "no column 'species'"),
    ({"image": [b"1"], "split": ["dev"]}, (), "split 'dev'"),
])
def test_wrong_columns_are_one_line(columns: dict[str, Any], given: Any, message: str, tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=message):
        open_source(str(tmp_path / "t.parquet"), SourceOptions(columns=given))


def test_a_data_set_with_a_script_alone_is_refused_and_runs_nothing(tmp_path: Path, run: Callable[..., Any]) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    done = run("extract", f"hf-dataset:{tmp_path / 'set'}", tmp_path / "s.zarr", "--model", "demo")
    assert done.exit_code == 1
    assert "has no .parquet file and is no data set of `save_to_disk`" in done.stderr
    assert not (tmp_path / "ran").exists()
    with pytest.raises(SourceError, match="there is no folder absent, and data sets of the hub are ORG/NAME"):
        open_source("hf-dataset:absent")


def test_rows_that_lie_together_are_read_once_for_all_threads(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each thread has all images of a row group in memory."""
    records = open_source(f"parquet:{saved}/hub/data/train-00000-of-00001.parquet").records[:7]
    read, taken = TableFile.group, list[int]()

    def slow(self: TableFile, number: int, column: str) -> Any:
        taken.append(number)
        time.sleep(0.02)
        return read(self, number, column)

    monkeypatch.setattr(TableFile, "group", slow)
    image_tables._group.cache_clear()
    with ThreadPoolExecutor(7) as pool:
        assert all(pool.map(lambda record: record.content.read(), records))
    assert taken == [0]
