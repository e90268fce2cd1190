"""A folder that clip-retrieval wrote becomes a store whose rows are the images that it names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceclip.pipeline.errors import ArrayError, SourceError
from onceclip.pipeline.extraction.import_arrays import import_arrays
from onceclip.stores import StoreError, StoreIncomplete, StoreWriter, open_store
from onceclip.stores.schema import SPLITS
from onceclip.stores.verification import verify

pyarrow = pytest.importorskip("pyarrow")
DIM = 8


def write_part(folder: Path, number: int, paths: Sequence[str | None], column: str = "image_path",
               dtype: str = "float16") -> np.ndarray:
    """One pair of files as clip-retrieval writes them: vectors of length 1 in half precision."""
    from pyarrow import parquet

    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    vectors = np.random.default_rng(number).normal(size=(len(paths), DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(dtype)
    np.save(folder / "img_emb" / f"img_emb_{number}.npy", vectors)
    parquet.write_table(pyarrow.table({column: list(paths), "caption": ["words"] * len(paths)}),
                        folder / "metadata" / f"metadata_{number}.parquet")
    return vectors


def paths_of(number: int, count: int = 6, root: str = "/home/someone/data/pets") -> list[str]:
    splits = ("train", "train", "train", "val", "test", "test")
    return [f"{root}/{splits[row % 6]}/{('cat', 'dog', 'owl')[row % 3]}/{number:02d}-{row}.jpg" for row in range(count)]


def test_rows_belong_to_their_images_although_there_are_more_than_ten_files(tmp_path: Path) -> None:
    """clip-retrieval#12, DALLE2-pytorch#240: `10.npy` was read before `2.npy`, and nobody could map rows back."""
    whole = np.concatenate([write_part(tmp_path / "features", number, paths_of(number)) for number in range(12)])
    done = import_arrays(tmp_path / "features", tmp_path / "s.zarr", "ViT-B-32/openai", unit_rows=10)
    store = open_store(str(tmp_path / "s.zarr"))
    assert (done["images"], done["bad"], done["remarks"]) == (72, 0, [])
    np.testing.assert_array_equal(store.embeddings(), whole)
    assert store.table.key.tolist() == [path.removeprefix("/home/someone/data/pets/") for number in range(12)
                                        for path in paths_of(number)]
    assert store.classes == ("cat", "dog", "owl")
    assert [store.classes[label] for label in store.table.label[:3]] == ["cat", "dog", "owl"]
    assert [SPLITS[split] for split in store.table.split[:6]] == ["train"] * 3 + ["val"] + ["test"] * 2
    assert verify(str(tmp_path / "s.zarr")).faults == []
    assert not any("someone" in file.read_text("utf-8") for file in (tmp_path / "s.zarr").rglob("zarr.json"))


def test_vectors_that_were_normalised_are_said_to_be(tmp_path: Path) -> None:
    """clip-retrieval#290: a user compares them with raw ones and thinks that something is broken."""
    write_part(tmp_path / "features", 0, paths_of(0))
    import_arrays(tmp_path / "features", tmp_path / "s.zarr", "ViT-B-32/openai")
    encoder = open_store(str(tmp_path / "s.zarr")).encoder
    assert encoder["normalized"] is True
    np.savez(tmp_path / "raw.npz", embedding=np.full((4, DIM), 3, np.float32), label=np.arange(4) % 2)
    import_arrays(tmp_path / "raw.npz", tmp_path / "raw.zarr", "ViT-B-32/openai")
    assert open_store(str(tmp_path / "raw.zarr")).encoder["fingerprint"] != encoder["fingerprint"]
    longer = np.load(tmp_path / "features" / "img_emb" / "img_emb_0.npy") * 2
    np.save(tmp_path / "features" / "img_emb" / "img_emb_0.npy", longer)
    done = import_arrays(tmp_path / "features", tmp_path / "longer.zarr", "ViT-B-32/openai")
    assert done["encoder"]["normalized"] is False
    assert "not of length 1" in done["remarks"][0]


