"""The nearest items of a query and near-duplicates: exact, in blocks, over a whole store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from onceclip.pipeline.errors import RetrievalError
from onceclip.pipeline.retrieval import items, search, similarity
from onceclip.pipeline.retrieval.items import items_of
from onceclip.pipeline.retrieval.search import Best, duplicates, nearest
from onceclip.stores import Store, StoreDamaged, open_store


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """200 rows, of which 150 is nearly 3, 151 points where 7 does, and 160 to 163 are equal."""
    random = np.random.default_rng(5)
    found = random.normal(size=(200, 24)).astype(np.float32)
    found[150] = found[3] + 0.02 * found[4]
    found[151] = 3 * found[7]
    found[160:164] = found[160]
    return found


@pytest.fixture(scope="module")
def store(rows: np.ndarray, make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Store:
    group = [""] * 162 + ["film"] * 38  # 162 and 163 are equal frames of one video
    return make_store(tmp_path_factory.mktemp("s") / "s.zarr", rows, {"0000.png": [rows[0]]}, group)


def test_the_nearest_are_those_of_all_scores(store: Store, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = unit(np.random.default_rng(1).normal(size=(11, 24)).astype(np.float32))
    scores = queries @ unit(rows).T
    monkeypatch.setattr(search, "_BLOCK", 5)
    monkeypatch.setattr(search, "pieces", lambda pointer, rows=23, *ends: items.pieces(pointer, rows, *ends))
    for top in (1, 7, 200, 500):
        found, places = nearest(torch.from_numpy(queries), store, items_of(store), top)
        expected = -np.sort(-scores, axis=1)[:, :top]
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
        np.testing.assert_allclose(np.take_along_axis(scores, places.numpy(), 1), expected, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_few_or_all_of_a_block_are_sorted_with_one_result(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_MERGED", share)
    scores = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    best = Best(6, 5)
    for start in range(0, 50, 10):
        best.add(0, scores[:4, start:start + 10], start)
        best.add(4, scores[4:, start:start + 10], start)
    expected = scores.topk(5, dim=1)
    torch.testing.assert_close(best.scores, expected.values)
    assert best.places.tolist() == expected.indices.tolist()


def test_a_video_is_found_by_its_mean_and_shown_by_its_nearest_frame(store: Store, rows: np.ndarray) -> None:
    direction = unit(rows[162:].astype(float)).mean(axis=0)
    hits = search.search(store, torch.from_numpy(direction), 3, "group")
    assert hits[0].name == "film"
    assert hits[0].score == pytest.approx(1, abs=1e-6)
    assert hits[0].row == 162 + (unit(rows[162:]) @ direction).argmax()
    best = search.search(store, torch.from_numpy(rows[180]), 1, "group", pooling=similarity.Choice("max"))
    assert (best[0].name, best[0].row) == ("film", 180)


@pytest.mark.parametrize("wide", [1 << 24, 500])
def test_pairs_are_all_that_are_near_enough_and_no_frames_of_one_video(store: Store, wide: int,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "WIDE", wide)
    told: list[float] = []
    found = {(pair.first[:4], pair.second[:4]): pair for pair in duplicates(store, 0.99, "key", progress=told.append)}
    assert set(found) == {("0003", "0150"), ("0007", "0151"), ("0160", "0161"), ("0160", "0162"), ("0160", "0163"),
                          ("0161", "0162"), ("0161", "0163")}
    assert not any(pair.same for pair in found.values())
    assert told[-1] == 1
    exact = {(pair.first[:4], pair.second[:4]) for pair in duplicates(store, 1.0, "key")}
    assert ("0007", "0151") in exact
    assert ("0003", "0150") not in exact


@pytest.mark.parametrize("threshold", [0, -1, 1.01, float("nan")])
def test_a_threshold_is_a_cosine(store: Store, threshold: float) -> None:
    with pytest.raises(RetrievalError, match="give a cosine"):
        list(duplicates(store, threshold, "key"))


def test_a_flipped_byte_ends_a_search(store: Store, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(store.path, tmp_path / "copy.zarr"))
    chunk = copy / "image" / "embedding" / "c" / "5" / "0"
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(StoreDamaged):
        search.search(open_store(str(copy)), torch.ones(24), 3, "key")


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_of_equal_scores_the_first_items_count(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_MERGED", share)
    best = Best(2, 5)
    for start in range(0, 90, 45):
        best.add(0, torch.ones(2, 45), start)
    best.add(0, torch.full((2, 1), 2.0), 90)
    assert best.places.tolist() == [[90, 0, 1, 2, 3]] * 2
