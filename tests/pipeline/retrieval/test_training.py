"""Training for retrieval on cached rows: better on videos that it has not seen, from the train split alone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onceclip.pipeline.api.retrieval import retrieve
from onceclip.pipeline.errors import ArgumentError, RetrievalError
from onceclip.pipeline.retrieval.evaluation import evaluate
from onceclip.pipeline.retrieval.items import Frames
from onceclip.pipeline.retrieval.recipes import TemporalHead
from onceclip.pipeline.retrieval.training import train
from onceclip.stores import Store

FILMS, DIM = 240, 16


@pytest.fixture(scope="module")
def turned(make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Videos of 3 frames whose captions are of the last one, in other coordinates; false captions are of the first."""
    random = np.random.default_rng(0)
    frames = random.normal(size=(FILMS, 1, DIM)) + 0.7 * random.normal(size=(FILMS, 3, DIM))
    turn = np.eye(DIM) + 0.35 * random.normal(size=(DIM, DIM))
    names = [f"{number:03d}.mp4" for number in range(FILMS)]
    captions = {name: [frames[number, 2] @ turn + 0.1 * random.normal(size=DIM) for _ in range(2)]
                for number, name in enumerate(names)}
    group = [name for name in names for _ in range(3)]
    split = np.repeat(np.where(np.arange(FILMS) < 160, 0, np.where(np.arange(FILMS) < 200, 1, 2)), 3)
    path = tmp_path_factory.mktemp("turned") / "s.zarr"
    make_store(path, frames.reshape(-1, DIM).astype(np.float32), captions, group, split, "group", 64)
    make_store.add(path, {name: [frames[number, 0] @ turn] for number, name in  # type: ignore[attr-defined]
                          enumerate(names[:100])}, "group", "negatives")
    from onceclip.stores import open_store

    return open_store(str(path))


@pytest.mark.parametrize(("recipe", "further"), [
    ("labclip", {}), ("labclip", {"negatives": "negatives"}), ("geodesic", {}), ("temporal", {})])
def test_training_finds_more_of_unseen_videos(turned: Store, recipe: str, further: dict[str, Any]) -> None:
    before = evaluate(turned, split="test").row
    values = {"epochs": 10, "learning_rate": 1e-2, **further}
    after = retrieve(turned, split="test", train=recipe, **values)
    for direction in ("text_to_item", "item_to_text"):
        assert after[direction]["map"] > before[direction]["map"] + 0.1
    made = after["trained"]
    assert (made["items"], made["captions"], made["chosen_by"]) == (160, 320, "mAP on val")
    assert 0 < made["epoch"] <= 10
    assert made["false_captions"] == (100 if "negatives" in further else 0)
    again = retrieve(turned, split="test", train=recipe, **values)
    assert again["text_to_item"] == after["text_to_item"]
    assert retrieve(turned, split="test", train=recipe, seed=2, **values)["trained"]["val_map"] != made["val_map"]


def test_false_captions_that_a_recipe_would_not_read_are_refused(turned: Store) -> None:
    with pytest.raises(RetrievalError, match=r"geodesic makes its negatives itself: .* train labclip"):
        retrieve(turned, split="test", train="geodesic", negatives="negatives")


@pytest.mark.parametrize("recipe", ["labclip", "geodesic", "temporal"])
def test_no_epoch_is_the_mean_of_frames(turned: Store, recipe: str) -> None:
    row = retrieve(turned, split="test", train=recipe, epochs=0)
    plain = evaluate(turned, split="test").row
    assert row["trained"]["epoch"] == 0
    for name in ("r1", "r10", "map", "ndcg", "mean_rank"):
        assert row["text_to_item"][name] == pytest.approx(plain["text_to_item"][name])


def test_contra_reads_the_middle_of_neighbouring_clips(turned: Store) -> None:
    row = retrieve(turned, split="test", train="contra", epochs=3, learning_rate=1e-3)
    assert row["trained"]["val_map"] > 0
    head = TemporalHead(DIM, 5, middle=True).eval()
    rows = torch.randn(9, DIM)
    found = head.items(Frames(rows, torch.tensor([0, 5, 6, 9])))
    torch.testing.assert_close(found, torch.nn.functional.normalize(rows[[2, 5, 7]], dim=1))


def test_a_head_reads_every_video_by_itself(turned: Store) -> None:
    """Also one that is longer than all it was made for, beside others or alone."""
    torch.manual_seed(0)
    head = TemporalHead(DIM, 4).eval().requires_grad_(False)
    torch.nn.init.normal_(head.out.weight)
    rows, pointer = torch.randn(12, DIM), torch.tensor([0, 1, 8, 12])
    together = head.items(Frames(rows, pointer))
    for number, (start, stop) in enumerate(pairwise(pointer)):
        alone = head.items(Frames(rows[start:stop], torch.tensor([0, stop - start])))
        torch.testing.assert_close(alone[0], together[number], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(head.items(Frames(rows.flip(0)[:4], torch.tensor([0, 4]))), together[2:])


def test_training_never_sees_test_captions(turned: Store, make_store: Callable[..., Store], tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(turned.path, tmp_path / "copy.zarr"))
    text = turned.text("captions")
    changed = {name: list(text.embedding[text.class_ptr[n]:text.class_ptr[n + 1]] * (1 if n < 200 else -1))
               for n, name in enumerate(text.classes)}
    make_store.add(copy, changed, "group")  # type: ignore[attr-defined]
    from onceclip.stores import open_store

    other = open_store(str(copy))
    maps = [train(store, store.text("captions"), "captions", "labclip", epochs=2).maps for store in (turned, other)]
    for one, two in zip(maps[0].parameters(), maps[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize(("given", "said"), [
    ({"train": "lab"}, "no training 'lab'"), ({"train": "labclip", "split": "train"}, "seen the train"),
    ({"train": "labclip", "split": "val"}, "seen the train and val"),
    ({"train": "labclip", "split": "all"}, "seen the train"),
    ({"train": "labclip", "pooling": "max"}, "the pooling mean"), ({"epochs": 3}, "give train"),
    ({"train": "labclip", "learning_rate": -1}, "above 0"),
    ({"train": "temporal", "learning_rate": 1e30, "epochs": 3}, "diverged in epoch")])
def test_what_cannot_be_trained_is_one_line(turned: Store, given: dict[str, Any], said: str) -> None:
    with pytest.raises((RetrievalError, ArgumentError), match=said):
        retrieve(turned, **{"epochs": 1, **given} if "train" in given else given)


def test_what_is_trained_is_not_mixed_with_rows_as_they_are_stored(turned: Store) -> None:
    maps = train(turned, turned.text("captions"), "captions", "geodesic", epochs=0)
    with pytest.raises(RetrievalError, match="leave out --rerank, or the training"):
        evaluate(turned, split="test", rerank="max", trained=maps)