@pytest.mark.parametrize(("paths", "keys", "classes"), [
    (["/a/cat/1.jpg", "/a/dog/1.jpg"], ["cat/1.jpg", "dog/1.jpg"], ("cat", "dog")),
    (["/a/cat/1.jpg", "/a/cat/2.jpg"], ["cat/1.jpg", "cat/2.jpg"], ("cat",)),
    (["/a/train/cat/1.jpg", "/a/train/cat/2.jpg"], ["train/cat/1.jpg", "train/cat/2.jpg"], ("cat",)),
    (["cat/1.jpg", "dog/%\n.jpg"], ["cat/1.jpg", "dog/%25%0A.jpg"], ("cat", "dog")),
    (["000000", "000001"], ["000000", "000001"], ()),
    (["/a/10/1.jpg", "/a/2/1.jpg"], ["10/1.jpg", "2/1.jpg"], ("2", "10")),
])
def test_keys_and_classes_are_read_from_the_paths(tmp_path: Path, paths: list[str], keys: list[str],
                                                  classes: tuple[str, ...]) -> None:
    """clip-retrieval#329: images of one name in two folders were taken for one."""
    write_part(tmp_path / "features", 0, paths)
    import_arrays(tmp_path / "features", tmp_path / "s.zarr")
    store = open_store(str(tmp_path / "s.zarr"))
    assert (store.table.key.tolist(), store.classes) == (keys, classes)


def test_captions_are_left_out_with_a_note_and_splits_drawn_where_there_are_none(tmp_path: Path,
                                                                                 run: Callable[..., Any]) -> None:
    write_part(tmp_path / "features", 0, [f"/a/{'cat' if row % 2 else 'dog'}/{row}.jpg" for row in range(20)])
    (tmp_path / "features" / "text_emb").mkdir()
    result = run("import", tmp_path / "features", tmp_path / "s.zarr")
    assert result.exit_code == 0, result.stderr
    assert "Note: text_emb holds captions" in result.stderr
    store = open_store(str(tmp_path / "s.zarr"))
    assert [len(store.rows(split)) for split in SPLITS] == [10, 4, 6]
    assert store.texts == []


def test_a_row_that_is_not_finite_is_recorded_and_the_rest_is_used(tmp_path: Path) -> None:
    """openai/CLIP#198: half precision gave NaN features that went into caches."""
    vectors = write_part(tmp_path / "features", 0, paths_of(0, 12))
    vectors[3] = np.nan
    np.save(tmp_path / "features" / "img_emb" / "img_emb_0.npy", vectors)
    import_arrays(tmp_path / "features", tmp_path / "s.zarr")
    store = open_store(str(tmp_path / "s.zarr"))
    assert np.flatnonzero(store.table.reason == "its embedding is not finite").tolist() == [3]
    assert len(store.embeddings()) == 11


