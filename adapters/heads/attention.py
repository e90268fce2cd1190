"""Heads in which class vectors and each image attend to each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu

from onceclip.adapters.heads.base import Head
from onceclip.adapters.ops import per_run, product, unit

BLOCKING, SHIPPED, NONE = MASKS = ("blocking", "shipped", "none")


@dataclass(frozen=True)
class CrossModal(Head):
    """Cosines after one attention layer over the sequence of all class vectors and one image, times the logit scale.

    With z a vector of the sequence and o what its heads attended to, `a = unit(U gelu(N o + n) + u)`, and both the
    image and every class vector become `unit(r a + (1 - r) z)`: the class vectors of an image are its own.

    Only the image's part of a class's attention differs between images, a sigmoid per head; and only cosines of the new
    class vectors are needed. So the largest tensor is (rows, classes, bottleneck), and never (rows, classes, dim).

    text: (classes, dim), unit. inward: (3 x heads x head width, dim), queries, keys and values of a vector, with
    inward_bias. outward: N (bottleneck, heads x head width), with outward_bias n. up: U (dim, bottleneck), with
    up_bias u. heads: their number. ratio: r. scale, bias: the encoder's.
    mask: "blocking", only the other modality is seen; "shipped", its scores are one higher; "none".
    """

    name = "cross-modal"

    text: Tensor
    inward: Tensor
    inward_bias: Tensor
    outward: Tensor
    outward_bias: Tensor
    up: Tensor
    up_bias: Tensor
    heads: int
    ratio: float | Tensor
    scale: float
    bias: float = 0.0
    mask: str = BLOCKING

    def __call__(self, rows: Tensor) -> Tensor:
        text, image = self._enter(self.text), self._enter(rows)
        shift = 1.0 if self.mask == SHIPPED else 0.0
        images = self._images(rows, text, image, shift)
        hidden = gelu(self._classes(text, image, shift) + self.outward_bias.unsqueeze(-2).unsqueeze(-3))
        return self.scale * self._cosines(images, hidden) + self.bias

    def _enter(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (heads, n, head width) of vectors (n, dim); queries are scaled."""
        entered = product(vectors, self.inward) + self.inward_bias.unsqueeze(-2)
        query, key, value = entered.unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        return query / math.sqrt(query.shape[-1]), key, value

    def _leave(self, value: Tensor) -> Tensor:
        """Each head's part (heads, n, bottleneck) of N times values (heads, n, head width)."""
        return value @ self.outward.unflatten(-1, (self.heads, -1)).movedim(-2, -3).transpose(-1, -2)

    def _images(self, rows: Tensor, text: tuple[Tensor, ...], image: tuple[Tensor, ...], shift: float) -> Tensor:
        """New vectors of the images (n, dim)."""
        query, key, value = image
        itself = (query * key).sum(dim=-1, keepdim=True)
        if self.mask == BLOCKING:
            itself = torch.full_like(itself, -math.inf)
        share = torch.cat([query @ text[1].transpose(-1, -2) + shift, itself], dim=-1).softmax(dim=-1)
        attended = share[..., :-1] @ text[2] + share[..., -1:] * value
        hidden = gelu(self._leave(attended).sum(dim=-3) + self.outward_bias.unsqueeze(-2))
        ratio = per_run(self.ratio)
        return unit(ratio * unit(product(hidden, self.up) + self.up_bias.unsqueeze(-2)) + (1 - ratio) * rows)

    def _classes(self, text: tuple[Tensor, ...], image: tuple[Tensor, ...], shift: float) -> Tensor:
        """N times what the classes of every image attended to (n, classes, bottleneck)."""
        query, key, value = text
        seen = self._leave(image[2])
        if self.mask == BLOCKING:
            return seen.sum(dim=-3).unsqueeze(-2).expand(*seen.shape[:-3], -1, query.shape[-2], -1)
        score = query @ key.transpose(-1, -2)
        read = self._leave(score.softmax(dim=-1) @ value)
        share = (query @ image[1].transpose(-1, -2) + shift - score.logsumexp(dim=-1, keepdim=True)).sigmoid()
        from_image = torch.einsum("...hcn,...hnb->...ncb", share, seen)
        return from_image + torch.einsum("...hcn,...hcb->...ncb", 1 - share, read)

    def _cosines(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Cosines (n, classes) of images (n, dim) with their class vectors, from hidden (n, classes, bottleneck)."""
        offset, up, ratio = self.up_bias.unsqueeze(-2), self.up.transpose(-1, -2), per_run(self.ratio)
        gram = torch.einsum("...ncb,...bd,...ncd->...nc", hidden, up @ self.up, hidden)
        squared = gram + 2 * _inner(hidden, product(offset, up).unsqueeze(-2)) + product(offset, offset)
        length = squared.clamp_min(0).sqrt().clamp_min(1e-12)
        of_text = _inner(hidden, product(self.text, up).unsqueeze(-3)) + product(offset, self.text)
        of_image = _inner(hidden, product(images, up).unsqueeze(-2)) + product(images, offset)
        norm = ratio**2 + (1 - ratio)**2 * self.text.square().sum(-1) + 2 * ratio * (1 - ratio) * of_text / length
        return (ratio * of_image / length + (1 - ratio) * product(images, self.text)) / norm.clamp_min(1e-12).sqrt()

    @property
    def width(self) -> int:
        bottleneck, heads = self.outward.shape[-2], self.heads
        return len(self.text) * max(bottleneck, heads)


def _inner(hidden: Tensor, vectors: Tensor) -> Tensor:
    """Inner products (n, classes) of hidden (n, classes, b) with vectors that broadcast over them."""
    return (hidden * vectors).sum(dim=-1)


@dataclass(frozen=True)
class VisualGuide(Head):
    """Cosines with class vectors that attended to the image's tokens: `s x . unit(w_c + r O attention(w_c; tokens))`.

    A row is an embedding (dim) with its tokens (tokens x token width) behind it, scaled to unit length one by one. Only
    cosines are needed, so the largest tensor is (rows, classes, heads x tokens), and never (rows, classes, dim).

    text: (classes, dim), unit. query: (heads x head width, dim). key, value: (heads x head width, token width).
    out: O (dim, heads x head width). ratio: r. tokens, heads: their numbers. scale, bias: the encoder's.
    """

    name = "visual-guide"

    text: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    ratio: float | Tensor
    tokens: int
    heads: int
    scale: float
    bias: float = 0.0

    def __call__(self, rows: Tensor) -> Tensor:
        dim = self.text.shape[-1]
        images = unit(rows[:, :dim])
        tokens = unit(rows[:, dim:].reshape(-1, self.key.shape[-1]))
        query = self._split(product(self.text, self.query))
        key, value = (self._split(product(tokens, weight).unflatten(-2, (-1, self.tokens)))
                      for weight in (self.key, self.value))
        score = query.unsqueeze(-4) @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        seen = (score.softmax(dim=-1) @ value).transpose(-2, -3).flatten(-2)
        ratio, out = per_run(self.ratio), self.out.transpose(-1, -2)
        of_text = (seen * product(self.text, out).unsqueeze(-3)).sum(dim=-1)
        of_image = (seen * product(images, out).unsqueeze(-2)).sum(dim=-1)
        gram = torch.einsum("...nca,...ab,...ncb->...nc", seen, out @ self.out, seen)
        squared = self.text.square().sum(dim=-1) + 2 * ratio * of_text + ratio**2 * gram
        cosine = (product(images, self.text) + ratio * of_image) / squared.clamp_min(1e-12).sqrt()
        return self.scale * cosine + self.bias

    def _split(self, values: Tensor) -> Tensor:
        """One row of values per head: (..., n, heads x head width) becomes (..., heads, n, head width)."""
        return values.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    @property
    def width(self) -> int:
        return len(self.text) * max(self.heads * self.tokens, self.out.shape[-1])
