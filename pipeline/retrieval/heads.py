"""What is trained for retrieval: linear maps of texts and items, and a head over the frames of a video."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from onceclip.adapters.ops import unit
from onceclip.pipeline.retrieval.items import Frames
from onceclip.pipeline.retrieval.poolings import mean, rows_by_item

_HEAD = 64  # dimensions per attention head, as in CLIP's towers


class Maps(nn.Module):
    """Unit vectors of both sides; without training, those of the pooling `mean`."""

    def text(self, text: Tensor) -> Tensor:
        """Of raw texts: (texts, dim)."""
        return unit(text)

    def items(self, frames: Frames) -> Tensor:
        """Of items: (items, dim)."""
        return mean(frames)


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
