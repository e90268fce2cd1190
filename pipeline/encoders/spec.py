"""What a user says about an encoder."""

from __future__ import annotations

from dataclasses import dataclass

DEMO = "demo"
OPEN_CLIP_SOURCES = ("hf-hub:", "local-dir:")
TRANSFORMERS = "transformers:"


@dataclass(frozen=True)
class EncoderSpec:
    """What a user names: a model, its weights, and how to run it.

    model: an open_clip name, `hf-hub:...`, `local-dir:...`, `transformers:...` (a folder or a hub name), "demo", or
    `module:function`, an encoder of the user's own. pretrained: a tag or a weights file, for open_clip names.
    precision: "auto" (float32 on a CPU, float16 on CUDA), "fp32", "fp16" or "bf16". device: "auto" or torch's name.
    preprocess: "openai" or a JSON file, needed where the weights do not say for which preparation they were trained.
    decode: "exact", or one that gives slightly other pixels: "fast", or "torchvision", on the encoder's device, which
    enters the encoder's identity with the kind of device. exif: whether images are turned as their cameras say.
    compile: whether torch compiles the image tower, which takes a minute and then saves time.

    Example:
        >>> onceclip.EncoderSpec("ViT-B-32", "laion2b_s34b_b79k", device="cpu").precision
        'auto'
    """

    model: str
    pretrained: str | None = None
    precision: str = "auto"
    device: str = "auto"
    preprocess: str | None = None
    allow_random: bool = False
    cache_dir: str | None = None
    decode: str = "exact"
    exif: bool = False
    compile: bool = False


def is_plugin(model: str) -> bool:
    """Whether a model's name is a Python path `module:function`."""
    return ":" in model and not model.startswith((*OPEN_CLIP_SOURCES, TRANSFORMERS))


def is_open_clip(model: str) -> bool:
    """Whether open_clip knows how to find a model of this name."""
    return not is_plugin(model) and not model.startswith(TRANSFORMERS)
