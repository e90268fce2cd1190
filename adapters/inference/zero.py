"""ZERO: the confident views of an image vote."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.inference.base import Inference, Inferred, Queries
from onceclip.adapters.inference.views import chosen, log_mean, most_confident, scores_of, views_of
from onceclip.adapters.training.trainable import Hyperparameter


class Zero(Inference):
    """The class that most of the confident views are assigned to; of classes with equal votes the more probable one.

    The logits are the logarithm of the mean probability of these views. Where the winner of the vote is not the most
    probable class, the two exchange their values, so that the highest logit is the winner's.

    Source: Frustratingly Easy Test-Time Adaptation of Vision-Language Models (Farina et al., NeurIPS 2024).
    """

    name = "zero"
    summary = "ZERO: the most confident views of an image vote"
    equation = "votes_c = sum_v [argmax p_v = c],  v among the views of lowest entropy"
    hyperparameters = {"share": Hyperparameter(0.3, "share of the views that vote, those of lowest entropy", high=1.0)}
    sees = "views"

    def infer(self, classifier: Classifier, queries: Queries, prepared: object) -> Inferred:
        scores = scores_of(classifier, views_of(queries))
        votes, logits = ballot(chosen(scores, most_confident(scores, self.share)))
        winner, first = (votes + logits.exp()).argmax(dim=1, keepdim=True), logits.argmax(dim=1, keepdim=True)
        values = logits.gather(1, torch.cat([first, winner], dim=1))
        return Inferred(logits.scatter(1, torch.cat([winner, first], dim=1), values))


def ballot(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Votes of views for classes, and the logarithm of their mean probability: two of (n, classes).

    scores: (n, views, classes).
    """
    votes = one_hot(scores.argmax(dim=-1), scores.shape[-1]).sum(dim=1)
    return votes.double(), log_mean(scores)
