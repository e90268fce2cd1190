"""Relatives of CLIP in the format of transformers: tiny, with weights of no meaning, against the library's own way."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onceclip.pipeline.encoders import EncoderSpec, open_encoder
from onceclip.pipeline.encoders.sentences import encode_sentences
from onceclip.pipeline.errors import EncoderError
from onceclip.stores import open_store

transformers = pytest.importorskip("transformers")

WORDS = ("<pad>", "<unk>", "<start>", "<end>", "a", "photo", "of", "disc", "ring", "bar", "cross", ".")
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SMALL, "image_size": 32, "patch_size": 8}
TEXT = {**SMALL, "vocab_size": 12, "max_position_embeddings": 12, "bos_token_id": 2, "eos_token_id": 3,
        "pad_token_id": 0}
CROPPED = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
SQUASHED = {"size": {"height": 32, "width": 32}, "crop_size": {"height": 32, "width": 32}}


def _altclip() -> tuple[Any, Any]:
    text = {**TEXT, "project_dim": 24}
    config = transformers.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    return transformers.AltCLIPModel(config), transformers.CLIPImageProcessor(**CROPPED)


def _chinese() -> tuple[Any, Any]:
    config = transformers.ChineseCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    return transformers.ChineseCLIPModel(config), transformers.ChineseCLIPImageProcessor(**SQUASHED)


def _metaclip() -> tuple[Any, Any]:
    config = transformers.MetaClip2Config(text_config=TEXT, vision_config=VISION, projection_dim=16)
    return transformers.MetaClip2Model(config), transformers.CLIPImageProcessor(**CROPPED)


def _dual() -> tuple[Any, Any]:
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.CLIPVisionConfig(**VISION), transformers.BertConfig(**TEXT), projection_dim=16)
    return transformers.VisionTextDualEncoderModel(config), transformers.CLIPImageProcessor(**CROPPED)


def _siglip2() -> tuple[Any, Any]:
    config = transformers.Siglip2Config(text_config={**TEXT, "projection_size": 32},
                                        vision_config={**SMALL, "num_patches": 16, "patch_size": 8})
    model = transformers.Siglip2Model(config)
    model.logit_bias.data.fill_(-12.0)
    return model, transformers.Siglip2ImageProcessor(max_num_patches=16, patch_size=8)


MAKE: dict[str, Callable[[], tuple[Any, Any]]] = {
    "altclip": _altclip, "chinese_clip": _chinese, "metaclip_2": _metaclip, "vision-text-dual-encoder": _dual,
    "siglip2": _siglip2}
MASKED = ("altclip", "chinese_clip", "vision-text-dual-encoder")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind; not to be changed."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    transformers.logging.disable_progress_bar()
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<start> $A <end>",
                                                         special_tokens=[("<start>", 2), ("<end>", 3)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>",
                                                     bos_token="<start>", eos_token="<end>", model_max_length=10)
    root = tmp_path_factory.mktemp("relatives")
    for kind, make in MAKE.items():
        torch.manual_seed(0)
        model, processor = make()
        for part in (model, tokenizer, processor):
            part.save_pretrained(root / kind)
    return {kind: root / kind for kind in MAKE}


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (48, 48, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", MAKE)
def test_embeddings_are_those_of_the_librarys_own_way(folders: dict[str, Path], kind: str) -> None:
    folder, file = folders[kind], io.BytesIO()
    encoder = open_encoder(EncoderSpec(f"transformers:{folder}"))
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    picture().save(file, "png")
    sentences = ["a photo of a disc .", "ring"]
    with torch.inference_mode():
        image = model.get_image_features(**processor(picture(), return_tensors="pt")).pooler_output
        tokens = tokenizer(sentences, padding="max_length", max_length=10, return_tensors="pt")
        mask = {"attention_mask": tokens.attention_mask} if kind in MASKED else {}
        text = model.get_text_features(input_ids=tokens.input_ids, **mask).pooler_output
    found = encoder.encode_images(encoder.preparation.pixels(file.getvalue())[None])["embedding"]
    np.testing.assert_allclose(found, image.numpy(), atol=2e-5)
    np.testing.assert_allclose(encode_sentences(encoder, sentences).embedding, text.numpy(), atol=1e-5)
    assert encoder.dim == image.shape[1]
    assert encoder.info["logit_scale"] == pytest.approx(model.logit_scale.exp().item())


@pytest.mark.parametrize("kind", MASKED)
def test_what_fills_the_context_has_no_part_in_a_sentence(folders: dict[str, Path], kind: str) -> None:
    encoder = open_encoder(EncoderSpec(f"transformers:{folders[kind]}"))
    tokens = encoder.tokenizer(["ring"])
    model = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    with torch.inference_mode():
        alone = model.get_text_features(input_ids=tokens[:, :3], attention_mask=torch.ones(1, 3)).pooler_output
    np.testing.assert_allclose(encode_sentences(encoder, ["ring"]).embedding, alone.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", MAKE)
def test_every_kind_goes_through_extraction_and_fit(folders: dict[str, Path], kind: str, folder_of: Callable[..., Path],
                                                    tmp_path: Path, run_json: Callable[..., Any]) -> None:
    name = f"transformers:{folders[kind]}"
    run_json("extract", folder_of({"disc": 4, "ring": 4}), tmp_path / "s.zarr", "--model", name)
    store = open_store(str(tmp_path / "s.zarr"))
    assert store.text().embedding.shape == (2, store.dim)
    assert store.encoder["logit_bias"] == (pytest.approx(-12.0) if kind == "siglip2" else None)
    assert run_json("fit", tmp_path / "s.zarr", "--method", "zero-shot", "--select", "fixed")["n_test"] > 0


def test_further_outputs_are_there_or_refused_with_a_reason(folders: dict[str, Path]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    for kind in ("altclip", "chinese_clip", "metaclip_2"):
        encoder = open_encoder(EncoderSpec(f"transformers:{folders[kind]}"))
        for tokens in ("last", "value"):
            several = encoder.encode_images(pixels, ("embedding", "preproj", "token"), tokens)
            np.testing.assert_allclose(several["preproj"] @ encoder.projection, several["embedding"], atol=1e-5)
            assert several["token"].shape[:2] == (2, 16)
    dual = open_encoder(EncoderSpec(f"transformers:{folders['vision-text-dual-encoder']}"))
    several = dual.encode_images(pixels, ("embedding", "preproj"))
    np.testing.assert_allclose(several["preproj"] @ dual.projection, several["embedding"], atol=1e-5)
    with pytest.raises(EncoderError, match="may be of any kind"):
        dual.encode_images(pixels, ("embedding", "token"))
    siglip = open_encoder(EncoderSpec(f"transformers:{folders['siglip2']}"))
    with pytest.raises(EncoderError, match="pools its patches by attention"):
        siglip.encode_images(pixels, ("embedding", "preproj"))
