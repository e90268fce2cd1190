"""A head whose class vectors look at the patches of each image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.heads.head import Head
from onceclip.adapters.run_axis import per_run, product
from onceclip.adapters.unit import unit


@dataclass(frozen=True)
class VisualGuide(Head):
    """Cosines with class vectors that attended to the image's tokens: `s x . unit(w_c + r O attention(w_c; tokens))`.

    A row is an embedding (dim) with its tokens (tokens x token width) behind it, scaled to unit length one by one. Only
    cosines are needed, so the largest tensor is (rows, classes, heads x tokens), and never (rows, classes, dim).

    text: (classes, dim), unit. query: (heads x head width, dim). key, value: (heads x head width, token width).
    out: O (dim, heads x head width). ratio: r. tokens, heads: their numbers. scale, bias: the encoder's.
    """

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

    @property
    def dtype(self) -> torch.dtype:
        return self.text.dtype
