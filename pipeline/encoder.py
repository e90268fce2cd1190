"""One CLIP-family model with its weights and its preprocessing, identified by a fingerprint."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.factory import get_model_config
from torch import Tensor

from onceclip.adapters.method import unknown
from onceclip.pipeline.errors import EncoderError
from onceclip.stores.fingerprint import digest, fingerprint

DEMO = "demo"
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_TEXT_BATCH = 256


@dataclass(frozen=True)
class EncoderSpec:
    """What a user names: a model, its weights, and how to run it.

    model: an open_clip name, `hf-hub:...`, `local-dir:...`, or "demo". pretrained: a tag or a weights file.
    preprocess: "openai" or a JSON file, needed for a weights file, which does not say how it was trained.
    """

    model: str
    pretrained: str | None = None
    precision: str = "auto"
    device: str = "auto"
    preprocess: str | None = None
    allow_random: bool = False
    cache_dir: str | None = None


class Encoder:
    """A loaded encoder; make one with `open_encoder`.

    info: JSON values that identify it, among them `name`, `fingerprint`, `dim` and `logit_scale`.
    preprocess: a PIL image to a float tensor (3, height, width).
    """

    def __init__(self, model: torch.nn.Module, tokenizer: Callable[..., Tensor], preprocess: Callable[..., Tensor],
                 device: torch.device, precision: str, info: dict[str, Any]) -> None:
        self.model, self.tokenizer, self.preprocess, self.info = model, tokenizer, preprocess, info
        self.device, self._dtype = device, PRECISIONS[precision]

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self.info["dim"])

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> np.ndarray:
        """Embed preprocessed images (n, 3, height, width): (n, dim) float32, raw.

        Images whose embedding overflows in half precision are encoded again in full.
        """
        vectors = self._run(self.model, pixels.to(self._dtype))
        lost = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(lost) and self._dtype != torch.float32:
            vectors[lost] = self._run(self._full_precision, pixels[torch.from_numpy(lost)].float())
        return vectors

    def _run(self, model: torch.nn.Module, pixels: Tensor) -> np.ndarray:
        return model.encode_image(pixels.to(self.device)).float().cpu().numpy()  # type: ignore[operator]

    @cached_property
    def _full_precision(self) -> torch.nn.Module:
        return copy.deepcopy(self.model).float()

    @torch.inference_mode()
    def encode_text(self, sentences: Sequence[str]) -> np.ndarray:
        """Embed sentences, equal ones once: (n, dim) float32, raw.

        Raises EncoderError for a sentence that is longer than the model's context.
        """
        distinct = list(dict.fromkeys(sentences))
        place = {sentence: index for index, sentence in enumerate(distinct)}
        self._check_length(distinct)
        pieces = [self.model.encode_text(self.tokenizer(distinct[start:start + _TEXT_BATCH])  # type: ignore[operator]
                                         .to(self.device)).float().cpu().numpy()
                  for start in range(0, len(distinct), _TEXT_BATCH)]
        return np.concatenate(pieces)[[place[sentence] for sentence in sentences]]

    def _check_length(self, sentences: Sequence[str]) -> None:
        length = getattr(self.tokenizer, "context_length", None)
        encode = getattr(self.tokenizer, "encode", None)
        if length is None or encode is None:
            return
        for sentence in sentences:
            tokens = len(encode(sentence)) + 2  # with the marks of start and end
            if tokens > length:
                raise EncoderError(f"a prompt has {tokens} tokens, {self.info['name']} reads {length}: shorten "
                                   f"{sentence!r}")


def open_encoder(spec: EncoderSpec) -> Encoder:
    """Load an encoder.

    Raises EncoderError if it does not exist, has no weights, or would give other embeddings than its authors'.
    """
    check_spec(spec)
    device = torch.device(_device(spec.device))
    precision = spec.precision if spec.precision != "auto" else ("fp16" if device.type == "cuda" else "fp32")
    name = f"local-dir:{files('onceclip.pipeline.demo') / 'model'}" if spec.model == DEMO else spec.model
    try:
        # The hub's client reports every one of its retries; the error below says it once.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            torch.manual_seed(0)  # random weights, where they are allowed, are the same in every process
            model, _, preprocess = open_clip.create_model_and_transforms(
                name, spec.pretrained, precision=precision, device=device, cache_dir=spec.cache_dir,
                require_pretrained=not spec.allow_random, **_preprocess_arguments(spec.preprocess))
            tokenizer = open_clip.get_tokenizer(name, cache_dir=spec.cache_dir)
    except UserWarning as error:
        raise EncoderError(f"{spec.model} with {spec.pretrained}: {error}; the embeddings would be wrong: use model "
                           f"{spec.model.removesuffix('-quickgelu')}-quickgelu (or the one without)") from error
    except EncoderError:
        raise
    except Exception as error:
        raise EncoderError(f"cannot load {spec.model}{f' with {spec.pretrained}' if spec.pretrained else ''} "
                           f"({_first_line(error)}): check the name; without a network use local-dir:FOLDER or a "
                           "weights file for --pretrained") from error
    info = _describe(model, spec, precision)
    return Encoder(model.eval().requires_grad_(False), tokenizer, preprocess, device, precision, info)


def check_spec(spec: EncoderSpec) -> None:
    """Raise EncoderError for what is wrong with a specification before anything is loaded."""
    if spec.model == DEMO or spec.model.startswith(("hf-hub:", "local-dir:")):
        return
    known = [DEMO, *open_clip.list_models()]
    if spec.model not in known:
        near = unknown("model", spec.model, known).split("there are:")[0]
        raise EncoderError(f"{near}`python -c \"import open_clip; print(open_clip.list_models())\"` lists "
                           f"all {len(known)}; hf-hub:ORGANISATION/NAME and local-dir:FOLDER are taken too")
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


def _device(choice: str) -> str:
    if choice == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(choice)
    except RuntimeError as error:
        raise EncoderError(f"--device {choice}: torch knows no such device: use cpu, cuda, cuda:1 or mps") from error
    if choice.startswith("cuda") and not torch.cuda.is_available():
        raise EncoderError(f"--device {choice}: no CUDA device is visible here: use --device cpu")
    return choice


def _preprocess_arguments(choice: str | None) -> dict[str, Any]:
    if choice is None or choice == "openai":
        return {}
    try:
        given = json.loads(Path(choice).read_text(encoding="utf-8"))
        known = ("mean", "std", "interpolation", "resize_mode")
        if not isinstance(given, dict) or set(given) - set(known):
            raise ValueError(f"it may have {', '.join(known)} only")
        return {f"image_{name}": value for name, value in given.items()}
    except (OSError, ValueError) as error:
        raise EncoderError(f"--preprocess {choice}: {error}: give `openai` or a JSON file such as "
                           '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"}') from error


def _describe(model: torch.nn.Module, spec: EncoderSpec, precision: str) -> dict[str, Any]:
    """Everything that decides what the embeddings are, and the names that a reader wants to see.

    Names and paths stay outside the fingerprint: the weights and the architecture say more.
    """
    visual: Any = model.visual
    config = _architecture(spec)
    identity = {
        "architecture": fingerprint(config),
        "weights": _weights_digest(model),
        "preprocess": json.loads(json.dumps(visual.preprocess_cfg, default=list)),
        "quick_gelu": bool(config.get("quick_gelu", False)),
        "precision": precision,
        "output": "projected",
    }
    scale: Any = model.logit_scale
    bias: Any = model.logit_bias
    folder = spec.model.removeprefix("local-dir:")
    return {
        "name": spec.model if folder == spec.model else f"local-dir:{Path(folder).resolve().name}",
        "pretrained": Path(spec.pretrained).name if spec.pretrained else None,
        "fingerprint": fingerprint(identity), **identity,
        "dim": int(config["embed_dim"]),
        "logit_scale": scale.exp().item(), "logit_bias": None if bias is None else bias.item(),
    }


def _architecture(spec: EncoderSpec) -> dict[str, Any]:
    if spec.model == DEMO:
        text = (files("onceclip.pipeline.demo") / "model" / "open_clip_config.json").read_text(encoding="utf-8")
        return json.loads(text)["model_cfg"]
    if spec.model.startswith("local-dir:"):
        path = Path(spec.model.removeprefix("local-dir:")) / "open_clip_config.json"
        return json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
    if spec.model.startswith("hf-hub:"):
        from open_clip.factory import _get_hf_config

        return _get_hf_config(spec.model.removeprefix("hf-hub:"), cache_dir=spec.cache_dir)["model_cfg"]
    return dict(get_model_config(spec.model))


def _weights_digest(model: torch.nn.Module) -> str:
    parts = [[name, str(value.dtype), digest(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data).hex()]
             for name, value in sorted(model.state_dict().items())]
    return fingerprint(parts)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
