"""The text tower of a store: weights of the encoder's text model, and the tokens of what prompts are made of.

The weights are plain tensors in the one form that `adapters.tower` computes with.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from open_clip.model import CLIP
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, TextTransformer
from torch import Tensor, nn

from onceclip.adapters.tower import TextTower
from onceclip.pipeline.errors import EncoderError, PromptError
from onceclip.pipeline.prompts.embedding import phrases_of
from onceclip.pipeline.prompts.prompts import DEFAULT_TEMPLATES
from onceclip.stores import Store, StoredTower, StoreWriter, open_store, write_lock

if TYPE_CHECKING:
    from onceclip.pipeline.encoders import Encoder

_TRIED = 8  # sentences that encoder and tower both embed
_APART = {"fp32": 1e-4}  # of an embedding's length; more where the encoder computes in half precision
_HALF = 0.03
_POOLINGS = {"argmax": "end", "eos": "end", "first": "first", "last": "last"}
_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}

Written = tuple[dict[str, Tensor], dict[str, Any]]  # tensors by name, and what the tower's spec says of them


def add_tower(path: str, encoder: Encoder, words: Sequence[str] = ()) -> dict[str, Any]:
    """Write the text tower of a store's encoder into the store, unless it is there already.

    words: phrases that prompts may begin with, beside those of the store's templates.
    Gives what was done, as JSON values.
    Raises EncoderError if the tower cannot be written down, PromptError for words or names that it cannot hold,
    StoreMismatch for another encoder.
    """
    begun = time.perf_counter()
    with write_lock(path):
        writer = StoreWriter.open(path, open_store(path).encoder)
        store = writer.store
        if not store.encoder.get("imported"):
            store.require_encoder(encoder.info["fingerprint"], f"the text tower ({encoder.info['name']})")
        if encoder.dim != store.dim:
            raise PromptError(f"{path} has {store.dim} dimensions, {encoder.info['name']} gives {encoder.dim}: name "
                              "the encoder that made the images")
        present = store.tower().spec["phrases"] if store.tower_attributes else {}
        tower = make_tower(store, encoder, [*present, *words])
        written = store.tower_attributes.get("fingerprint") != tower.fingerprint
        if written:
            writer.put_tower(tower)
    size = sum(array.nbytes for array in tower.arrays.values())
    return {"store": path, "fingerprint": tower.fingerprint, "written": written, "bytes": size,
            "classes": len(tower.spec["names"]), "tokens": len(tower.arrays["tokens"]),
            "phrases": list(tower.spec["phrases"]), "seconds": time.perf_counter() - begun}


def make_tower(store: Store, encoder: Encoder, words: Sequence[str] = ()) -> StoredTower:
    """The text tower of a store's encoder; arguments and failures as of `add_tower`."""
    if not encoder.has_text:
        raise EncoderError(f"{encoder.info['name']} embeds images only: it has no text tower")
    tensors, spec = written_tower(encoder.model, encoder.info["name"])
    tokens = Tokens.of(encoder, spec["pool"])
    names = _spoken(store)
    tails = {name: tokens.inner(f"{phrase}.") for name, phrase in names.items()}
    stems = {name: tokens.inner(phrase) for name, phrase in names.items()}
    phrases = {each: tokens.inner(each) for each in dict.fromkeys(_phrases(store, words)) if tokens.inner(each)}
    spec |= {"start": tokens.start, "end": tokens.end, "fill": tokens.fill, "names": tails, "phrases": phrases,
             "stems": {name: len(stem) if tails[name][:len(stem)] == stem else len(tails[name])
                       for name, stem in stems.items()}}
    kept = sorted({*tokens.start, *tokens.end, tokens.fill, *(each for ids in (*tails.values(), *phrases.values())
                                                             for each in ids)})
    tensors |= {"tokens": tensors["tokens"][kept], "token_ids": torch.tensor(kept)}
    tower = TextTower.checked(tensors, spec)
    _try(tower, tokens, encoder, names)
    arrays = {name: _narrowest(value.numpy()) for name, value in tensors.items()}
    return StoredTower(arrays, spec, store.encoder["fingerprint"])