def test_an_import_that_was_killed_is_made_whole_by_the_same_command(tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        write_part(tmp_path / "features", number, paths_of(number, 12))
    import_arrays(tmp_path / "features", tmp_path / "whole.zarr", "any", unit_rows=8)
    commit = StoreWriter.commit

    def dying(writer: StoreWriter, number: int, *arguments: Any) -> None:
        if number == 3:
            raise KeyboardInterrupt
        commit(writer, number, *arguments)

    monkeypatch.setattr(StoreWriter, "commit", dying)
    with pytest.raises(KeyboardInterrupt):
        import_arrays(tmp_path / "features", tmp_path / "cut.zarr", "any", unit_rows=8)
    monkeypatch.undo()
    with pytest.raises(StoreIncomplete, match=r"unfinished .* run the same `onceclip import` command again"):
        open_store(str(tmp_path / "cut.zarr")).rows()
    np.savez(tmp_path / "other.npz", embedding=np.ones((4, DIM), np.float16), label=np.arange(4))
    with pytest.raises(ArrayError, match="unfinished store of something else"):
        import_arrays(tmp_path / "other.npz", tmp_path / "cut.zarr", "another")
    import_arrays(tmp_path / "features", tmp_path / "cut.zarr", "any", unit_rows=8)
    whole, cut = ({str(file.relative_to(tmp_path / name)): file.read_bytes() for file in (tmp_path / name).rglob("*")
                   if file.is_file()} for name in ("whole.zarr", "cut.zarr"))
    assert cut == whole
    with pytest.raises(StoreError, match="exists already"):
        import_arrays(tmp_path / "features", tmp_path / "cut.zarr", "any", unit_rows=8)


def shorter(folder: Path) -> None:
    np.save(folder / "img_emb" / "img_emb_1.npy", np.ones((5, DIM), np.float16))


def wider(folder: Path) -> None:
    np.save(folder / "img_emb" / "img_emb_1.npy", np.ones((6, DIM + 1), np.float16))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing number": (lambda folder: [(folder / name).unlink() for name in
                                         ("img_emb/img_emb_1.npy", "metadata/metadata_1.parquet")], "img_emb/1"),
    "a missing half": (lambda folder: (folder / "metadata" / "metadata_2.parquet").unlink(), "lacks metadata/2:"),
    "other counts": (shorter, r"img_emb_1\.npy has 5 rows, metadata_1\.parquet has 6"),
    "other widths": (wider, "9 columns"),
    "no number": (lambda folder: (folder / "img_emb" / "img_emb_0.npy").rename(folder / "img_emb" / "all.npy"),
                  "no number"),
    "a number twice": (lambda folder: (folder / "img_emb" / "b_0.npy").write_bytes(b""), "has the number of"),
    "cut short": (lambda folder: (folder / "metadata" / "metadata_0.parquet").write_bytes(b"PAR1"), "cannot be read"),
    "cut short too": (lambda folder: (folder / "img_emb" / "img_emb_0.npy").write_bytes(b""), "cannot be read"),
    "no names": (lambda folder: write_part(folder, 1, paths_of(1), column="url"), "no column image_path"),
    "a name that is none": (lambda folder: write_part(folder, 1, [*paths_of(1)[:5], None]), "not a text in every row"),
    "a name twice": (lambda folder: write_part(folder, 1, paths_of(0)), "more than one row"),
    "whole numbers": (lambda folder: write_part(folder, 1, paths_of(1), dtype="int64"), "floating-point"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_do_not_fit_are_one_line_that_names_them(tmp_path: Path, fault: str) -> None:
    """thingsvision#3: 26,111 images, 26,109 names, 26,107 rows."""
    for number in range(3):
        write_part(tmp_path / "features", number, paths_of(number))
    spoil, named = FAULTS[fault]
    spoil(tmp_path / "features")
    with pytest.raises((ArrayError, SourceError), match=named) as caught:
        import_arrays(tmp_path / "features", tmp_path / "s.zarr")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s.zarr").exists()


def test_columns_cannot_be_named(tmp_path: Path) -> None:
    write_part(tmp_path / "features", 0, paths_of(0))
    with pytest.raises(ArrayError, match="no table, whose columns could be named: leave --column out"):
        import_arrays(tmp_path / "features", tmp_path / "s.zarr", columns={"key": "url"})


def test_without_pyarrow_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_part(tmp_path / "features", 0, paths_of(0))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SourceError, match=r"pip install 'onceclip\[parquet\]'"):
        import_arrays(tmp_path / "features", tmp_path / "s.zarr")


def test_a_class_is_called_as_extract_calls_its_folder(tmp_path: Path) -> None:
    write_part(tmp_path / "features", 0, [f"/data/{name}/{row}.jpg" for name in ("10%", "tab\tbed") for row in (0, 1)])
    import_arrays(tmp_path / "features", tmp_path / "s.zarr")
    store = open_store(str(tmp_path / "s.zarr"))
    assert store.classes == ("10%25", "tab%09bed")
    assert store.table.key[0] == "10%25/0.jpg"
