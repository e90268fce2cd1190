"""The blocks of a text transformer as functions of a dict of tensors; gradients reach the tokens alone.

Tensors of all blocks are stacked: each has a leading axis of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda values: functional.gelu(values, approximate="tanh"),
    "quick_gelu": lambda values: values * torch.sigmoid(1.702 * values),
}
Past = Sequence[tuple[Tensor, Tensor]]  # keys and values (n, heads, tokens, head width) of every layer


class Transformer:
    """Pre-norm residual attention blocks, as CLIP and SigLIP have them.

    tensors: by name with a leading axis of layers. heads: per block. activation: of ACTIVATIONS. epsilon: of the norms.
    causal: whether a token sees those before it alone.
    """

    def __init__(self, tensors: Mapping[str, Tensor], heads: int, activation: str, epsilon: float,
                 causal: bool) -> None:
        self.tensors, self.heads, self.epsilon, self.causal = tensors, heads, epsilon, causal
        self.activation = ACTIVATIONS[activation]
        self.layers = len(tensors["qkv.weight"])

    def keys(self, tokens: Tensor) -> Past:
        """Keys and values of every layer of a causal prefix (n, tokens, width), for tokens that follow it."""
        past = []
        for layer in range(self.layers):
            query, key, value = self._query_key_value(layer, tokens)
            past.append((key, value))
            if layer + 1 < self.layers:
                tokens = self._rest(layer, tokens, functional.scaled_dot_product_attention(
                    query, key, value, is_causal=self.causal))
        return past

    def __call__(self, tokens: Tensor, place: Tensor, past: Past = ()) -> Tensor:
        """The last states (n, width) at one place (n,) of every sequence (n, tokens, width).

        past: of prefixes (m, ...) where n is a multiple of m: the n / m sequences of a prefix follow each other.
        """
        count, length, _ = tokens.shape
        rows = torch.arange(count, device=tokens.device)
        mask = self._mask(length, past, tokens.device)
        for layer in range(self.layers):
            query, key, value = self._query_key_value(layer, tokens)
            if past:
                before = [each.repeat_interleave(count // len(each), dim=0) for each in past[layer]]
                key, value = (torch.cat(pair, dim=2) for pair in zip(before, (key, value), strict=True))
            if layer + 1 < self.layers:
                tokens = self._rest(layer, tokens, functional.scaled_dot_product_attention(query, key, value, mask))
        # Of the last layer one place is read: what the others would become is not computed.
        seen = None if mask is None else mask[place].view(count, 1, 1, -1)
        mixed = functional.scaled_dot_product_attention(query[rows, :, place].unsqueeze(2), key, value, seen)
        return self._rest(self.layers - 1, tokens[rows, place].unsqueeze(1), mixed).squeeze(1)

    def _mask(self, length: int, past: Past, device: torch.device) -> Tensor | None:
        """Which tokens each of a sequence may see, those of the prefix first: (length, prefix + length)."""
        if not self.causal:
            return None
        prefix = past[0][0].shape[2] if past else 0
        return torch.ones(length, prefix + length, dtype=torch.bool, device=device).tril(prefix)

    def _query_key_value(self, layer: int, tokens: Tensor) -> Sequence[Tensor]:
        """Each (n, heads, tokens, head width)."""
        count, length, width = tokens.shape
        normal = self._norm("norm_1", layer, tokens)
        packed = self._linear("qkv", layer, normal).view(count, length, 3, self.heads, width // self.heads)
        return packed.permute(2, 0, 3, 1, 4).unbind()

    def _rest(self, layer: int, tokens: Tensor, mixed: Tensor) -> Tensor:
        """What a block makes of its input, given what its heads gave."""
        tokens = tokens + self._linear("out", layer, mixed.transpose(1, 2).flatten(2))
        hidden = self.activation(self._linear("up", layer, self._norm("norm_2", layer, tokens)))
        return tokens + self._linear("down", layer, hidden)

    def _linear(self, name: str, layer: int, values: Tensor) -> Tensor:
        return functional.linear(values, self.tensors[f"{name}.weight"][layer], self.tensors[f"{name}.bias"][layer])

    def _norm(self, name: str, layer: int, values: Tensor) -> Tensor:
        return functional.layer_norm(values, values.shape[-1:], self.tensors[f"{name}.weight"][layer],
                                     self.tensors[f"{name}.bias"][layer], self.epsilon)
