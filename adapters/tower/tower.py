"""The text tower: class vectors of prompts whose context is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from onceclip.adapters.errors import MethodError
from onceclip.adapters.ops import mover, unit
from onceclip.adapters.tower.layout import Layout, lay_out
from onceclip.adapters.tower.transformer import ACTIVATIONS, Past, Transformer

POOLINGS = ("end", "first", "last")
ACTIVATION_BYTES = 2**30  # that a step keeps for its backward pass; where it would be more, they are computed again
_PER_TOKEN = 18  # widths of activations that a block keeps of every token


@dataclass(frozen=True, eq=False)
class TextTower:
    """A frozen text model, and the tokens of class names.

    tensors: `tokens` (rows, width) and `token_ids` (rows,), the rows of its table that are kept; `positions` (context,
        width); those of the blocks, see `Transformer`; `norm.weight`, `norm.bias` (width,); `projection.weight` (width,
        dim) and `projection.bias` (dim,), where it has them.
    spec: JSON values: `heads`, `activation`, `epsilon` (of the blocks' norms), `final_epsilon`, `causal`, `pool`
        ("end", "first" or "last"); token ids of `start`, `end` and `fill`; `names`, the token ids of each class name
        with what ends a sentence, of which `stems` are the name's own; `phrases`, those of some words.
    classes: whose prompts are encoded, among the names.
    """

    tensors: Mapping[str, Tensor]
    spec: Mapping[str, Any]
    classes: tuple[str, ...] = ()
    _layouts: dict[tuple[int, str], Layout] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def checked(cls, tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> TextTower:
        """A tower of what a file says.

        Raises ValueError, KeyError or TypeError unless tensors and spec fit each other.
        """
        _require_sound(tensors, spec)
        return cls(dict(tensors), dict(spec))

    @property
    def width(self) -> int:
        """Width of a token."""
        return self.tensors["tokens"].shape[1]

    @property
    def dim(self) -> int:
        """Width of a class vector."""
        projection = self.tensors.get("projection.weight")
        return self.width if projection is None else projection.shape[1]

    @property
    def like(self) -> Tensor:
        """A tensor of its type, on its device."""
        return self.tensors["positions"]

    @property
    def work(self) -> int:
        """Multiply-adds of the prompt of one class, about."""
        tokens = max(map(len, self.spec["names"].values()), default=0) + 2 if self._causal_end else len(self.like)
        return tokens * sum(self.tensors[f"{name}.weight"].numel() for name in ("qkv", "out", "up", "down"))

    @property
    def tokens_per_class(self) -> int:
        """Tokens that every class has of its own: its name and what ends the prompt, or all positions."""
        longest = max((len(self.spec["names"][name]) for name in self.classes), default=0)
        return longest + len(self.spec["end"]) if self._causal_end else len(self.like)

    def of(self, classes: Sequence[str]) -> TextTower:
        """The tower of other classes.

        Raises MethodError if it does not know the tokens of one.
        """
        missing = [name for name in classes if name not in self.spec["names"]]
        if missing:
            raise MethodError(f"the text tower has no tokens for the class {missing[0]!r}"
                              f"{f' and {len(missing) - 1} more' if missing[1:] else ''}: run `onceclip text STORE "
                              "--tower` once more")
        return replace(self, classes=tuple(classes), _layouts={})

    @cached_property
    def trimmed(self) -> TextTower:
        """The tower with the tokens of its classes alone."""
        names, stems = ({name: self.spec[each][name] for name in self.classes} for each in ("names", "stems"))
        spec = {**self.spec, "names": names, "stems": stems, "phrases": {}}
        ids = sorted({spec["fill"], *spec["start"], *spec["end"], *(each for tail in names.values() for each in tail)})
        rows = [self._rows[each] for each in ids]
        tensors = {**self.tensors, "tokens": self.tensors["tokens"][rows],
                   "token_ids": self.tensors["token_ids"][rows]}
        return replace(self, tensors=tensors, spec=spec, _layouts={})

    def to(self, where: torch.device | torch.dtype | str) -> TextTower:
        """Copy with all floating tensors on another device or in another precision."""
        move = mover(where)
        return replace(self, tensors={name: move(value) for name, value in self.tensors.items()}, _layouts={})

    def phrase(self, words: str) -> Tensor:
        """Tokens (n, width) of some words, as the encoder embeds them.

        Raises MethodError if the tower does not have the rows of one.
        """
        phrases = self.spec["phrases"]
        parts = [words] if words in phrases else words.split()
        missing = [part for part in parts if part not in phrases]
        if missing:
            raise MethodError(f"the text tower has no tokens for the word {missing[0]!r}: run `onceclip text STORE "
                              f"--tower --words \"{words}\"`")
        ids = [each for part in parts for each in phrases[part]]
        return self.tensors["tokens"][[self._rows[each] for each in ids]]

    def encode(self, context: Tensor, position: str = "front") -> Tensor:
        """Unit class vectors (classes, dim) of prompts with a learned context; differentiable in it.

        context: (tokens, width) for all classes, or (classes, tokens, width). position: where it stands: "front" of
            the class name, around it ("middle", half and half), or behind it ("end").
        Raises MethodError if a prompt is longer than the tower's positions.
        Source: CoOp (Zhou et al., IJCV 2022), section 3.2.
        """
        return unit(self.raw(context.unsqueeze(0) if context.ndim == 3 else context[None, None], position)[0])

    def encode_several(self, contexts: Tensor, position: str = "front") -> Tensor:
        """Unit class vectors (n, classes, dim) of several contexts (n, tokens, width), each for all classes."""
        return unit(self.raw(contexts.unsqueeze(1), position))

    def raw(self, contexts: Tensor, position: str) -> Tensor:
        """Class vectors (n, classes, dim) of any length. contexts: (n, classes or 1, tokens, width).

        What follows the end of the longest prompt is not computed, and what all classes begin with is computed once,
        where a causal model makes both exact.
        """
        count, own, length, _ = contexts.shape
        if not count:
            return contexts.new_zeros(0, len(self.classes), self.dim)
        layout = self._layout(length, position)
        shared = layout.shared if own == 1 else 0
        kept, most = torch.is_grad_enabled() and contexts.requires_grad, self._prompts(layout, shared)
        if count > most:
            return torch.cat([checkpoint(self.raw, part, position, use_reentrant=False) if kept else
                              self.raw(part, position) for part in contexts.split(most)])
        past: Past = ()
        if shared:
            start = self.tensors["tokens"][layout.index[0, :len(self.spec["start"])]].expand(count, -1, -1)
            learned = contexts[:, 0, :shared - start.shape[1]]
            past = self._transformer.keys(torch.cat([start, learned], dim=1) + self.tensors["positions"][:shared])
        vectors, order = [], np.argsort(layout.place, kind="stable")
        size = most // count
        again = kept and size < len(order)
        for chosen in (order[start:start + size] for start in range(0, len(order), size)):
            given = contexts if own == 1 else contexts[:, chosen]
            arguments = given, layout.of(chosen, self._causal_end), shared, past
            vectors.append(checkpoint(self._vectors, *arguments, use_reentrant=False) if again else
                           self._vectors(*arguments))
        back = torch.from_numpy(np.argsort(order)).to(contexts.device)
        return torch.cat(vectors, dim=1).index_select(1, back)

    def encode_tokens(self, ids: Tensor) -> Tensor:
        """Embeddings (n, dim), raw, of plain prompts: token ids (n, context) as the encoder's tokenizer gives them.

        Raises MethodError for a token whose row is not kept.
        """
        if missing := {*ids.flatten().tolist()} - {*self._rows}:
            raise MethodError(f"the text tower does not keep the token {min(missing)}: run `onceclip text STORE "
                              "--tower --words` with the words that it belongs to")
        rows = np.vectorize(self._rows.__getitem__, otypes=[np.int64])(ids.cpu().numpy())
        tokens = self.tensors["tokens"][torch.from_numpy(rows).to(self.like.device)]
        if self.spec["pool"] == "end":
            place = (ids == self.spec["end"][-1]).int().argmax(dim=1)
        else:
            place = torch.full((len(ids),), 0 if self.spec["pool"] == "first" else ids.shape[1] - 1)
        states = self._transformer(tokens + self.tensors["positions"][:ids.shape[1]], place.to(tokens.device))
        return self._projected(states)

    def _vectors(self, contexts: Tensor, layout: Layout, shared: int, past: Past) -> Tensor:
        """Class vectors (n, classes, dim) of a block of classes."""
        count, device = len(contexts), contexts.device
        index = torch.from_numpy(layout.index[:, shared:]).to(device)
        classes, length = index.shape
        tokens = self.tensors["tokens"][index.clamp_min(0)].expand(count, -1, -1, -1)
        if (layout.index[:, shared:] < 0).any():
            place = (-1 - index).clamp_min(0)[None, :, :, None]
            learned = torch.take_along_dim(contexts.expand(-1, classes, -1, -1), place, dim=2)
            tokens = torch.where((index < 0).unsqueeze(-1), learned, tokens)
        tokens = tokens + self.tensors["positions"][shared:shared + length]
        place = torch.from_numpy(layout.place - shared).to(device).repeat(count)
        return self._projected(self._transformer(tokens.flatten(0, 1), place, past)).view(count, classes, -1)

    def _projected(self, states: Tensor) -> Tensor:
        states = torch.nn.functional.layer_norm(states, states.shape[-1:], self.tensors["norm.weight"],
                                                self.tensors["norm.bias"], self.spec["final_epsilon"])
        if "projection.weight" in self.tensors:
            states = states @ self.tensors["projection.weight"]
        return states + self.tensors["projection.bias"] if "projection.bias" in self.tensors else states

    def _layout(self, length: int, position: str) -> Layout:
        if not self.classes:
            raise MethodError("the text tower was given no classes: choose them by `of`")
        if (length, position) not in self._layouts:
            self._layouts[length, position] = lay_out(self.spec, self.classes, length, position, len(self.like),
                                                      self._rows)
        return self._layouts[length, position]

    def _prompts(self, layout: Layout, shared: int) -> int:
        """Number of prompts, of one context and one class each, whose activations fit into ACTIVATION_BYTES."""
        tokens = int(layout.place.max()) + 1 if self._causal_end else layout.index.shape[1]
        # Of a token of the prefix, every class has a copy of its keys and values.
        widths = (tokens - shared) * _PER_TOKEN + shared * 2
        each = widths * self._transformer.layers * self.width * self.like.element_size()
        return max(1, ACTIVATION_BYTES // each)

    @property
    def _causal_end(self) -> bool:
        return bool(self.spec["causal"]) and self.spec["pool"] == "end"

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {each: row for row, each in enumerate(self.tensors["token_ids"].tolist())}

    @cached_property
    def _transformer(self) -> Transformer:
        return Transformer(self.tensors, self.spec["heads"], self.spec["activation"], self.spec["epsilon"],
                           self.spec["causal"])


def _require_sound(tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError unless a tower can be computed with; files say what they like."""
    rows, width = tensors["tokens"].shape
    (layers, hidden, _), positions = tensors["up.weight"].shape, len(tensors["positions"])
    dim = tensors["projection.weight"].shape[1] if "projection.weight" in tensors else width
    shapes = {
        "tokens": (rows, width), "token_ids": (rows,), "positions": (positions, width),
        "qkv.weight": (layers, 3 * width, width), "qkv.bias": (layers, 3 * width),
        "out.weight": (layers, width, width), "out.bias": (layers, width),
        "up.weight": (layers, hidden, width), "up.bias": (layers, hidden),
        "down.weight": (layers, width, hidden), "down.bias": (layers, width),
        **{f"{name}.{part}": (layers, width) for name in ("norm_1", "norm_2") for part in ("weight", "bias")},
        "norm.weight": (width,), "norm.bias": (width,), "projection.weight": (width, dim), "projection.bias": (dim,),
    }
    for name, value in tensors.items():
        if tuple(value.shape) != shapes[name]:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, not {shapes[name]}")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{name} holds NaN or infinity")
    if missing := sorted({*shapes} - {*tensors, "projection.weight", "projection.bias"}):
        raise ValueError(f"it has no {missing[0]}")
    if not layers or width % spec["heads"] or spec["activation"] not in ACTIVATIONS or spec["pool"] not in POOLINGS:
        raise ValueError(f"{layers} blocks of width {width} cannot have {spec['heads']} heads, the activation "
                         f"{spec['activation']!r} and the pooling {spec['pool']!r}")
    if not (0 < spec["epsilon"] < 1 and 0 < spec["final_epsilon"] < 1 and isinstance(spec["causal"], bool)):
        raise ValueError("its epsilons or its mask are out of range")
    known = {*tensors["token_ids"].tolist()}
    ids = [spec["start"], spec["end"], [spec["fill"]], *spec["names"].values(), *spec["phrases"].values()]
    if any(each not in known for several in ids for each in several) or (spec["pool"] == "end" and not spec["end"]):
        raise ValueError("its token ids are not those of its rows")
    if any(not 0 <= spec["stems"][name] <= len(tail) for name, tail in spec["names"].items()):
        raise ValueError("its class names are longer than their tokens")
