"""What is trained for retrieval, and by which loss: linear maps of texts and items, and heads over a video's frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from onceclip.adapters.ops import unit
from onceclip.pipeline.retrieval.items import Frames
from onceclip.pipeline.retrieval.similarity import mean, rows_by_item

_HEAD = 64  # dimensions per attention head, as in CLIP's towers
_ANGLE = 1e-4  # radians below which two vectors are mixed along the line between them


class Maps(nn.Module):
    """Unit vectors of both sides; without training, those of the pooling `mean`."""

    def text(self, text: Tensor) -> Tensor:
        """Of raw texts: (texts, dim)."""
        return unit(text)

    def items(self, frames: Frames) -> Tensor:
        """Of items: (items, dim)."""
        return mean(frames)

    def query(self, raw: Tensor, of_item: bool) -> Tensor:
        """Of one query (dim,): of a text, or of an image or another item that is looked for."""
        if of_item:
            return self.items(Frames(raw[None].float(), torch.tensor([0, 1])))[0]
        return self.text(raw[None].float())[0]


class LinearMaps(Maps):
    """n(B t) for texts and, where asked for, n(A x) for items; both begin as the identity."""

    def __init__(self, dim: int, both: bool = False) -> None:
        super().__init__()
        self.of_text = nn.Parameter(torch.eye(dim))
        self.of_items = nn.Parameter(torch.eye(dim)) if both else None

    def text(self, text: Tensor) -> Tensor:
        return unit(unit(text) @ self.of_text.T)

    def items(self, frames: Frames) -> Tensor:
        pooled = mean(frames)
        return pooled if self.of_items is None else unit(pooled @ self.of_items.T)


class TemporalHead(Maps):
    """A transformer over the rows of an item, added to what it begins as: their mean, or the middle one.

    middle: the vector of the middle row, as where rows are neighbouring clips of a longer video (ConTra, Fragomeni et
        al., 2022); else the mean of all. most: rows that there are positions for; of longer items they are stretched.
        sinusoidal: fixed positions (Tem-adapter, Chen et al., ICCV 2023) instead of trained ones.
    """

    def __init__(self, dim: int, most: int, middle: bool = False, layers: int = 1, sinusoidal: bool = False) -> None:
        super().__init__()
        self.middle = middle
        self.position = nn.Parameter(_waves(most, dim) if sinusoidal else 0.01 * torch.randn(most, dim),
                                     requires_grad=not sinusoidal)
        heads = next(number for number in range(max(1, dim // _HEAD), 0, -1) if dim % number == 0)
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def items(self, frames: Frames) -> Tensor:
        rows, there = rows_by_item(Frames(unit(frames.raw), frames.pointer))
        sizes = there.sum(dim=1)
        place = torch.arange(rows.shape[1]) * torch.where(sizes > len(self.position), len(self.position) / sizes,
                                                          1.0)[:, None]
        place = place.long().clamp_max(len(self.position) - 1)
        seen = self.out(self.layers(rows + self.position[place], src_key_padding_mask=~there))
        if self.middle:
            middle, line = (sizes - 1) // 2, torch.arange(len(sizes))
            return unit(rows[line, middle] + seen[line, middle])
        count = sizes[:, None]
        return unit(((rows + seen) * there[..., None]).sum(dim=1) / count)


def _waves(most: int, dim: int) -> Tensor:
    """Sines and cosines of places (most, dim), short beside unit rows (Vaswani et al., 2017)."""
    rate = torch.exp(-torch.arange(0, dim, 2) / dim * torch.log(torch.tensor(10000.0)))
    angle = torch.arange(most)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :dim] / dim ** 0.5


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


@dataclass(frozen=True)
class Batch:
    """Pairs of one step: unit texts and items (pairs, dim) as the maps make them, and false captions (any, dim)."""

    text: Tensor
    item: Tensor
    negative: Tensor
    scale: float
    random: np.random.Generator


@dataclass(frozen=True)
class Recipe:
    """A way to train. make: gives the maps from dim and most rows of an item. loss: of a batch."""

    source: str
    make: Callable[[int, int], Maps]
    loss: Callable[[Batch], Tensor]
    takes_negatives: bool = False
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-4
    weight_decay: float = 0.01


def _mixed(batch: Batch) -> Tensor:
    share = float(batch.random.beta(0.5, 0.5))
    return (clip_loss(batch.text, batch.item, batch.scale)
            + geodesic_loss(batch.text, batch.item, share, batch.scale)) / 2


RECIPES = {
    "labclip": Recipe("LABCLIP (Koishigarina et al., 2025)", lambda dim, most: LinearMaps(dim),
                      lambda batch: hard_negative_loss(batch.text, batch.item, batch.negative, batch.scale), True),
    "geodesic": Recipe("Geodesic Multi-Modal Mixup (Oh et al., NeurIPS 2023)",
                       lambda dim, most: LinearMaps(dim, both=True), _mixed),
    "temporal": Recipe("after CLIP4Clip's seqTransf (Luo et al., 2022)", TemporalHead,
                       lambda batch: clip_loss(batch.text, batch.item, batch.scale)),
    "contra": Recipe("ConTra (Fragomeni et al., 2022)", lambda dim, most: TemporalHead(dim, most, middle=True),
                     lambda batch: contra_loss(batch.text, batch.item)),
}


@dataclass(frozen=True)
class Trained:
    """Maps that are trained, and JSON values of how."""

    maps: Maps
    made_by: dict[str, Any]
