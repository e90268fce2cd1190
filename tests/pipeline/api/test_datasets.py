"""A store as a torch Dataset: the numbers of the store, once each, whoever reads them."""

from __future__ import annotations

import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, random_split

import onceclip
from onceclip.pipeline.api import datasets
from onceclip.stores import Store


@pytest.fixture(scope="module")
def store(image_folder: Path, extract_demo: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with views of train images and tokens of all, in chunks of 7 rows."""
    from onceclip.pipeline.decoding.views import Views
    from onceclip.pipeline.extraction.outputs import OutputOptions

    path = tmp_path_factory.mktemp("datasets") / "glyphs.zarr"
    extract_demo(image_folder, path, unit_rows=7, outputs=OutputOptions(Views(number=2), tokens="last"))
    return onceclip.open_store(path)


def read(loader: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a loader gives of embeddings and labels."""
    with warnings.catch_warnings():  # newer Pythons warn of every fork of a process with threads
        warnings.simplefilter("ignore", DeprecationWarning)
        batches = list(loader)
    return (np.concatenate([embedding.numpy() for embedding, _ in batches]),
            np.concatenate([label.numpy() for _, label in batches]))


def in_order(embedding: np.ndarray, label: np.ndarray) -> tuple[list[Any], list[int]]:
    """Rows without the order in which they came."""
    order = np.lexsort(embedding.T)
    return embedding[order].tolist(), label[order].tolist()


@pytest.mark.parametrize(("workers", "start"), [(0, None), (2, "fork"), (1, "spawn")])
def test_every_row_comes_once_with_the_numbers_of_the_store(
        store: Store, monkeypatch: pytest.MonkeyPatch, workers: int, start: str | None) -> None:
    """With pieces of few rows, so that workers share them."""
    monkeypatch.setattr(datasets, "PIECE_BYTES", 5 * store.dim * 2)
    rows = store.rows("train")
    expected = store.embeddings(rows), store.column("label")[rows]
    assert expected[0].dtype == np.float16
    how: dict[str, Any] = {"num_workers": workers, "batch_size": 8, "multiprocessing_context": start}
    if start != "spawn":  # where one pass must do: each imports torch anew
        embedding, label = read(DataLoader(onceclip.torch_dataset(store, "train"), **how))
        assert embedding.dtype == np.float16
        assert (embedding == expected[0]).all()
        assert (label == expected[1]).all()
    for shuffle in (False, True)[start == "spawn":]:
        stream = onceclip.torch_dataset(store.path, "train", iterable=True, shuffle=shuffle)
        loader = DataLoader(stream, **how)
        found = read(loader)
        assert in_order(*found) == in_order(*expected)
        if not workers:
            assert (found[0].tolist() == expected[0].tolist()) == (not shuffle)
            assert (read(loader)[0].tolist() == found[0].tolist()) == (not shuffle)  # another order every epoch


def test_a_shuffled_stream_follows_the_seed_of_torch(store: Store) -> None:
    loader = DataLoader(onceclip.torch_dataset(store, iterable=True, shuffle=True), batch_size=None)
    orders = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        orders.append([label for _, label in loader])
    assert orders[0] == orders[1] != orders[2]


def test_views_and_tokens_come_in_the_order_and_type_that_were_asked_for(store: Store) -> None:
    rows = store.rows("train")
    dataset = onceclip.torch_dataset(store, "train", ("view", "embedding", "token"), dtype="float64")
    view, embedding, token, label = dataset[-1]
    for found, name in ((view, "view"), (embedding, "embedding"), (token, "token")):
        assert found.dtype == torch.float64
        assert (found.numpy() == store.embeddings(rows[-1:], name)[0]).all()
    assert label == store.column("label")[rows[-1]]
    some, _ = random_split(dataset, [5, len(dataset) - 5])
    batch = next(iter(DataLoader(some, batch_size=5)))
    assert [list(each.shape) for each in batch] == [[5, *view.shape], [5, *embedding.shape], [5, *token.shape], [5]]
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_rows_without_a_class_come_on_request_and_joined_stores_are_outputs(store: Store, store_path: Path) -> None:
    everything = onceclip.torch_dataset(store, labelled=False)
    assert len(everything) == len(store.rows(labelled=False)) == 60
    joined = store.join(onceclip.open_store(store_path), "again")
    dataset = onceclip.torch_dataset(joined, "val", ["embedding", "again/embedding"])
    own, other, _ = next(iter(DataLoader(dataset, batch_size=60, num_workers=1, multiprocessing_context="fork")))
    assert (own == other).all()
    assert len(onceclip.torch_dataset(store, "val").rows) == len(own)


@pytest.mark.parametrize(("arguments", "words"), [
    ({"split": "tset"}, "train, val, test"), ({"outputs": "preproj"}, "no image/preproj"),
    ({"outputs": ()}, "at least one"), ({"dtype": "int64"}, "floating-point"), ({"dtype": "flaot"}, "floating-point"),
    ({"split": "test", "outputs": "view"}, "views of train images and none of test images"),
    ({"shuffle": True}, "DataLoader shuffles")])
def test_what_a_dataset_cannot_be_of_is_said_before_any_row_is_read(
        store: Store, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(onceclip.OnceclipError, match=words):
        onceclip.torch_dataset(store, **arguments)


def test_a_store_without_labels_is_told_of_where_only_labelled_rows_were_asked_for(
        image_folder: Path, extract_demo: Callable[..., Any], tmp_path: Path) -> None:
    """A data set without rows would train nothing, and say nothing."""
    from onceclip.pipeline.sources import SourceOptions

    extract_demo(image_folder, tmp_path / "s.zarr", source=SourceOptions(unlabelled=True))
    with pytest.raises(onceclip.OnceclipError, match="no labelled image: give labelled=False"):
        onceclip.torch_dataset(tmp_path / "s.zarr")
    assert len(onceclip.torch_dataset(tmp_path / "s.zarr", labelled=False)) == 60


def test_a_worker_refuses_a_store_that_has_changed(store_copy: Path, folder_of: Callable[..., Path]) -> None:
    dataset = onceclip.torch_dataset(store_copy)
    again = pickle.loads(pickle.dumps(dataset))
    assert (again[0][0] == dataset[0][0]).all()
    again = pickle.loads(pickle.dumps(dataset))
    shutil.rmtree(store_copy)
    onceclip.extract(folder_of({"disc": 3, "ring": 3}), store_copy, "demo")
    with pytest.raises(onceclip.OnceclipError, match="has changed since"):
        again[0]
