"""Models of open_clip: by name and weights, from the hub, from a folder, and the small one that is shipped."""

from __future__ import annotations

import json
import logging
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import get_model_config
from torch import Tensor

from onceclip.adapters.errors import unknown
from onceclip.pipeline.decoding.preparation import Preparation
from onceclip.pipeline.encoders.backend import EMBEDDING, Backend, default_precision, weights_digest
from onceclip.pipeline.encoders.spec import DEMO, OPEN_CLIP_SOURCES, EncoderSpec
from onceclip.pipeline.encoders.towers import projection_of, reads_class_token, several_outputs
from onceclip.pipeline.errors import EncoderError
from onceclip.stores.identity import fingerprint

_DEMO_FOLDER = files("onceclip.pipeline.encoders") / "demo_model"


class OpenClipBackend(Backend):
    """A model of open_clip.

    Raises EncoderError if it does not exist, has no weights, or would give other embeddings than its authors'.
    """

    model: Any

    def __init__(self, spec: EncoderSpec, device: torch.device) -> None:
        self.precision = default_precision(spec, device)
        self.model, self.tokenizer = _load(spec, device, self.precision)
        config: dict[str, Any] = self.model.visual.preprocess_cfg
        size = config["size"]
        self.preparation = Preparation(
            size=(size, size) if isinstance(size, int) else tuple(size), interpolation=config["interpolation"],
            resize_mode=config["resize_mode"], fill=config["fill_color"], mean=tuple(config["mean"]),
            std=tuple(config["std"]), decode=spec.decode, exif=spec.exif)
        architecture = _architecture(spec)
        # Names and paths stay outside the identity: the weights and the architecture say more.
        self.identity = {
            "architecture": fingerprint(architecture),
            "weights": weights_digest(self.model),
            "preprocess": json.loads(json.dumps(config, default=list)),
            "quick_gelu": bool(architecture.get("quick_gelu", False)),
            "precision": self.precision,
            "output": "projected",
        }
        folder = spec.model.removeprefix("local-dir:")
        bias = self.model.logit_bias
        self.info = {
            "name": spec.model if folder == spec.model else f"local-dir:{Path(folder).resolve().name}",
            "pretrained": Path(spec.pretrained).name if spec.pretrained else None,
            "dim": int(architecture["embed_dim"]),
            "logit_scale": self.model.logit_scale.exp().item(), "logit_bias": None if bias is None else bias.item(),
        }

    def images(self, pixels: Tensor, outputs: tuple[str, ...], tokens: str) -> dict[str, Tensor]:
        """Run the image tower once; see `Backend`."""
        if outputs == (EMBEDDING,) and not reads_class_token(self.model.visual):
            return {EMBEDDING: self.model.encode_image(pixels, normalize=False)}
        return several_outputs(self.model.visual, pixels, outputs, tokens, self.info["name"])

    def text(self, tokens: Tensor) -> Tensor:
        """Run the text tower on token ids (n, context); see `Backend`."""
        return self.model.encode_text(tokens, normalize=False)

    def projection(self) -> tuple[Tensor | None, Tensor | None]:
        """The image tower's last linear map; see `Backend`."""
        return projection_of(self.model.visual)


def check_names(spec: EncoderSpec) -> None:
    """Raise EncoderError for a model or weights that open_clip does not know, or that would be random."""
    if spec.model == DEMO or spec.model.startswith(OPEN_CLIP_SOURCES):
        return
    known = [DEMO, *open_clip.list_models()]
    if spec.model not in known:
        near = unknown("model", spec.model, known).split("there are:")[0]
        raise EncoderError(f"{near}`python -c \"import open_clip; print(open_clip.list_models())\"` lists "
                           f"all {len(known)}; hf-hub:ORGANISATION/NAME and local-dir:FOLDER are taken too, and "
                           "MODULE:FUNCTION for an encoder of your own")
    tags = open_clip.list_pretrained_tags_by_model(spec.model)
    if spec.pretrained is None:
        if not spec.allow_random:
            raise EncoderError(f"{spec.model} needs --pretrained, a tag or a weights file (without it the weights are "
                               f"random); tags: {', '.join(tags) or 'none'}")
    elif Path(spec.pretrained).is_file():
        if spec.preprocess is None:
            raise EncoderError(f"{spec.pretrained} does not say how its images were prepared: add --preprocess openai "
                               "(CLIP's own mean, deviation and bicubic resize) or --preprocess FILE.json")
    elif spec.pretrained not in tags:
        raise EncoderError(unknown("pretrained tag or weights file", spec.pretrained, tags, f" for {spec.model}"))


def _load(spec: EncoderSpec, device: torch.device, precision: str) -> tuple[Any, Any]:
    name = f"local-dir:{_DEMO_FOLDER}" if spec.model == DEMO else spec.model
    try:
        # The hub's client reports every one of its retries; the error below says it once.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            torch.manual_seed(0)  # random weights, where they are allowed, are the same in every process
            model = open_clip.create_model(
                name, spec.pretrained, precision=precision, device=device, cache_dir=spec.cache_dir,
                require_pretrained=not spec.allow_random, force_preprocess_cfg=_preprocess_config(spec.preprocess))
            return model, open_clip.get_tokenizer(name, cache_dir=spec.cache_dir)
    except UserWarning as error:
        raise EncoderError(f"{spec.model} with {spec.pretrained}: {error}; the embeddings would be wrong: use model "
                           f"{spec.model.removesuffix('-quickgelu')}-quickgelu (or the one without)") from error
    except EncoderError:
        raise
    except Exception as error:
        raise EncoderError(f"cannot load {spec.model}{f' with {spec.pretrained}' if spec.pretrained else ''} "
                           f"({_first_line(error)}): check the name; without a network use local-dir:FOLDER or a "
                           "weights file for --pretrained") from error


def _preprocess_config(choice: str | None) -> dict[str, Any]:
    if choice is None or choice == "openai":
        return {}
    try:
        given = json.loads(Path(choice).read_text(encoding="utf-8"))
        known = ("mean", "std", "interpolation", "resize_mode")
        if not isinstance(given, dict) or set(given) - set(known):
            raise ValueError(f"it may have {', '.join(known)} only")
        return given
    except (OSError, ValueError) as error:
        raise EncoderError(f"--preprocess {choice}: {error}: give `openai` or a JSON file such as "
                           '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"}') from error


def _architecture(spec: EncoderSpec) -> dict[str, Any]:
    if spec.model == DEMO:
        text = (_DEMO_FOLDER / "open_clip_config.json").read_text(encoding="utf-8")
        return json.loads(text)["model_cfg"]
    if spec.model.startswith("local-dir:"):
        path = Path(spec.model.removeprefix("local-dir:")) / "open_clip_config.json"
        return json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
    if spec.model.startswith("hf-hub:"):
        from open_clip.factory import _get_hf_config

        return _get_hf_config(spec.model.removeprefix("hf-hub:"), cache_dir=spec.cache_dir)["model_cfg"]
    return dict(get_model_config(spec.model))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
