"""What strategies share that look at several vectors of an image, views or patches: their scores, and the sure ones."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError
from onceclip.adapters.inference.base import Queries, log_scores
from onceclip.adapters.task import EMBEDDING


def scores_of(classifier: Classifier, vectors: Tensor) -> Tensor:
    """`log_scores` of every vector of every image, (n, several, dim), unit: (n, several, classes).

    Raises MethodError for a classifier that takes something else than embeddings.
    """
    if classifier.inputs != (EMBEDDING,):
        raise MethodError(f"{classifier.method} takes {', '.join(classifier.inputs)} of an image, and views and "
                          "patches are embeddings: use an adapter of embeddings alone")
    n, several, dim = vectors.shape
    return log_scores(classifier, Queries(vectors.reshape(n * several, dim))).view(n, several, -1)


def views_of(queries: Queries, least: int = 1) -> Tensor:
    """The views of queries (n, views, dim), at least so many of each.

    Raises MethodError where there are none, or too few.
    """
    if queries.views is None:
        raise MethodError("the strategy reads views and there are none: extract with --views 64 --views-for test")
    if queries.views.shape[1] < least:
        raise MethodError(f"the strategy needs {least} views of every image and there are {queries.views.shape[1]}: "
                          "extract with --views 64 --views-for test")
    return queries.views


def patches_of(queries: Queries) -> Tensor:
    """The patch tokens of queries (n, patches, dim), unit.

    Raises MethodError where there are none.
    """
    if queries.patches is None:
        raise MethodError("the strategy reads patch tokens and there are none: extract with --tokens value")
    return queries.patches


def entropy(scores: Tensor) -> Tensor:
    """Entropy in nats of the softmax of scores (..., classes): (...); `0 ln 0` is 0."""
    share = scores.softmax(dim=-1)
    return -torch.special.xlogy(share, share).sum(dim=-1)


def number_of(share: float, count: int) -> int:
    """A share of a number, rounded down, but at least 1."""
    return max(1, int(share * count + 1e-9))  # 0.7 * 10 is a little below 7


def most_confident(scores: Tensor, share: float) -> Tensor:
    """Places of the views with the lowest entropy, lowest first: (n, kept) int64, one view at least.

    scores: (n, views, classes). share: of the views, rounded down.
    """
    return entropy(scores).argsort(dim=1, stable=True)[:, :number_of(share, scores.shape[1])]


def chosen(values: Tensor, places: Tensor) -> Tensor:
    """Values (n, views, d) of some views of every image, places (n, kept): (n, kept, d)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def log_mean(scores: Tensor) -> Tensor:
    """Logarithm of the mean probability of scores (n, views, classes) over the views: (n, classes), finite."""
    return torch.logsumexp(scores.log_softmax(dim=-1), dim=1) - torch.tensor(scores.shape[1]).log()
