"""CLIP, SigLIP and their relatives in the format of Hugging Face's `transformers`: a folder, or a name on the hub."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onceclip.pipeline.decoding.preparation import Preparation
from onceclip.pipeline.encoders.backend import (
    EMBEDDING,
    PRECISIONS,
    PREPROJ,
    STATISTICS,
    TOKEN,
    VALUE,
    Backend,
    check_weights_file,
    default_precision,
    load_failure,
    preparation_values,
    refuse,
    statistics_of,
    weights_digest,
    without_questions,
)
from onceclip.pipeline.encoders.spec import TRANSFORMERS, EncoderSpec
from onceclip.pipeline.errors import EncoderError
from onceclip.stores.identity import fingerprint

SIGLIP_2, DUAL = "siglip2", "vision-text-dual-encoder"
_MASKED = ("altclip", "chinese_clip", DUAL)  # whose text models must not look at what fills the context
_KINDS = ("clip", "siglip", SIGLIP_2, "metaclip_2", *_MASKED)
_OFFSET = ("altclip_text_model", "camembert", "roberta", "xlm-roberta")  # positions begin behind that of the padding
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
_ARCHITECTURE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
                 "layer_norm_eps", "image_size", "patch_size", "max_position_embeddings", "eos_token_id")
_PROBE = "A photo of 2 cats, naïve."


class TransformersBackend(Backend):
    """A model of one of `_KINDS`.

    Siglip2 (NaFlex) takes images of any shape as so many patches; here every image is made a square of as many, so that
    square images have the library's own pixels and others are squashed as for fixed sizes.

    Raises EncoderError if it cannot be loaded, is of another kind, lacks weights, or prepares images in a way that
    `Preparation` cannot follow.
    """

    model: Any

    def __init__(self, spec: EncoderSpec, device: torch.device) -> None:
        place = spec.model.removeprefix(TRANSFORMERS)
        self.precision = default_precision(spec, device)
        model, processor, tokenizer = _load(place, spec.cache_dir)
        self.model = model.to(device=device, dtype=PRECISIONS[self.precision])
        config = model.config
        self.preparation = _preparation(processor, spec)
        self.tokenizer = Tokenizer(tokenizer, _context_length(config, tokenizer))
        self._padding = tokenizer.pad_token_id
        self.identity = {
            "architecture": fingerprint({"kind": config.model_type, **{
                part: {name: getattr(getattr(config, part), name, None) for name in _ARCHITECTURE}
                for part in ("vision_config", "text_config")}}),
            "weights": weights_digest(model),
            "preprocess": preparation_values(self.preparation),
            "tokens": fingerprint(self.tokenizer([_PROBE])[0].tolist()),
            "precision": self.precision,
            "output": "projected" if self._projected else "pooled",
        }
        folder = Path(place)
        self.info = {
            "name": f"{TRANSFORMERS}{folder.resolve().name if folder.is_dir() else place}",
            "dim": int(config.projection_dim if self._projected else config.vision_config.hidden_size),
            "logit_scale": model.logit_scale.exp().item(),
            "logit_bias": model.logit_bias.item() if hasattr(model, "logit_bias") else None,
        }

    @property
    def _projected(self) -> bool:
        return hasattr(self.model, "visual_projection")

    def images(self, pixels: Tensor, outputs: tuple[str, ...], tokens: str) -> dict[str, Tensor]:
        """Run the vision model once; see `Backend`."""
        if not self._projected and outputs != (EMBEDDING,):
            other = next(each for each in outputs if each != EMBEDDING)
            raise refuse(self.info["name"], other, "SigLIP pools its patches by attention, without a projection")
        if self.model.config.model_type == SIGLIP_2:
            return {EMBEDDING: self.model.get_image_features(**self._patches(pixels)).pooler_output}
        further = next((each for each in (TOKEN, STATISTICS) if each in outputs), "")
        if self.model.config.model_type == DUAL and further:
            raise refuse(self.info["name"], further, "the two encoders of a dual encoder may be of any kind")
        vision = self.model.vision_model
        found = vision(pixel_values=pixels, **({"output_hidden_states": True} if further else {}))
        if not self._projected:
            return {EMBEDDING: found.pooler_output}
        project = self.model.visual_projection
        given = {EMBEDDING: project(found.pooler_output), PREPROJ: found.pooler_output}
        if STATISTICS in outputs:
            # The first is what enters the blocks.
            given[STATISTICS] = torch.stack([statistics_of(each) for each in found.hidden_states[1:]], dim=1)
        if TOKEN in outputs:
            last = found.last_hidden_state
            if tokens == VALUE:  # as in `towers`
                layer = vision.encoder.layers[-1]
                last = layer.self_attn.out_proj(layer.self_attn.v_proj(layer.layer_norm1(found.hidden_states[-2])))
            given[TOKEN] = project(vision.post_layernorm(last[:, 1:]))
        return given

    def text(self, tokens: Tensor) -> Tensor:
        """Run the text model on token ids (n, context); see `Backend`."""
        if self.model.config.model_type in _MASKED:
            mask = (tokens != self._padding).to(tokens.dtype)
            return self.model.get_text_features(input_ids=tokens, attention_mask=mask).pooler_output
        pooled = self.model.text_model(input_ids=tokens).pooler_output
        return self.model.text_projection(pooled) if self._projected else pooled

    def _patches(self, pixels: Tensor) -> dict[str, Tensor]:
        """What Siglip2 takes of pixels (n, 3, height, width): patches row by row, each laid out as (high, wide, 3)."""
        size = int(self.model.config.vision_config.patch_size)
        high, wide = pixels.shape[2] // size, pixels.shape[3] // size
        patches = pixels.unflatten(3, (wide, size)).unflatten(2, (high, size)).permute(0, 2, 4, 3, 5, 1)
        shapes = torch.tensor([[high, wide]], device=pixels.device).expand(len(pixels), -1)
        mask = torch.ones(len(pixels), high * wide, dtype=torch.int32, device=pixels.device)
        return {"pixel_values": patches.flatten(3).flatten(1, 2), "pixel_attention_mask": mask,
                "spatial_shapes": shapes}

    def projection(self) -> tuple[Tensor | None, Tensor | None]:
        """The visual projection of CLIP; see `Backend`."""
        return (self.model.visual_projection.weight.T, None) if self._projected else (None, None)


class Tokenizer:
    """A tokenizer of `transformers` that fills every sentence up to the context, as CLIP and SigLIP were trained."""

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self._tokenizer, self.context_length = tokenizer, context_length

    def __call__(self, sentences: Sequence[str], context_length: int | None = None) -> Tensor:
        """Token ids (n, context_length); what is longer is cut."""
        return self._tokenizer(list(sentences), padding="max_length", truncation=True, return_tensors="pt",
                               max_length=context_length or self.context_length).input_ids


def _context_length(config: Any, tokenizer: Any) -> int:
    """Tokens that a text model reads: its positions, or fewer where the tokenizer of a relative of CLIP says so."""
    text = config.text_config
    positions = int(text.max_position_embeddings)
    if config.model_type in ("clip", "siglip"):
        return positions
    if text.model_type in _OFFSET:
        positions -= int(text.pad_token_id) + 1
    return min(positions, int(tokenizer.model_max_length))


def _load(place: str, cache_dir: str | None) -> tuple[Any, Any, Any]:
    """Model, image processor and tokenizer."""
    name, folder = f"{TRANSFORMERS}{place}", Path(place)
    if place.startswith((".", "/", "~")) and not folder.is_dir():
        raise EncoderError(f"{name}: no such folder: give one that save_pretrained wrote into, or a name on the hub")
    try:
        import transformers
    except ImportError as error:
        raise EncoderError(f"{name} needs the package transformers: pip install 'onceclip[transformers]'") from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports every one of its retries
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    without_questions()
    safe: dict[str, Any] = {"cache_dir": cache_dir, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(place, **safe)
        if config.model_type not in _KINDS:
            raise EncoderError(f"{name} is a model of type {config.model_type!r}, not one of {', '.join(_KINDS)}: use "
                               "open_clip's version of it, or wrap it as an encoder of your own (docs/extending.md)")
        if transformers.utils.find_adapter_config_file(place, cache_dir=cache_dir):
            raise EncoderError(f"{name} is an adapter of PEFT, which names another repository: merge the two and give "
                               "what save_pretrained writes then")
        for file in (*folder.glob("*.safetensors"), *folder.glob("*.bin")):
            check_weights_file(file)
        if getattr(config, "quantization_config", None):
            raise EncoderError(f"{name} is quantized: take the model that it was made from")
        # The attention is named here because a configuration could name one that is downloaded as a program.
        model, loading = transformers.AutoModel.from_pretrained(
            place, config=config, dtype=torch.float32, attn_implementation="sdpa", weights_only=True,
            output_loading_info=True, **safe)
        if loading["missing_keys"]:
            missing = sorted(loading["missing_keys"])
            raise EncoderError(f"{name} lacks {len(missing)} weights ({missing[0]}, ...), which would be random: take "
                               "a complete copy")
        return (model, transformers.AutoImageProcessor.from_pretrained(place, **safe),
                transformers.AutoTokenizer.from_pretrained(place, **safe))
    except EncoderError:
        raise
    except Exception as error:
        remedy = "give a folder that save_pretrained wrote model, tokenizer and image processor into"
        raise load_failure(name, error, f"{remedy}, or a name on the hub", remedy) from error


def _preparation(processor: Any, spec: EncoderSpec) -> Preparation:
    """The values of an image processor; its Pillow version gives the same pixels, torchvision's rounds otherwise."""
    def wrong(what: str) -> EncoderError:
        return EncoderError(f"{spec.model} prepares images with {what}, which onceclip does not follow: use "
                            "open_clip's version of it, or wrap it as an encoder of your own (docs/extending.md)")

    if hasattr(processor, "max_num_patches"):
        side = math.isqrt(processor.max_num_patches) * processor.patch_size
        processor.size = {"height": side, "width": side}
    size, crop = dict(processor.size or {}), dict(getattr(processor, "crop_size", None) or {})
    size, crop = ({key: value for key, value in each.items() if value} for each in (size, crop))
    if not processor.do_resize or not processor.do_rescale or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise wrong(f"do_resize={processor.do_resize}, do_rescale={processor.do_rescale}, "
                    f"rescale_factor={processor.rescale_factor}")
    if int(processor.resample) not in _INTERPOLATIONS:
        raise wrong(f"resample={processor.resample}")
    if set(size) == {"shortest_edge"} and processor.do_center_crop and {*crop.values()} == {*size.values()}:
        mode, shape = "shortest", (crop["height"], crop["width"])
    elif set(size) == {"height", "width"} and (not getattr(processor, "do_center_crop", None) or crop == size):
        mode, shape = "squash", (size["height"], size["width"])
    else:
        raise wrong(f"size={size} and crop_size={crop}")
    normalize = processor.do_normalize
    return Preparation(
        size=shape, interpolation=_INTERPOLATIONS[int(processor.resample)], resize_mode=mode,
        mean=tuple(processor.image_mean) if normalize else (0.0, 0.0, 0.0),
        std=tuple(processor.image_std) if normalize else (1.0, 1.0, 1.0),
        decode=spec.decode, exif=spec.exif, style="transformers")
