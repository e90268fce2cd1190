"""Heads that look a row up in what was kept: a bank of images with captions, or a graph over which labels spread."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu

from onceclip.adapters.heads.base import Head
from onceclip.adapters.ops import product, unit

Layer = tuple[Tensor, ...]  # Q, K, V, O, U, u, N, n of `refined`
LEAST = 1e-30  # the score of a class that no path leads to, for its logarithm


@dataclass(frozen=True)
class CaptionEnsemble(Head):
    """Logits `log(a / a' p + b / b' q)` of a row's own probabilities p and those q of the captions of its neighbours.

    With `p = softmax(x W^T)` and q the mean of `softmax(t W^T)` over the captions t of the `neighbours` bank images
    nearest to x; a and b are `1 - H / ln classes` of p and of q, and a', b' what they are on average.

    weight: W, (classes, dim), with the logit scale. image, caption: (bank, dim), unit. sure, caption_sure: a' and b'.
    """

    name = "caption-ensemble"

    weight: Tensor
    image: Tensor
    caption: Tensor
    neighbours: int
    sure: float
    caption_sure: float

    def __call__(self, rows: Tensor) -> Tensor:
        own, read = self.probabilities(rows)
        mixed = certainty(own) / self.sure * own + certainty(read) / self.caption_sure * read
        return mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log()

    def probabilities(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of the rows and of their neighbours' captions, both (rows, classes)."""
        nearest = product(rows, self.image).topk(min(self.neighbours, len(self.image)), dim=-1).indices
        of_captions = product(self.caption[nearest].flatten(0, 1), self.weight).softmax(dim=-1)
        return product(rows, self.weight).softmax(dim=-1), of_captions.unflatten(0, nearest.shape).mean(dim=1)

    @property
    def width(self) -> int:
        return max(len(self.image), self.neighbours * max(self.weight.shape))


def certainty(probability: Tensor) -> Tensor:
    """`1 - H / ln classes` of probabilities (rows, classes): (rows, 1), 0 where all classes are equally likely."""
    entropy = -(probability * probability.clamp_min(torch.finfo(probability.dtype).tiny).log()).sum(-1, keepdim=True)
    return (1 - entropy / math.log(probability.shape[-1])).clamp_min(0)


@dataclass(frozen=True)
class Refined(Head):
    """Logits `unit(x + f(x; t_1 .. t_k)) . w_c + b` with the captions t of the `neighbours` bank images nearest to x.

    f is what one transformer layer adds to a row, see `refined`. weight: (classes, dim), with the logit scale. image,
    caption: (bank, dim), unit. layer, heads: of f. bias: the encoder's.
    """

    name = "refined"

    weight: Tensor
    image: Tensor
    caption: Tensor
    layer: Layer
    heads: int
    neighbours: int
    bias: float = 0.0

    def __call__(self, rows: Tensor) -> Tensor:
        found = self.caption[nearest_rows(rows, self.image, self.neighbours)]
        return product(refined(rows, found, self.layer, self.heads), self.weight) + self.bias

    @property
    def width(self) -> int:
        tokens = (1 + self.neighbours) * self.weight.shape[-1]
        return max(len(self.image), len(self.weight), 2 * tokens, 2 * self.heads * self.weight.shape[-1],
                   2 * len(self.layer[4]))


def nearest_rows(queries: Tensor, bank: Tensor, count: int, own: Tensor | None = None) -> Tensor:
    """Positions (n, k) of the rows of a bank nearest to queries (n, dim), all of unit length; k is `count` at most.

    own: (n,) positions of the queries in the bank, where they are of it: none is its own neighbour.
    """
    cosine = product(queries, bank)
    if own is not None:
        cosine = cosine.scatter(1, own.unsqueeze(1), -torch.inf)
    return cosine.topk(min(count, len(bank) - (own is not None)), dim=-1).indices


def refined(queries: Tensor, found: Tensor, layer: Layer, heads: int) -> Tensor:
    """Unit queries (n, dim) with what a transformer layer adds to them, that sees each with its rows (n, k, dim).

    With h of all 1 + k vectors scaled to a mean square of one, `a = O attention(Q h_0; K h, V h)` and
    `unit(x + a + N gelu(U h' + u) + n)`, where h' is unit(x + a), scaled too. Queries and averages are projected in the
    place of all keys and values, which is the same and takes a k-th of the time.
    """
    query, key, value, out, wide, wide_bias, narrow, narrow_bias = layer
    size = math.sqrt(queries.shape[-1])
    tokens = size * torch.cat([queries.unsqueeze(1), found], dim=1)
    asked = product(size * queries, query).unflatten(-1, (heads, -1))
    score = torch.einsum("nhw,hwd,nkd->nhk", asked, key.unflatten(0, (heads, -1)), tokens)
    share = (score / math.sqrt(asked.shape[-1])).softmax(dim=-1)
    read = torch.einsum("nhd,hwd->nhw", share @ tokens, value.unflatten(0, (heads, -1))).flatten(1)
    seen = queries + product(read, out)
    return unit(seen + product(gelu(product(size * unit(seen), wide) + wide_bias), narrow) + narrow_bias)


@dataclass(frozen=True)
class GraphLabels(Head):
    """Logits `ln(sum_j a_j F_j)` over the images and the classes of a graph that a row is nearest to.

    An image's `a_j` is its cosine. A class's is the row's similarity `(head(x) / scale)_c + const` to the power gamma,
    where the constant makes their mean that of the row's cosines with the class vectors. Neither is below 0.

    head: its logits. image: (images, dim), unit. scores: F, (classes + images, classes). centre: (dim,), mean of the
        class vectors. scale: of the logits. neighbors: images and classes that a row looks at. gamma: power.
    """

    name = "graph-labels"

    head: Head
    image: Tensor
    scores: Tensor
    centre: Tensor
    scale: float
    neighbors: int
    gamma: float

    def __call__(self, rows: Tensor) -> Tensor:
        similarity = self.head(rows) / self.scale
        similarity = similarity + ((rows @ self.centre) - similarity.mean(dim=1)).unsqueeze(1)
        classes = similarity.shape[1]
        near_class = similarity.topk(min(self.neighbors, classes), dim=1)
        near_image = (rows @ self.image.T).topk(min(self.neighbors, len(self.image)), dim=1)
        value = torch.cat([near_class.values.clamp_min(0) ** self.gamma, near_image.values.clamp_min(0)], dim=1)
        index = torch.cat([near_class.indices, near_image.indices + classes], dim=1)
        found = (value.unsqueeze(1) @ self.scores[index]).squeeze(1)
        return found.clamp_min(LEAST).log()

    @property
    def width(self) -> int:
        return max(self.head.width, len(self.image), 2 * self.neighbors * self.scores.shape[1])
