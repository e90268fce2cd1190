"""The text model of an encoder written down as plain tensors, in the one form that `adapters.tower` computes with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, TextTransformer
from torch import Tensor, nn

from onceclip.pipeline.errors import EncoderError

Written = tuple[dict[str, Tensor], dict[str, Any]]  # tensors by name, and what the tower's spec says of them
_POOLINGS = {"argmax": "end", "eos": "end", "first": "first", "last": "last"}
_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}


def written_tower(model: nn.Module | None, name: str) -> Written:
    """Tensors and spec of a model's text tower; `tokens` is its whole table.

    model: of an encoder called `name`. Raises EncoderError if its text model has parts that there is no place for.
    """
    text = getattr(model, "text", None)
    if isinstance(model, CLIP):
        return _open_clip(model, model.text_pool_type, name)
    if isinstance(text, TextTransformer):
        if text.cls_emb is not None or text.use_pad_mask:
            raise _refusal(name, "it appends a class token to its sentences" if text.cls_emb is not None else
                           "it masks what fills its sentences")
        return _open_clip(text, text.pool_type, name)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind in ("clip", "siglip"):
        return _transformers(model, kind)
    raise _refusal(name, f"its text model is a {type(text if isinstance(text, nn.Module) else model).__name__}")


def _refusal(name: str, reason: str) -> EncoderError:
    return EncoderError(f"the text tower of {name} cannot be written down ({reason}): prompts are learned with the "
                        "text towers of open_clip's own CLIP models and with CLIP and SigLIP of transformers")


def _open_clip(text: Any, pooling: str, name: str) -> Written:
    blocks = list(text.transformer.resblocks)
    if not all(type(block) is ResidualAttentionBlock for block in blocks):
        raise _refusal(name, f"its blocks are {type(blocks[0]).__name__}")
    if pooling not in _POOLINGS:
        raise _refusal(name, f"it pools its tokens by {pooling!r}")
    projection = text.text_projection
    linear = isinstance(projection, nn.Linear)
    tensors = {
        "tokens": text.token_embedding.weight, "positions": text.positional_embedding,
        "norm.weight": text.ln_final.weight, "norm.bias": text.ln_final.bias,
        "projection.weight": projection.weight.T if linear else projection,
        "projection.bias": projection.bias if linear else None,
        "qkv.weight": [block.attn.in_proj_weight for block in blocks],
        "qkv.bias": [block.attn.in_proj_bias for block in blocks],
        **_norms([block.ln_1 for block in blocks], [block.ln_2 for block in blocks]),
        **_linear("out", [block.attn.out_proj for block in blocks], [block.ls_1 for block in blocks]),
        **_linear("up", [block.mlp.c_fc for block in blocks]),
        **_linear("down", [block.mlp.c_proj for block in blocks], [block.ls_2 for block in blocks]),
    }
    activation = blocks[0].mlp.gelu
    kind = ("quick_gelu" if isinstance(activation, QuickGELU) else
            None if not isinstance(activation, nn.GELU) else
            "gelu_tanh" if activation.approximate == "tanh" else "gelu")
    if kind is None:
        raise _refusal(name, f"its activation is {type(activation).__name__}")
    return _stacked(tensors), {
        "heads": blocks[0].attn.num_heads, "activation": kind, "epsilon": blocks[0].ln_1.eps,
        "final_epsilon": text.ln_final.eps, "causal": text.attn_mask is not None, "pool": _POOLINGS[pooling]}


def _transformers(model: Any, kind: str) -> Written:
    text = model.text_model
    text, config = getattr(text, "text_model", text), model.config.text_config  # older versions have one more level
    layers = list(text.encoder.layers)
    if config.hidden_act not in _ACTIVATIONS:
        raise _refusal(kind, f"its activation is {config.hidden_act}")
    attention = [layer.self_attn for layer in layers]
    parts = [[each.q_proj, each.k_proj, each.v_proj] for each in attention]
    last = model.text_projection if kind == "clip" else text.head
    tensors = {
        "tokens": text.embeddings.token_embedding.weight, "positions": text.embeddings.position_embedding.weight,
        "norm.weight": text.final_layer_norm.weight, "norm.bias": text.final_layer_norm.bias,
        "projection.weight": last.weight.T, "projection.bias": last.bias,
        "qkv.weight": [torch.cat([part.weight for part in each]) for each in parts],
        "qkv.bias": [torch.cat([part.bias for part in each]) for each in parts],
        **_norms([layer.layer_norm1 for layer in layers], [layer.layer_norm2 for layer in layers]),
        **_linear("out", [each.out_proj for each in attention]),
        **_linear("up", [layer.mlp.fc1 for layer in layers]), **_linear("down", [layer.mlp.fc2 for layer in layers])}
    return _stacked(tensors), {
        "heads": config.num_attention_heads, "activation": _ACTIVATIONS[config.hidden_act],
        "epsilon": config.layer_norm_eps, "final_epsilon": config.layer_norm_eps, "causal": kind == "clip",
        "pool": "end" if kind == "clip" else "last"}


def _norms(first: Sequence[Any], second: Sequence[Any]) -> dict[str, Sequence[Tensor]]:
    return {f"{name}.{part}": [getattr(norm, part) for norm in norms]
            for name, norms in (("norm_1", first), ("norm_2", second)) for part in ("weight", "bias")}


def _linear(name: str, layers: Sequence[Any], scales: Sequence[Any] = ()) -> dict[str, Sequence[Tensor]]:
    """Weights and biases of a map of every block, with what scales its outputs multiplied in."""
    factors = [getattr(scale, "gamma", None) for scale in scales] or [None] * len(layers)
    pairs = [(layer.weight, layer.bias) if factor is None else
             (layer.weight * factor.unsqueeze(1), layer.bias * factor)
             for layer, factor in zip(layers, factors, strict=True)]
    return {f"{name}.weight": [weight for weight, _ in pairs], f"{name}.bias": [bias for _, bias in pairs]}


def _stacked(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """One float32 tensor of each name, those of blocks with a leading axis of layers, on the CPU."""
    return {name: (torch.stack([*values]) if isinstance(values, list) else values).detach().float().cpu().contiguous()
            for name, values in tensors.items() if values is not None}
