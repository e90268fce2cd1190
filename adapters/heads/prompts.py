"""Heads of prompts: every one is seen, each image is given to a few, or their vectors are encoded anew for it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from onceclip.adapters.heads.base import Head
from onceclip.adapters.ops import product, unit
from onceclip.adapters.tower import TextTower

WEIGHTINGS = ("autoclip", "softmax")
_HALVINGS = 60
_FLAT = 1e-6  # spread of the prompts' scores, cosines, below which they differ by rounding alone
_SHARPEST = 2.0**20  # in standard deviations: no prompt but the best one has any weight there


@dataclass(frozen=True)
class PromptMax(Head):
    """Logits `max_p s x . t_cp + b`.

    prompts: (prompts, dim), unit vectors times the logit scale. class_index: (prompts,) int64.
    classes: number of classes. bias: the encoder's.
    """

    name = "prompt-max"

    prompts: Tensor
    class_index: Tensor
    classes: int
    bias: float = 0.0

    def __call__(self, rows: Tensor) -> Tensor:
        scores = rows @ self.prompts.T
        lowest = scores.new_full((rows.shape[0], self.classes), -math.inf)
        return lowest.scatter_reduce(1, self.class_index.expand_as(scores), scores, "amax") + self.bias

    @property
    def width(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class PromptWeighted(Head):
    """Logits `s sum_p w_p(x) x . t_cp + b`, where every image weighs the templates anew, the same for all classes.

    With cosines `a_cp = x . t_cp`, "autoclip" takes the gradient `m_p = sum_c softmax_c(mean_p a_cp) a_cp` of the
    log-sum-exp of the class scores, "softmax" the plain mean `m_p = mean_c a_cp`. Then `w = softmax(k m)`, with k such
    that the entropy of w is the given share of its maximum, found by bisection.

    bank: (templates, classes, dim), unit vectors or means of them. scale, bias: the encoder's.
    weighting: one of WEIGHTINGS. entropy: the share, 1 for equal weights.
    Source: AutoCLIP (Metzen et al., TMLR 2024), section 3 and appendix A.3.
    """

    name = "prompt-weighted"

    bank: Tensor
    scale: float
    bias: float = 0.0
    weighting: str = WEIGHTINGS[0]
    entropy: float = 0.85

    def __call__(self, rows: Tensor) -> Tensor:
        templates, classes, _ = self.bank.shape
        cosine = (rows @ self.bank.flatten(0, 1).T).view(-1, templates, classes)
        if self.weighting == "softmax":
            merit = cosine.mean(dim=2)
        else:
            merit = (cosine.mean(dim=1).softmax(dim=1).unsqueeze(1) * cosine).sum(dim=2)
        weight = tempered(merit, self.entropy * math.log(templates))
        return self.scale * (weight.unsqueeze(1) @ cosine).squeeze(1) + self.bias

    @property
    def width(self) -> int:
        return self.bank.shape[0] * self.bank.shape[1]


def tempered(merit: Tensor, entropy: float) -> Tensor:
    """Softmax weights of merits (rows, n), each row as sharp as gives it an entropy (in nats): (rows, n).

    Merits that differ by no more than rounding weigh the same.
    """
    spread = merit.std(dim=1, correction=0, keepdim=True)
    standard = torch.where(spread > _FLAT, (merit - merit.mean(dim=1, keepdim=True)) / spread, 0.0)
    low, high = torch.zeros_like(spread), torch.full_like(spread, _SHARPEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        logarithm = (middle * standard).log_softmax(dim=1)
        sharper = -(logarithm.exp() * logarithm).sum(dim=1, keepdim=True) > entropy
        low, high = torch.where(sharper, middle, low), torch.where(sharper, high, middle)
    return (low * standard).softmax(dim=1)


@dataclass(frozen=True)
class RoutedPrompts(Head):
    """Logits `sum_k g_k(x) x . w_kc + b`, with g the softmax over the `top` largest of `r_k . x`, and 0 elsewhere.

    router: r, (experts, dim). vectors: w, (experts, classes, dim), with any logit scale multiplied in. bias: the
    encoder's.
    """

    name = "routed-prompts"

    router: Tensor
    vectors: Tensor
    top: int = 2
    bias: float = 0.0

    def __call__(self, rows: Tensor) -> Tensor:
        scores = torch.einsum("...nd,...kcd->...nkc", rows, self.vectors)
        return (gates(product(rows, self.router), self.top).unsqueeze(-1) * scores).sum(dim=-2) + self.bias

    @property
    def width(self) -> int:
        return self.vectors.shape[-3] * self.vectors.shape[-2]


def gates(scores: Tensor, top: int) -> Tensor:
    """Softmax over the `top` largest of scores (..., experts); the others are 0."""
    best = scores.topk(min(top, scores.shape[-1]), dim=-1)
    return torch.zeros_like(scores).scatter(-1, best.indices, best.values.softmax(dim=-1))


@dataclass(frozen=True)
class ConditionalPrompts(Head):
    """Logits `s x . w_c(x) + b`, with `w_c(x)` the class vector of a prompt whose tokens depend on the image.

    The tokens of the context are moved by `U relu(D f + d) + u`, all alike or each by rows of U of its own. f is x, or
    what stands behind it in a row, see `conditions`. One pass of the text tower over all classes is made per image.

    context: (tokens, width). down: D (hidden, width of f), with down_bias d. up: U (width or tokens x width, hidden),
    with up_bias u. tensors: of the tower, by the names in `layout`, which is JSON with the tower's spec, its classes,
    the position of the context and the number of blocks that f has statistics of, 0 where f is x. scale, bias: the
    encoder's.
    """

    name = "conditional-prompts"

    context: Tensor
    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    tensors: tuple[Tensor, ...]
    layout: str
    scale: float
    bias: float = 0.0

    @classmethod
    def of(cls, tower: TextTower, position: str, network: dict[str, Tensor], scale: float, bias: float,
           blocks: int = 0) -> Self:
        """The head of a tower for its classes. network: context, down, down_bias, up and up_bias."""
        small = tower.trimmed
        layout = {"tensors": list(small.tensors), "spec": dict(small.spec), "classes": list(small.classes),
                  "position": position, "axes": [each.ndim for each in small.tensors.values()], "blocks": blocks}
        return cls(**network, tensors=tuple(small.tensors.values()), layout=json.dumps(layout), scale=scale, bias=bias)

    def __call__(self, rows: Tensor) -> Tensor:
        if self.context.ndim > 2:  # several heads side by side
            return torch.stack([self._one(run)(rows if rows.ndim == 2 else rows[run])
                                for run in range(len(self.context))])
        images, features = conditions(rows, self._tower.dim, self._layout.get("blocks", 0))
        contexts = conditional(self.context, self.down, self.down_bias, self.up, self.up_bias, features)
        vectors = self._tower.encode_several(contexts, self._layout["position"])
        return self.scale * (vectors @ images.unsqueeze(-1)).squeeze(-1) + self.bias

    def _one(self, run: int) -> ConditionalPrompts:
        """The head of one run of several."""
        own = {name: getattr(self, name)[run] for name in ("context", "down", "down_bias", "up", "up_bias")}
        tensors = tuple(each if each.ndim == axes else each[run]
                        for each, axes in zip(self.tensors, self._layout["axes"], strict=True))
        return replace(self, **own, tensors=tensors)

    @cached_property
    def _layout(self) -> dict[str, Any]:
        return dict(json.loads(self.layout))

    @cached_property
    def _tower(self) -> TextTower:
        tensors = dict(zip(self._layout["tensors"], self.tensors, strict=True))
        return TextTower.checked(tensors, self._layout["spec"]).of(self._layout["classes"])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self._layout["classes"])

    @property
    def width(self) -> int:
        return self.classes * self._tower.tokens_per_class * 4 * self._tower.width


def conditions(rows: Tensor, dim: int, blocks: int) -> tuple[Tensor, Tensor]:
    """Unit embeddings (n, dim) of rows and what moves their tokens: the same, or the statistics of some blocks.

    rows: (n, dim), or (n, dim + width) with mean and deviation of every block behind the embedding; those of each block
        are scaled to unit length together.
    """
    if not blocks:
        return rows, rows
    return unit(rows[:, :dim]), unit(rows[:, dim:].unflatten(1, (blocks, -1))).flatten(1)


def conditional(context: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor,
                features: Tensor) -> Tensor:
    """The context of every row of features (n, width of f), moved by what the network makes of it: (n, tokens, width).
    """
    moves = (features @ down.T + down_bias).relu() @ up.T + up_bias
    return context + moves.unflatten(1, (-1, context.shape[1]))
