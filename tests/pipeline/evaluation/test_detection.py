"""AUROC and average precision: those of scikit-learn, ties included."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from onceclip.pipeline.evaluation.metrics import auroc, average_precision


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [3, 1000])
def test_both_are_those_of_scikit_learn(seed, levels):
    random = np.random.default_rng(seed)
    score, positive = random.integers(0, levels, 60).astype(float), random.random(60) < 0.3
    assert auroc(score, positive) == pytest.approx(roc_auc_score(positive, score))
    assert average_precision(score, positive) == pytest.approx(average_precision_score(positive, score))


def test_a_constant_score_tells_nothing_apart():
    assert auroc(np.ones(10), np.arange(10) < 4) == 0.5
    assert average_precision(np.ones(10), np.arange(10) < 4) == pytest.approx(0.4)


@pytest.mark.parametrize("positive", [np.zeros(4, bool), np.ones(4, bool), np.zeros(0, bool)])
def test_without_rows_of_both_kinds_there_is_no_area(positive):
    assert auroc(np.arange(len(positive)), positive) is None
    assert average_precision(np.arange(len(positive)), positive) is None