@dataclass(frozen=True)
class Tokens:
    """How an encoder's tokenizer puts a sentence together: the ids that begin and end it, and what fills it up."""

    encoder: Encoder
    start: list[int]
    end: list[int]
    fill: int

    @classmethod
    def of(cls, encoder: Encoder, pool: str) -> Tokens:
        """Found out from two sentences of one word."""
        if encoder.tokenizer is None:
            raise EncoderError(f"{encoder.info['name']} takes sentences, not tokens: its text tower cannot be written "
                               "down")
        one, other = (row.tolist() for row in encoder.tokenizer(["a", "of"]))
        place = next((number for number, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), 0)
        fill, rest = one[-1], one[place + 1:]
        end = rest[:1]
        if pool != "end":
            while rest and rest[-1] == fill:
                rest.pop()
            end = rest
        return cls(encoder, one[:place], end, fill)

    def inner(self, sentence: str) -> list[int]:
        """The ids of a sentence without those that begin, end and fill it."""
        row = self.ids([sentence])[0].tolist()[len(self.start):]
        if self.end and self.end[0] in row:
            return row[:row.index(self.end[0])]
        while row and row[-1] == self.fill:
            row.pop()
        return row

    def ids(self, sentences: Sequence[str]) -> Tensor:
        """Token ids (sentences, context)."""
        assert self.encoder.tokenizer is not None
        return self.encoder.tokenizer(list(sentences))


def _spoken(store: Store) -> dict[str, str]:
    """What prompts call each class of the store and of its text sets."""
    classes = [*store.classes, *(name for each in store.texts for name in store.text(each).classes)]
    return phrases_of(store, list(dict.fromkeys(classes)))


def _phrases(store: Store, words: Sequence[str]) -> list[str]:
    """What prompts may begin with: what stands before the name in templates, and every word of it."""
    templates = [each for name in store.texts for each in store.text(name).source.get("templates", ())]
    fronts = [template.partition("{}")[0].strip() for template in (*DEFAULT_TEMPLATES, *templates)]
    whole = [each for each in (*fronts, *words) if each.strip()]
    return [*whole, *(word for each in whole for word in each.split())]


def _try(tower: TextTower, tokens: Tokens, encoder: Encoder, names: Mapping[str, str]) -> None:
    """Raise an error unless prompts are put together as the tokenizer does, and embedded as the encoder does."""
    front = DEFAULT_TEMPLATES[0].partition("{}")[0].strip()
    begun = [*tower.spec["start"], *tower.spec["phrases"][front]]
    for name, phrase in names.items():
        put = [*begun, *tower.spec["names"][name], *tower.spec["end"]]
        row = tokens.ids([f"{front} {phrase}."])[0].tolist()
        if len(put) > len(row):
            raise PromptError(f"\"{front} {phrase}.\" is longer than the {len(row)} tokens that "
                              f"{encoder.info['name']} reads: give the class {name!r} a shorter name with "
                              "--class-names of `onceclip extract`")
        if row[:len(put)] != put:
            raise EncoderError(f"the tokenizer of {encoder.info['name']} does not put \"{front} {phrase}.\" together "
                               "of its parts: its text tower cannot be written down")
    ids = tokens.ids([f"{front} {phrase}." for phrase in list(names.values())[:_TRIED]])
    with torch.no_grad():
        own, theirs = tower.encode_tokens(ids).numpy(), encoder.encode_tokens(ids)
    apart = np.linalg.norm(own - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    if not (apart <= _APART.get(str(encoder.info.get("precision")), _HALF)).all():
        raise EncoderError(f"the text tower of {encoder.info['name']} cannot be written down (what its weights give "
                           f"differs from its own embeddings by {apart.max():.2g} of their length)")


def _narrowest(array: np.ndarray) -> np.ndarray:
    """The array in float16 where that loses nothing, as of weights that were published so."""
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float16)
    return narrow if np.array_equal(narrow.astype(array.dtype), array) else array


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
