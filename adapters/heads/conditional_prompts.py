"""A head whose class vectors are encoded anew for every image, by the text tower that it holds."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from onceclip.adapters.heads.base import Head
from onceclip.adapters.ops import unit
from onceclip.adapters.tower import TextTower


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
