"""Ranks and scores over a whole store: equal to the dense computation, block by block, and never good by ties."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from onceclip.pipeline.errors import RetrievalError
from onceclip.pipeline.retrieval import similarity
from onceclip.pipeline.retrieval.evaluation import evaluate
from onceclip.pipeline.retrieval.metrics import ranks_of, relevant_of
from onceclip.stores import Store, StoreIncomplete

WAYS = [{}, {"pooling": "hitchhiker"}, {"pooling": "max"}, {"rerank": "max:0.5"}, {"normalize": "dual-softmax"},
        {"normalize": "qb", "bank": "train"}, {"normalize": "qb:5", "bank": "all"}]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def dense(store: Store, way: dict[str, Any], split: str) -> tuple[np.ndarray, list[int]]:
    """All scores of the captions of a split with its videos, one pair after the other, and each caption's video."""
    text, scores, owner = store.text("captions"), [], []
    groups = store.column("group").astype(object)
    names = sorted({groups[row] for row in store.rows(split, labelled=False)})
    for number, name in enumerate(names):
        place = text.classes.index(name)
        for caption in unit(text.embedding[text.class_ptr[place]:text.class_ptr[place + 1]].astype(float)):
            line = []
            for other in names:
                raw = store.embeddings(np.flatnonzero(groups == other)).astype(float)
                cosines = unit(raw) @ caption
                if way.get("pooling") == "max":
                    line.append(cosines.max())
                elif way.get("pooling") == "hitchhiker":
                    weights = np.exp(cosines / 0.1)
                    line.append(unit((weights[:, None] * raw).sum(axis=0)) @ caption)
                else:
                    line.append(unit(unit(raw).mean(axis=0)) @ caption)
                line[-1] += 0.5 * cosines.max() if way.get("rerank") else 0
            scores.append(line)
            owner.append(number)
    return np.array(scores), owner


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_blocks_give_what_all_scores_at_once_give(videos_store: Store, way: dict[str, Any],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(videos_store, split="test", **way)
    monkeypatch.setattr(similarity, "WIDE", 40)
    blocks = evaluate(videos_store, split="test", **way)
    for direction in similarity.DIRECTIONS:
        for name in ("rank", "precision", "gain"):
            np.testing.assert_allclose(getattr(blocks.ranks[direction], name), getattr(whole.ranks[direction], name),
                                       rtol=1e-9)
        assert blocks.row[direction]["r1"] == whole.row[direction]["r1"]
    if "normalize" not in way:
        scores, owner = dense(videos_store, way, "test")
        for direction, matrix in zip(similarity.DIRECTIONS, (scores, scores.T), strict=True):
            found = torch.cat([whole.scores(direction, query)[None] for query in range(len(matrix))])
            np.testing.assert_allclose(found.numpy(), matrix, atol=2e-6)
        best = [1 + (line > line[own]).sum() for line, own in zip(scores, owner, strict=True)]
        np.testing.assert_array_equal(whole.ranks["text_to_item"].rank, best)
        line_of = np.array(owner)
        best = [1 + (column[line_of != item] > column[line_of == item].max()).sum()
                for item, column in enumerate(scores.T)]
        np.testing.assert_array_equal(whole.ranks["item_to_text"].rank, best)


@pytest.mark.parametrize("most", [1, 3, 12])
def test_ranks_are_those_of_the_definition_with_ties(most: int) -> None:
    random = np.random.default_rng(most)
    scores = random.integers(0, 6, (20, 40)).astype(np.float32)  # many ties
    pointer = np.concatenate([[0], np.cumsum(np.minimum(random.integers(1, most + 1, 20), 40))])
    pointer = np.minimum(pointer, 40 - np.arange(20, -1, -1))  # some query has one alone
    relevant = relevant_of(pointer, 0, 20)
    found = ranks_of(torch.from_numpy(scores), relevant)
    for query, line in enumerate(scores):
        own = relevant[query][relevant[query] >= 0].numpy()
        rank = rankdata(-line)  # equal scores share the mean of their places, 1 + higher + half the others
        others = np.delete(line, own)
        best = line[own].max()
        among = rankdata(-line[own])
        assert found.rank[query] == 1 + (others > best).sum() + (others == best).sum() / 2
        assert found.precision[query] == pytest.approx((among / rank[own]).mean())
        ideal = (1 / np.log2(np.arange(len(own)) + 2)).sum()
        assert found.gain[query] == pytest.approx((1 / np.log2(1 + rank[own])).sum() / ideal)


def test_a_constant_score_does_not_look_good(make_store: Callable[..., Store], tmp_path: Path) -> None:
    same = np.ones(4, np.float32)
    store = make_store(tmp_path / "s.zarr", np.tile(same, (9, 1)), {f"{n:04d}.png": [same, same] for n in range(9)})
    row = evaluate(store).row
    assert row["text_to_item"]["median_rank"] == row["text_to_item"]["mean_rank"] == 5
    assert row["item_to_text"]["mean_rank"] == 1 + 16 / 2
    assert (row["text_to_item"]["r1"], row["item_to_text"]["r5"]) == (0, 0)


def test_one_image_with_one_caption_is_ranked(make_store: Callable[..., Store], tmp_path: Path) -> None:
    row = evaluate(make_store(tmp_path / "s.zarr", np.ones((1, 4), np.float32), {"0000.png": [np.ones(4)]})).row
    assert row["text_to_item"]["r1"] == row["item_to_text"]["map"] == row["item_to_text"]["ndcg"] == 1


def test_a_row_says_what_was_ranked(videos_store: Store) -> None:
    row = evaluate(videos_store).row
    assert (row["split"], row["by"], row["items"], row["transductive"]) == ("test", "group", 10, False)
    assert row["captions_per_item"] == {"least": 3, "mean": 3.0, "most": 3}
    assert row["left_out"] == {"captioned items elsewhere or without an embedding": 20}
    low, high = row["text_to_item"]["r5_interval"]
    assert low <= row["text_to_item"]["r5"] <= high
    normalized = evaluate(videos_store, normalize="qb").row
    assert normalized["transductive"]
    assert normalized["bank"] == {"split": "train", "captions": 10, "items": 10}
    assert evaluate(videos_store, split="all").row["items"] == 30


def test_captions_of_one_item_are_drawn_together(make_store: Callable[..., Store], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(40, 8)).astype(np.float32)
    once = make_store(tmp_path / "a.zarr", rows, {f"{n:04d}.png": [rows[n] + rows[n - 1]] for n in range(40)})
    many = make_store(tmp_path / "b.zarr", rows, {f"{n:04d}.png": [rows[n] + rows[n - 1]] * 5 for n in range(40)})
    a, b = (evaluate(store).row["text_to_item"] for store in (once, many))
    assert a["r1"] == b["r1"]
    assert a["r1_interval"] == pytest.approx(b["r1_interval"], abs=0.03)  # copies say nothing new


@pytest.mark.parametrize(("given", "said"), [
    ({"pooling": "median"}, "no pooling 'median'"), ({"pooling": "mean:3"}, "takes no number"),
    ({"pooling": "hitchhiker:-1"}, "above 0"), ({"rerank": "min"}, "no rerank"), ({"normalize": "qb:x"}, "above 0"),
    ({"split": "dev"}, "no split 'dev'"), ({"bank": "train"}, "--normalize qb"),
    ({"normalize": "qb", "bank": "dev"}, "no split 'dev'")])
def test_a_wrong_choice_is_one_line(videos_store: Store, given: dict[str, str], said: str) -> None:
    with pytest.raises(RetrievalError, match=said):
        evaluate(videos_store, **given)
    with pytest.raises(StoreIncomplete):
        evaluate(videos_store, name="none")


def test_class_prompts_are_no_captions(store_path: Path) -> None:
    from onceclip.stores import open_store

    with pytest.raises(RetrievalError, match="onceclip text STORE --captions"):
        evaluate(open_store(str(store_path)), name="default")
