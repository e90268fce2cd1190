"""Scores made comparable across candidates: hubs, which are near to every query, lose what they win by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.pipeline.retrieval.similarity import Choice, Similarity, choice_of

NORMALIZATIONS: dict[str, float | None] = {"qb": 20.0, "dual-softmax": 100.0}  # with their inverse temperatures
QUERY_BANK, DUAL_SOFTMAX = NORMALIZATIONS


def normalization_of(text: str) -> Choice:
    """The normalization that a name means."""
    return choice_of(text, "normalize", NORMALIZATIONS)


@dataclass(frozen=True)
class DualSoftmax:
    """A score times the softmax of its candidate's scores over all queries: it has seen every query (transductive).

    mass: (candidates,) log of the sum over the queries of exp(scale * score).
    Source: CAMoE (Cheng et al., 2021), dual softmax.
    """

    scale: float
    mass: Tensor

    def __call__(self, scores: Tensor) -> Tensor:
        """Normalize scores (queries, candidates)."""
        return scores * (self.scale * scores - self.mass).exp()


@dataclass(frozen=True)
class QueryBank:
    """QB-Norm's dynamic inverted softmax: rows whose best candidate is a hub of the bank are divided by its scores.

    Other rows stay as they are, so that scores are to be compared within a row alone.
    hubs: (candidates,) bool, the best candidate of a query of the bank. mass: as of DualSoftmax, over the bank.
    Source: Cross Modal Retrieval with Querybank Normalisation (Bogolin et al., CVPR 2022), with k = 1.
    """

    scale: float
    mass: Tensor
    hubs: Tensor

    def __call__(self, scores: Tensor) -> Tensor:
        """Normalize scores (queries, candidates); those given stay as they are."""
        active = self.hubs[scores.argmax(dim=1)]
        return torch.where(active[:, None], (self.scale * scores - self.mass).exp(), scores)


Normalize = Callable[[Tensor], Tensor]


def normalize_by(choice: Choice, bank: Similarity, progress: Callable[[float], None] = lambda fraction: None
                 ) -> Normalize:
    """Look at all queries of a bank, block by block; for dual softmax these are the queries that are ranked."""
    scale = choice.value or 0.0
    queries, candidates = bank.shape
    mass = torch.full((candidates,), -torch.inf, dtype=bank.text.dtype)
    hubs = torch.zeros(candidates, dtype=torch.bool)
    for where in bank.blocks():
        scores = bank.rows(where)
        hubs[scores.argmax(dim=1)] = True
        mass = torch.logaddexp(mass, (scale * scores).logsumexp(dim=0))
        progress(where.stop / queries)
    return DualSoftmax(scale, mass) if choice.name == DUAL_SOFTMAX else QueryBank(scale, mass, hubs)
