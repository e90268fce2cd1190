"""Classifiers of three kinds of head, and queries for every strategy: a strategy that is named is tested as it is."""

from dataclasses import replace

import pytest
import torch

from onceclip.adapters import GDA, ClipAdapter, ZeroShot
from onceclip.adapters.inference import INFERENCES, queries_of
from onceclip.adapters.ops import unit

HEADS = {"zero-shot": lambda: ZeroShot(), "gda": lambda: GDA(), "clip-adapter": lambda: ClipAdapter(epochs=3)}
OF_FEW_ROWS = {"inmap": {"iterations": 20}, "reclip": {"neighbors": 4}}  # what suits the 24 rows of these tests


@pytest.fixture(params=list(INFERENCES))
def strategy(request):
    kind = INFERENCES[request.param]
    normal = {"normal": "class 0"} if "normal" in kind.hyperparameters else {}
    return kind(**OF_FEW_ROWS.get(request.param, {}), **normal)


@pytest.fixture
def task(make_task):
    return make_task((4, 4, 4))


@pytest.fixture
def classifier(task):
    return HEADS["zero-shot"]().fit(task)


@pytest.fixture(scope="session")
def make_queries(make_rows):
    """Function that draws queries with views and patches: `make_queries(classifier, rows_per_class, noise, seed)`."""

    def make(classifier, count=(9, 7, 8), noise=0.3, seed=70, dim=10):
        rows = make_rows(count, dim, views=4, noise=noise, seed=seed)
        queries = queries_of(classifier, rows.embedding)
        views = unit(rows.views).to(queries.embedding)
        views[:, 0] = queries.embedding
        return replace(queries, views=views, patches=views.roll(1, dims=1)), rows.label

    return make


@pytest.fixture
def queries(classifier, make_queries):
    """Rows of all classes, shuffled."""
    found, label = make_queries(classifier)
    return found.of(torch.randperm(len(label), generator=torch.Generator().manual_seed(5)))


@pytest.fixture
def make_unlabelled(strategy, make_queries):
    """Function that draws the train rows that a strategy prepares with: `make_unlabelled(classifier, noise)`."""

    def make(classifier, noise=0.3):
        rows, label = make_queries(classifier, (12, 12, 12), noise, 71)
        return rows.of(torch.where(label == 0)[0]) if strategy.wants_normal else rows

    return make


@pytest.fixture
def unlabelled(classifier, make_unlabelled):
    return make_unlabelled(classifier)
