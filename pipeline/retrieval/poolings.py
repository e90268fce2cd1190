"""How a text is scored against an item of several rows, such as the frames of a video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.ops import unit
from onceclip.pipeline.retrieval.items import Frames


@dataclass(frozen=True)
class Pooling:
    """A pooling. vectors: gives one vector per item (items, dim) that texts are multiplied with; or, where an item's
    vector hangs on the text, scores gives (texts, items) from unit texts (texts, dim). value: the number that `scores`
    takes, if it takes one.
    """

    vectors: Callable[[Frames], Tensor] | None = None
    scores: Callable[[Tensor, Frames, float], Tensor] | None = None
    value: float | None = None


def mean(frames: Frames) -> Tensor:
    """The direction of the mean of unit rows: (items, dim). Source: CLIP4Clip (Luo et al., 2022), meanP."""
    return unit(frames.mean(unit(frames.raw)))


def raw_mean(frames: Frames) -> Tensor:
    """The direction of the mean of raw rows: (items, dim)."""
    return unit(frames.mean(frames.raw))


def fitclip(frames: Frames) -> Tensor:
    """The mean of unit rows as it is, so that the score is the mean of the rows' cosines: (items, dim).

    Source: FitCLIP (Castro and Caba Heilbron, 2022).
    """
    return frames.mean(unit(frames.raw))


def hitchhiker(text: Tensor, frames: Frames, temperature: float = 0.1) -> Tensor:
    """Cosine of a text with the raw rows' mean, weighted by the softmax of the text's own cosines with them.

    The length of that mean is had from products of rows, so that nothing of (texts, items, dim) is made.
    text: (texts, dim) unit. Gives (texts, items).
    Source: A CLIP-Hitchhiker's Guide to Long Video Retrieval (Bain et al., 2022).
    """
    cosines, there = _padded(text @ unit(frames.raw).T, frames)
    weights = (cosines / temperature).masked_fill(~there, -torch.inf).softmax(dim=-1)  # (texts, items, frames)
    raw, _ = rows_by_item(frames)
    length = torch.einsum("tif,ifg,tig->ti", weights, raw @ raw.transpose(1, 2), weights).clamp_min(0).sqrt()
    return (weights * cosines * raw.norm(dim=-1)).sum(dim=-1) / length.clamp_min(1e-12)


def maximum(text: Tensor, frames: Frames, _: float = 0.0) -> Tensor:
    """The highest cosine of a text with any row of an item: (texts, items). Source: CLIPRerank; FOR."""
    cosines, there = _padded(text @ unit(frames.raw).T, frames)
    return cosines.masked_fill(~there, -torch.inf).amax(dim=-1)


def _places(frames: Frames) -> tuple[Tensor, Tensor]:
    """Row numbers by item (items, most rows), and which of them are there."""
    sizes = frames.pointer.diff()
    step = torch.arange(int(sizes.max()))
    there = step < sizes[:, None]
    return (frames.pointer[:-1, None] + step).masked_fill(~there, 0), there


def _padded(values: Tensor, frames: Frames) -> tuple[Tensor, Tensor]:
    """Something of every row (texts, rows) by item (texts, items, most rows), 0 where there is none, and which are."""
    places, there = _places(frames)
    if there.all():  # the rows of all items in their order
        return values.view(len(values), *places.shape), there
    return values[:, places].masked_fill(~there, 0), there


def rows_by_item(frames: Frames) -> tuple[Tensor, Tensor]:
    """Rows by item, (items, most rows, dim), zeros where there is none; and which are there, (items, most rows)."""
    places, there = _places(frames)
    return frames.raw[places].masked_fill(~there[..., None], 0), there


POOLINGS = {"mean": Pooling(mean), "raw-mean": Pooling(raw_mean), "fitclip": Pooling(fitclip),
            "hitchhiker": Pooling(scores=hitchhiker, value=0.1), "max": Pooling(scores=maximum)}
