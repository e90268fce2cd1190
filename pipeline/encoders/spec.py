"""What a user says about an encoder."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from onceclip.adapters.errors import unknown
from onceclip.pipeline.decoding.preparation import DECODES, ON_DEVICE
from onceclip.pipeline.errors import EncoderError
from onceclip.pipeline.workers.devices import AUTO, CPU, may_have_gpu
from onceclip.stores.identity import fingerprint

DEMO = "demo"
HUB, LOCAL = OPEN_CLIP_SOURCES = ("hf-hub:", "local-dir:")
TRANSFORMERS = "transformers:"
MOST_FRAMES = 1000  # of a video as one input
_SILENT = ("cache_dir", "compile", "device")  # what an encoder's identity does not depend on, or not by these words


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

    @property
    def folder(self) -> str | None:
        """Where the files of the model are, if on this machine and known without a library."""
        if self.model == DEMO:
            return str(files("onceclip.pipeline.encoders") / "demo_model")
        return next((self.model.removeprefix(each) for each in (LOCAL, TRANSFORMERS) if self.model.startswith(each)),
                    None)

    @property
    def request(self) -> str | None:
        """Identity of what is said: equal ones load equal encoders.

        Files count by their content wherever they lie, names of models and weights as they are. None for a function of
        the user's own, of which only its result says what it is.
        """
        if is_plugin(self.model):
            return None
        said: dict[str, Any] = {name: value for name, value in asdict(self).items() if name not in _SILENT}
        if self.folder and Path(self.folder).is_dir():
            said["model"] = [self.model.partition(":")[0], _file_digests(Path(self.folder))]
        for name in ("pretrained", "preprocess"):
            if said[name] and Path(said[name]).is_file():
                said[name] = ["", _file_digests(Path(said[name]))]
        auto = AUTO if may_have_gpu() else CPU
        return fingerprint({**said, "device": auto if self.device == AUTO else self.device.partition(":")[0]})

    def with_absolute_paths(self) -> EncoderSpec:
        """The same encoder in another working directory."""
        paths: dict[str, Any] = {
            name: os.path.abspath(value) for name in ("pretrained", "preprocess", "cache_dir")
            if (value := getattr(self, name)) and os.path.exists(value)}
        if self.model != DEMO and self.folder and os.path.isdir(self.folder):
            paths["model"] = f"{self.model.partition(':')[0]}:{os.path.abspath(self.folder)}"
        return replace(self, **paths)


def check_model(spec: EncoderSpec) -> None:
    """Raise EncoderError for what can be seen to be wrong without the libraries that load models."""
    if spec.decode not in (*DECODES, *ON_DEVICE):
        raise EncoderError(f"--decode {spec.decode}: there are {', '.join(DECODES)}")
    if is_open_clip(spec.model):
        known = [DEMO, *_open_clip_models()]
        if spec.model not in known and not spec.model.startswith(OPEN_CLIP_SOURCES):
            near = unknown("model", spec.model, known).split("there are:")[0]
            raise EncoderError(f"{near}`python -c \"import open_clip; print(open_clip.list_models())\"` lists "
                               f"all {len(known)}; hf-hub:ORGANISATION/NAME and local-dir:FOLDER are taken too, and "
                               "MODULE:FUNCTION for an encoder of your own")
        if spec.pretrained and (spec.model == DEMO or spec.model.startswith(OPEN_CLIP_SOURCES)):
            raise EncoderError(f"--pretrained {spec.pretrained}: {spec.model} has weights of its own: leave it away, "
                               "or name a model of open_clip's list with these weights")
        return
    for option, value in (("--pretrained", spec.pretrained), ("--preprocess", spec.preprocess),
                          ("--allow-random", spec.allow_random)):
        if value:
            raise EncoderError(f"{option} is for models of open_clip; {spec.model} says by itself what it is: leave "
                               "it away")


def clip_of(info: Mapping[str, Any]) -> int:
    """Frames of a video that an encoder takes as one input, by its record; 0 for images, and for what is no number."""
    frames = info.get("frames")
    return frames if isinstance(frames, int) and 0 < frames <= MOST_FRAMES else 0


def is_plugin(model: str) -> bool:
    """Whether a model's name is a Python path `module:function`."""
    return ":" in model and not model.startswith((*OPEN_CLIP_SOURCES, TRANSFORMERS))


def is_open_clip(model: str) -> bool:
    """Whether open_clip knows how to find a model of this name."""
    return not is_plugin(model) and not model.startswith(TRANSFORMERS)


def open_clip_folder() -> Path:
    """Where open_clip is installed; importing it takes seconds."""
    folder, = find_spec("open_clip").submodule_search_locations  # type: ignore[union-attr, misc]
    return Path(folder)


def _open_clip_models() -> list[str]:
    """Names of open_clip's models: as it knows them where it is imported, else those of its files."""
    if library := sys.modules.get("open_clip"):
        return library.list_models()
    return sorted(file.stem for file in (open_clip_folder() / "model_configs").glob("*.json"))


def _file_digests(path: Path) -> list[list[str]]:
    """Names and digests of the files in a folder, or of one file."""
    found = []
    for file in sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as content:
            found.append([str(file.relative_to(path)), hashlib.file_digest(content, "blake2b").hexdigest()])
    return found
