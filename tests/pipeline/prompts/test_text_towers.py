"""Text models of every kind that can be written down, tiny and with random weights, beside what they give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn

from onceclip.adapters import TextTower
from onceclip.pipeline.errors import EncoderError
from onceclip.pipeline.prompts.tower import written_tower

VISION = {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1}
TEXT = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 2, "eos_id": 19}
IDS = torch.tensor([[1, 4, 5, 6, 19, 0, 0, 0], [1, 7, 19, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 19]])


def stirred(model: nn.Module) -> nn.Module:
    """Weights that are no zeros and ones, so that none can be mistaken for another."""
    torch.manual_seed(0)
    for value in model.parameters():
        value.data += 0.2 * torch.randn_like(value)
    return model.double().eval()


def tower_of(model: nn.Module, end: int = 19) -> TextTower:
    tensors, spec = written_tower(model, "the model")
    rows = torch.arange(len(tensors["tokens"]))
    tensors = {name: value.double() for name, value in tensors.items()} | {"token_ids": rows}
    return TextTower.checked(tensors, {**spec, "start": [1], "end": [end], "fill": 0, "names": {}, "stems": {},
                                       "phrases": {}})


def agree(model: Any, found: torch.Tensor, ids: torch.Tensor) -> None:
    """To what float32, in which towers are written, leaves of weights in float64."""
    with torch.no_grad():
        theirs = model.encode_text(ids)
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("quick", [False, True])
def test_clip_of_openai(quick: bool) -> None:
    model = stirred(CLIP(12, VISION, TEXT, quick_gelu=quick))
    agree(model, tower_of(model).encode_tokens(IDS), IDS)


@pytest.mark.parametrize("text", [
    {"pool_type": "argmax"}, {"pool_type": "eos"}, {"pool_type": "last"}, {"pool_type": "first"},
    {"pool_type": "last", "no_causal_mask": True, "proj_bias": True}, {"pool_type": "first", "no_causal_mask": True},
    {"ls_init_value": 0.5}, {"act_kwargs": {"approximate": "tanh"}}, {"norm_kwargs": {"eps": 1e-2}},
    {"mlp_ratio": 2.0, "proj_type": "none"}], ids=str)
def test_text_transformers_of_open_clip(text: dict[str, Any]) -> None:
    dim = 16 if text.get("proj_type") == "none" else 12
    model = stirred(CustomTextCLIP(dim, VISION, {**TEXT, **text}))
    tower = tower_of(model)
    agree(model, tower.encode_tokens(IDS), IDS)
    assert tower.spec["causal"] != text.get("no_causal_mask", False)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "gelu_pytorch_tanh"])
def test_clip_and_siglip_of_transformers(kind: str, activation: str) -> None:
    transformers = pytest.importorskip("transformers")
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 19, "pad_token_id": 0,
            "hidden_act": activation, "layer_norm_eps": 1e-3}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}
    if kind == "clip":
        model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision,
                                                               projection_dim=12))
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config={**text, "projection_size": 16},
                                                                   vision_config=vision))
    model = stirred(model)
    found = tower_of(model).encode_tokens(IDS)
    with torch.no_grad():
        pooled = model.text_model(input_ids=IDS).pooler_output
        theirs = model.text_projection(pooled) if kind == "clip" else pooled
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize(("text", "reason"), [
    ({"embed_cls": True}, "it appends a class token"), ({"pool_type": "none"}, "it pools its tokens by 'none'"),
    ({"qk_norm": True}, "its blocks are CustomResidualAttentionBlock")])
def test_what_cannot_be_written_down_is_one_line(text: dict[str, Any], reason: str) -> None:
    with pytest.raises(EncoderError, match=f"the text tower of the model cannot be written down .{reason}") as caught:
        written_tower(CustomTextCLIP(12, VISION, {**TEXT, **text}), "the model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [None, nn.Linear(2, 2)])
def test_a_model_of_another_kind_is_one_line(model: nn.Module | None) -> None:
    with pytest.raises(EncoderError, match="its text model is a "):
        written_tower(model, "the model")
