"""Questions about videos: the right answer has to score above all others, and a head over frames learns to see it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onceclip.pipeline.errors import RetrievalError
from onceclip.pipeline.retrieval.answers import Question, answer, load_questions
from onceclip.stores import Store

FILMS, DIM, ANSWERS = 120, 16, 3


@pytest.fixture(scope="module")
def films(make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory
          ) -> tuple[Store, list[Question], torch.Tensor]:
    """Videos of 3 frames; the right answer is their mean in other coordinates, false ones are of other videos."""
    random = np.random.default_rng(1)
    frames = random.normal(size=(FILMS, 1, DIM)) + 0.3 * random.normal(size=(FILMS, ANSWERS, DIM))
    meant = frames.mean(axis=1) @ (np.eye(DIM) + 0.7 * random.normal(size=(DIM, DIM)))
    frames = frames.astype(np.float32)
    names = [f"{number:03d}.mp4" for number in range(FILMS)]
    split = np.repeat(np.where(np.arange(FILMS) < 80, 0, 2), ANSWERS)
    store = make_store(tmp_path_factory.mktemp("films") / "s.zarr", frames.reshape(-1, DIM), {names[0]: [frames[0, 0]]},
                       [name for name in names for _ in range(ANSWERS)], split, "group", 64)
    questions, text = [], []
    for number, name in enumerate(names):
        order = random.permutation(ANSWERS)
        questions.append(Question(name, ("a", "b", "c"), int(np.flatnonzero(order == 0)[0])))
        text.append(meant[(number + 7 * order) % FILMS])
    return store, questions, torch.from_numpy(np.concatenate(text).astype(np.float32))


def test_a_head_over_frames_learns_what_answers_mean(films: tuple[Store, list[Question], torch.Tensor]) -> None:
    store, questions, text = films
    before = answer(store, questions, text, "test")
    assert (before["questions"], before["items"], before["chance"]) == (40, 40, pytest.approx(1 / 3))
    assert before["accuracy"] < 0.9
    after = answer(store, questions, text, "test", train=True, epochs=20, learning_rate=1e-2)
    assert after["accuracy"] > 0.95
    assert (after["trained"]["questions"], after["trained"]["split"]) == (80, "train")
    again = answer(store, questions, text, "test", train=True, epochs=20, learning_rate=1e-2)
    assert again["accuracy"] == after["accuracy"]
    with pytest.raises(RetrievalError, match="seen the train split"):
        answer(store, questions, text, None, train=True)


def test_the_score_is_the_cosine_with_the_mean_of_frames(films: tuple[Store, list[Question], torch.Tensor]) -> None:
    store, questions, text = films
    groups, right = store.column("group").astype(object), []
    for number, each in enumerate(questions):
        rows = store.embeddings(np.flatnonzero(groups == each.item)).astype(float)
        mean = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=0)
        some = text[3 * number:3 * number + 3].numpy()
        right.append((some @ mean / np.linalg.norm(some, axis=1)).argmax() == each.right)
    assert answer(store, questions, text)["accuracy"] == pytest.approx(np.mean(right))


def test_equal_answers_are_never_right(films: tuple[Store, list[Question], torch.Tensor]) -> None:
    store, questions, text = films
    assert answer(store, questions, torch.ones_like(text))["accuracy"] == 0


def test_questions_may_have_different_numbers_of_answers(films: tuple[Store, list[Question], torch.Tensor]) -> None:
    store, questions, text = films
    some = [Question(questions[0].item, ("a", "b", "c"), 0), Question(questions[1].item, ("a", "b"), 0)]
    row = answer(store, some, text[:5])
    assert (row["questions"], row["chance"]) == (2, pytest.approx((1 / 3 + 1 / 2) / 2))


@pytest.mark.parametrize("values", [{}, [], [3], [{"path": "a", "answers": ["x"], "right": 0}],
                                    [{"path": "a", "answers": ["x", "y"], "right": 2}],
                                    [{"path": "a", "answers": ["x", " "], "right": 0}],
                                    [{"path": "a", "answers": ["x", "y"], "right": True}]])
def test_a_file_that_is_none_is_one_line(tmp_path: Path, values: Any) -> None:
    (tmp_path / "q.json").write_text(json.dumps(values))
    with pytest.raises(RetrievalError, match="not a file of questions") as failed:
        load_questions(tmp_path / "q.json")
    assert "\n" not in str(failed.value)


def test_a_question_about_nothing_is_refused(films: tuple[Store, list[Question], torch.Tensor]) -> None:
    store, _, text = films
    with pytest.raises(RetrievalError, match="has no item 'x"):
        answer(store, [Question("x.mp4", ("a", "b"), 0)], text[:2])
    with pytest.raises(RetrievalError, match="no embedding in its val"):
        answer(store, [Question("000.mp4", ("a", "b"), 0)], text[:2], "val")
