"""What the image towers of open_clip give beside the embedding, in one pass.

Patch tokens of a vision transformer come in two kinds. "last": the last layer's, through its normalisation and the
projection, as the class token is. "value": the last block's attention replaced by its value path (value projection,
output projection, normalisation, projection; no residual, no feed-forward), which is aligned with text and what dense
methods read: Zhou, Loy and Dai, "Extract Free Dense Labels from CLIP" (MaskCLIP), ECCV 2022, arXiv 2112.01071, §3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from onceclip.pipeline.encoders.backend import (
    EMBEDDING,
    LAST,
    PREPROJ,
    STATISTICS,
    TOKEN,
    VALUE,
    refuse,
    statistics_of,
)

Tower = Callable[[Any, Tensor, tuple[str, ...], str, str], dict[str, Tensor]]


def several_outputs(visual: nn.Module, pixels: Tensor, outputs: tuple[str, ...], tokens: str,
                    name: str) -> dict[str, Tensor]:
    """Run an image tower once for several outputs; `name` of the model is for the error.

    Raises EncoderError if the tower cannot give one of them.
    """
    for kind, run in _TOWERS.items():
        if isinstance(visual, kind):
            return run(visual, pixels, outputs, tokens, name)
    raise refuse(name, outputs[-1], f"its image tower is a {type(visual).__name__}")


def projection_of(visual: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Matrix (width, dim) and bias (dim,) of the last linear map of an image tower; None where there is none."""
    if isinstance(visual, VisionTransformer) and visual.proj is not None:
        return visual.proj, None
    linear = None
    if isinstance(visual, ModifiedResNet):
        linear = visual.attnpool.c_proj
    elif isinstance(visual, TimmModel):
        linear = getattr(visual.head, "proj", None)
    return (linear.weight.T, linear.bias) if isinstance(linear, nn.Linear) else (None, None)


def reads_class_token(visual: nn.Module) -> bool:
    """Whether an image tower takes the class token alone from its last block, whose other tokens can be left out."""
    return (isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type == "tok"
            and type(visual.transformer.resblocks[-1]) is ResidualAttentionBlock)


def _vision_transformer(visual: Any, pixels: Tensor, outputs: tuple[str, ...], tokens: str,
                        name: str) -> dict[str, Tensor]:
    if PREPROJ in outputs and visual.proj is None:
        raise refuse(name, PREPROJ, "it has no projection")
    before = visual._embeds(pixels)
    *blocks, final = visual.transformer.resblocks
    statistics = []
    for block in blocks:
        before = block(before)
        if STATISTICS in outputs:
            statistics.append(statistics_of(before))
    if pixels.shape[0] == 1:  # products of one row sum in another order than those of several
        before = before.expand(2, -1, -1)
    alone, last = reads_class_token(visual), before
    if not alone or STATISTICS in outputs or (TOKEN in outputs and tokens == LAST):
        last = final(before)
    pooled, _ = visual._pool(_class_token(final, before) if alone else last)
    given = {EMBEDDING: _projected(pooled, visual.proj), PREPROJ: pooled}
    if STATISTICS in outputs:
        given[STATISTICS] = torch.stack([*statistics, statistics_of(last[:pixels.shape[0]])], dim=1)
    if TOKEN in outputs:
        if visual.attn_pool is not None:
            raise refuse(name, TOKEN, "its patches are pooled by attention")
        if tokens == VALUE:
            if not isinstance(final, ResidualAttentionBlock):
                raise refuse(name, "token value", f"its blocks are {type(final).__name__}")
            last = _value_path(final, before)
        given[TOKEN] = _projected(visual.ln_post(last[:, 1:]), visual.proj)
    return {output: given[output][:pixels.shape[0]] for output in outputs}


def _class_token(block: Any, before: Tensor) -> Tensor:
    """What a block makes of the class token alone: (n, 1, width)."""
    attention, normal, (count, _, width) = block.attn, block.ln_1(before), before.shape
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    # Not the module's own call, which multiplies expanded copies of weights that want no gradient: 10x slower.
    query = functional.linear(normal[:, 0], weight[:width], bias[:width])
    key, value = functional.linear(normal, weight[width:], bias[width:]).chunk(2, dim=-1)
    query, key, value = (each.reshape(count, -1, attention.num_heads, width // attention.num_heads).transpose(1, 2)
                         for each in (query, key, value))
    attended = functional.scaled_dot_product_attention(query, key, value).reshape(count, width)
    token = before[:, 0] + block.ls_1(attention.out_proj(attended))
    return (token + block.ls_2(block.mlp(block.ln_2(token))))[:, None]


def _value_path(block: Any, before: Tensor) -> Tensor:
    """The attention of a block if every token attended to itself alone."""
    attention = block.attn
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    width = weight.shape[1]
    value = functional.linear(block.ln_1(before), weight[-width:], None if bias is None else bias[-width:])
    return block.ls_1(attention.out_proj(value))


def _residual_network(visual: Any, pixels: Tensor, outputs: tuple[str, ...], tokens: str,
                      name: str) -> dict[str, Tensor]:
    if STATISTICS in outputs:
        raise refuse(name, STATISTICS, "a residual network has no blocks of one width")
    if TOKEN in outputs and tokens == LAST:
        raise refuse(name, "token last", "a residual network has no patch tokens; --tokens value gives its grid's")
    grid = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels)))))
    pool = visual.attnpool
    given = {EMBEDDING: pool(grid)}
    if PREPROJ in outputs:
        given[PREPROJ] = _before_projection(pool, grid)
    if TOKEN in outputs:
        given[TOKEN] = pool.c_proj(pool.v_proj(grid.flatten(2).transpose(1, 2)))
    return given


def _before_projection(pool: Any, grid: Tensor) -> Tensor:
    """Attention pooling with the identity in place of its output projection."""
    cells = grid.flatten(2).permute(2, 0, 1)
    cells = torch.cat([cells.mean(dim=0, keepdim=True), cells])
    cells = cells + pool.positional_embedding[:, None, :].to(cells.dtype)
    width = cells.shape[-1]
    identity = torch.eye(width, dtype=cells.dtype, device=cells.device)
    pooled, _ = functional.multi_head_attention_forward(
        cells[:1], cells, cells, width, pool.num_heads, None,
        torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]), None, None, False, 0.0, identity, None,
        training=False, need_weights=False, use_separate_proj_weight=True, q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight)
    return pooled[0]


def _timm(visual: Any, pixels: Tensor, outputs: tuple[str, ...], tokens: str, name: str) -> dict[str, Tensor]:
    if further := next((each for each in (TOKEN, STATISTICS) if each in outputs), ""):
        raise refuse(name, further, "its image tower is a model of timm")
    if projection_of(visual)[0] is None:
        raise refuse(name, PREPROJ, "it has no projection")
    pooled = visual.trunk(pixels)
    return {EMBEDDING: visual.head(pooled), PREPROJ: pooled}


def _projected(features: Tensor, matrix: Tensor | None) -> Tensor:
    return features if matrix is None else features @ matrix


_TOWERS: dict[type[nn.Module], Tower] = {VisionTransformer: _vision_transformer, ModifiedResNet: _residual_network,
                                         TimmModel: _timm}
