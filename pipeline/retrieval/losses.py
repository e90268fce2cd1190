"""Losses of pairs of texts and items, on unit vectors; row i of one belongs to row i of the other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.ops import unit

_ANGLE = 1e-4  # radians below which two vectors are mixed along the line between them


def clip_loss(text: Tensor, item: Tensor, scale: float) -> Tensor:
    """Mean of the cross-entropies of both directions (CLIP, Radford et al., 2021). text, item: (pairs, dim) unit."""
    logits, own = scale * item @ text.T, torch.arange(len(text))
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def contra_loss(text: Tensor, item: Tensor, temperature: float = 0.07) -> Tensor:
    """-log of a pair's share of all that is in its row and in its column, where it stands twice.

    text, item: (pairs, dim) unit. Source: ConTra (Fragomeni et al., 2022), with the MIL-NCE of Miech et al. (2020).
    """
    logits = text @ item.T / temperature
    return (torch.cat([logits, logits.T], dim=1).logsumexp(dim=1) - logits.diagonal()).mean()


def hard_negative_loss(text: Tensor, item: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Cross-entropy of each item over all captions of the batch and all false ones.

    text, item: (pairs, dim) unit. negative: (negatives, dim) unit, such as captions with their attributes exchanged.
    Source: LABCLIP (Koishigarina et al., 2025).
    """
    return cross_entropy(scale * item @ torch.cat([text, negative]).T, torch.arange(len(item)))


def geodesic_mix(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The points on the great circles between unit vectors (n, dim); share: 1 for the first, 0 for the second."""
    cosine = (first * second).sum(dim=-1, keepdim=True).clamp(-1, 1)
    angle = torch.atan2((1 - cosine.square()).clamp_min(1e-12).sqrt(), cosine)  # the slope of acos at 1 is infinite
    mixed = ((share * angle).sin() * first + ((1 - share) * angle).sin() * second) / angle.sin()
    return torch.where(angle < _ANGLE, unit(share * first + (1 - share) * second), mixed)


def geodesic_loss(text: Tensor, item: Tensor, share: float, scale: float) -> Tensor:
    """CLIP's loss with mixtures of other pairs as the only negatives (m2-mix).

    text, item: (pairs, dim) unit. share: of the item in a mixture, drawn from Beta(0.5, 0.5) at every step.
    Source: Geodesic Multi-Modal Mixup (Oh et al., NeurIPS 2023).
    """
    mixed, own = geodesic_mix(item, text, share), torch.arange(len(text))
    right = torch.eye(len(text), dtype=torch.bool)
    agree = (item * text).sum(dim=-1).diag()
    return sum((cross_entropy(scale * torch.where(right, agree, side @ mixed.T), own) for side in (item, text)),
               torch.zeros(())) / 2


def answer_hinge(scores: Tensor, right: Tensor, margin: float = 1.0) -> Tensor:
    """Sum over the false answers of max(0, margin + score - score of the right one), averaged over the questions.

    scores: (questions, answers). right: (questions,) int64.
    Source: Tem-adapter (Chen et al., ICCV 2023).
    """
    own = scores.gather(1, right[:, None])
    over = (margin + scores - own).clamp_min(0).scatter(1, right[:, None], 0)
    return over.sum(dim=1).mean()
