"""Scores: what scikit-learn says of the same logits, in whatever pieces and order they come, and of scores of rows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    log_loss,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)
from torch import Tensor

from onceclip.pipeline.evaluation.metrics import LISTED, Tally, WrongPairs, auroc, average_precision, metrics

CLASSES, ROWS = 12, 700


@pytest.fixture
def logits() -> Tensor:
    return 4 * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def label(logits: Tensor) -> Tensor:
    noisy = logits + 4 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(4))
    return noisy.argmax(dim=1) % (CLASSES - 1)  # the last class has no rows


def tallied(logits: Tensor, label: Tensor, sizes: list[int] | None = None) -> Tally:
    tally = Tally(logits.shape[1])
    for rows, classes in zip(logits.split(sizes or len(logits)), label.split(sizes or len(logits)), strict=True):
        tally.add(rows, classes)
    return tally


def test_scores_are_those_of_scikit_learn(logits: Tensor, label: Tensor) -> None:
    found = metrics(logits, label)
    share = torch.softmax(logits.double(), dim=1).numpy()
    names = np.arange(CLASSES)
    assert found["accuracy"] == pytest.approx(accuracy_score(label, share.argmax(1)), abs=1e-12)
    assert found["top5"] == pytest.approx(top_k_accuracy_score(label, share, k=5, labels=names), abs=1e-12)
    recall = recall_score(label, share.argmax(1), labels=names[:-1], average="macro")
    assert found["macro_recall"] == pytest.approx(recall, abs=1e-12)
    assert found["nll"] == pytest.approx(log_loss(label, share, labels=names), rel=1e-6)
    # scikit-learn's brier_score_loss takes more than two classes in its latest versions only
    assert found["brier"] == pytest.approx(((share - np.eye(CLASSES)[label]) ** 2).sum(axis=1).mean(), rel=1e-6)


def test_the_brier_score_of_two_classes_is_twice_that_of_scikit_learn() -> None:
    """Brier (1950) sums over both classes, scikit-learn's binary score takes one of them."""
    from sklearn.metrics import brier_score_loss

    logits, label = torch.tensor([[0.0, 1.0], [2.0, 0.5], [0.1, 0.0]]), torch.tensor([1, 1, 0])
    expected = 2 * brier_score_loss(label, logits.double().softmax(dim=1)[:, 1])
    assert metrics(logits, label)["brier"] == pytest.approx(expected, rel=1e-6)


def test_confusions_are_those_of_scikit_learn(logits: Tensor, label: Tensor) -> None:
    tally = tallied(logits, label)
    expected = confusion_matrix(label, logits.argmax(dim=1), labels=range(CLASSES))
    found = np.diag(tally.right.numpy())
    wrong = tally.wrong.counted()
    found[wrong[:, 0], wrong[:, 1]] = wrong[:, 2]
    assert (found == expected).all()
    assert (wrong[:, 0] != wrong[:, 1]).all()
    assert (np.diff(wrong[:, 2]) <= 0).all()


@pytest.mark.parametrize("sizes", [[699, 1], [100] * 7, [1, 0, 699]])
def test_rows_that_come_in_pieces_score_as_rows_that_come_at_once(logits: Tensor, label: Tensor,
                                                                 sizes: list[int]) -> None:
    whole, pieces = tallied(logits, label), tallied(logits, label, sizes)
    assert pieces.scores() == pytest.approx(whole.scores(), rel=1e-12)
    assert approximately(pieces.details()) == approximately(whole.details())


def test_the_order_of_rows_changes_nothing(logits: Tensor, label: Tensor) -> None:
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(5))
    one, other = tallied(logits, label), tallied(logits[order], label[order])
    assert other.scores() == pytest.approx(one.scores(), rel=1e-9)
    assert approximately(other.details()) == approximately(one.details())


def approximately(details: dict[str, Any] | None) -> dict[str, Any]:
    """Details with the sums of confidences rounded: the order of additions moves their last digits."""
    assert details is not None
    bins = [[rows, round(confidence, 9), right] for rows, confidence, right in details["reliability"]]
    return {**details, "reliability": bins}


def test_details_give_the_scores_again_and_survive_json(logits: Tensor, label: Tensor) -> None:
    tally = tallied(logits, label)
    details, scores = tally.details(), tally.scores()
    assert details is not None
    assert json.loads(json.dumps(details, allow_nan=False)) == details
    counts = label.bincount(minlength=CLASSES).tolist()
    recalls = [right / count for right, count in zip(details["right"], counts, strict=True) if count]
    assert np.mean(recalls) == pytest.approx(scores["macro_recall"])
    assert sum(details["right"]) / ROWS == scores["accuracy"]
    bins = details["reliability"]
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    place = np.ceil(confidence.numpy() * 15) - 1
    assert [rows for rows, _, _ in bins] == [int((place == number).sum()) for number in range(15)]
    right = (predicted == label).numpy()
    assert [good for _, _, good in bins] == [int(right[place == number].sum()) for number in range(15)]
    assert sum(abs(confidence - right) for _, confidence, right in bins) / ROWS == pytest.approx(scores["ece"])
    assert len(details["confusions"]) == LISTED


def test_five_of_five_classes_are_no_score() -> None:
    assert metrics(torch.eye(5), torch.arange(5))["top5"] is None
    assert metrics(torch.eye(6), torch.arange(6))["top5"] == 1


def test_classes_that_tie_for_a_place_do_not_count_as_found() -> None:
    """A classifier that says the same of every class is right by chance, not among the first five every time."""
    found = metrics(torch.zeros(8, 8), torch.arange(8))
    assert found["accuracy"] == found["top5"] == 1 / 8


def test_logits_that_differ_by_hundreds_have_finite_scores() -> None:
    found = metrics(torch.tensor([[400.0, -400.0], [400.0, -400.0]]), torch.tensor([0, 1]))
    assert found["nll"] == pytest.approx(400)
    assert found["brier"] == pytest.approx(1)
    assert found["ece"] == pytest.approx(0.5)


def test_pairs_that_are_counted_as_they_come_are_all_counted() -> None:
    random = np.random.default_rng(0)
    true = random.integers(0, 40, 200_000)
    predicted = (true + random.integers(1, 40, len(true))) % 40
    pairs = WrongPairs(40)
    for one, other in zip(np.split(true, [10, 70_000, 70_001]), np.split(predicted, [10, 70_000, 70_001]), strict=True):
        pairs.add(one, other)
    expected = np.zeros((40, 40), np.int64)
    np.add.at(expected, (true, predicted), 1)
    found = pairs.counted()
    assert found[:, 2].sum() == len(true)
    assert (expected[found[:, 0], found[:, 1]] == found[:, 2]).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [3, 1000])
def test_areas_are_those_of_scikit_learn_ties_included(seed: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    score, positive = random.integers(0, levels, 60).astype(float), random.random(60) < 0.3
    assert auroc(score, positive) == pytest.approx(roc_auc_score(positive, score))
    assert average_precision(score, positive) == pytest.approx(average_precision_score(positive, score))


def test_a_constant_score_tells_nothing_apart() -> None:
    assert auroc(np.ones(10), np.arange(10) < 4) == 0.5
    assert average_precision(np.ones(10), np.arange(10) < 4) == pytest.approx(0.4)


@pytest.mark.parametrize("positive", [np.zeros(4, bool), np.ones(4, bool), np.zeros(0, bool)])
def test_without_rows_of_both_kinds_there_is_no_area(positive: np.ndarray) -> None:
    assert auroc(np.arange(len(positive)), positive) is None
    assert average_precision(np.arange(len(positive)), positive) is None
