"""An encoder of the user's own: whatever object a function of theirs gives (docs/extending.md)."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from onceclip.adapters.plugin import import_function
from onceclip.errors import failure_of
from onceclip.pipeline.decoding.preparation import Preparation
from onceclip.pipeline.encoders.backend import (
    EMBEDDING,
    PRECISIONS,
    Backend,
    out_of_memory,
    preparation_values,
    refuse,
    weights_digest,
)
from onceclip.pipeline.encoders.spec import MOST_FRAMES, EncoderSpec
from onceclip.pipeline.errors import EncoderError
from onceclip.pipeline.sources.record import MASK
from onceclip.stores.identity import canonical

_SAMPLES = ((320, 240), (64, 200))  # width and height of pictures that show what a preprocessing gives


class PluginBackend(Backend):
    """What `module:function` gives.

    The object has `name`, `dim`, `encode_image` and `preprocess` (a function at the top level of its module, from a
    Pillow image to floats (3, height, width), or a `Preparation`); optionally `encode_text`, `tokenizer`,
    `logit_scale`, `logit_bias`. `identity`, JSON values that decide what the embeddings are, may be left out by a
    torch module, or an object whose `model` is one: its weights say it. With `second_input = "mask"` its `preprocess`
    takes the mask of an image beside it, and gives floats (channels, height, width). With `frames = n` its
    `encode_image` gets n frames of every video, (rows, n, 3, height, width), each as `preprocess` gives it.
    Raises EncoderError if it cannot be imported, or lacks one of these.
    """

    def __init__(self, spec: EncoderSpec, device: torch.device) -> None:
        self._path = spec.model
        make, module = import_function(spec.model, EncoderError)
        self._plugin = _made(make, spec.model)
        name, dim = self._attribute("name", str), self._attribute("dim", int)
        self._attribute("encode_image", Callable)
        self.has_text = callable(getattr(self._plugin, "encode_text", None))
        self.tokenizer = getattr(self._plugin, "tokenizer", None)
        self.precision = spec.precision if spec.precision != "auto" else "fp32"
        self.model = _network(self._plugin)
        if self.model is not None:
            self.model.to(device=device, dtype=PRECISIONS[self.precision])
        elif self.precision != "fp32":
            raise EncoderError(f"--precision {self.precision}: {spec.model} is no torch module that could be cast: "
                               "leave it away")
        self.second = getattr(self._plugin, "second_input", "")
        if self.second not in ("", MASK):
            raise EncoderError(f"{self._path} has second_input {self.second!r}: a source gives {MASK!r} alone; leave "
                               "it out, or take that")
        self.frames = _frames(self._plugin, self._path)
        if self.frames != _frames(make, self._path) or (self.frames and self.second):
            raise EncoderError(f"{self._path} takes frames of videos: say so on the class that --model names, with "
                               "frames = 8, say, and without second_input")
        self.preparation = self._preparation(spec, module)
        self.identity = {"plugin": name, "dim": dim, "precision": self.precision, "output": EMBEDDING,
                         "identity": self._declared()}
        if self.second:
            self.identity["second_input"] = self.second
        if self.frames:
            self.identity["frames"] = self.frames
        if self.model is not None:
            self.identity["weights"] = weights_digest(self.model)
        self.identity["preprocess"] = ({"size": list(self.preparation.size)} if self.preparation.custom
                                       else preparation_values(self.preparation))
        self.info = {"name": name, "dim": dim,
                     **{each: None if getattr(self._plugin, each, None) is None else float(getattr(self._plugin, each))
                        for each in ("logit_scale", "logit_bias")}}

    def images(self, pixels: Tensor, outputs: tuple[str, ...], tokens: str) -> dict[str, Tensor]:
        """Embed images; see `Backend`."""
        if outputs != (EMBEDDING,):
            other = next(each for each in outputs if each != EMBEDDING)
            raise refuse(self._path, other, "it is an encoder of your own")
        return {EMBEDDING: self._run("encode_image", pixels)}

    def text(self, tokens: Any) -> Tensor:
        """Embed sentences, or what `tokenizer` made of them; see `Backend`."""
        return self._run("encode_text", tokens)

    def in_full_precision(self) -> Backend:
        """The same object in float32; see `Backend`."""
        full = copy.copy(self)
        full._plugin = copy.deepcopy(self._plugin)
        full.model = _network(full._plugin)
        if full.model is not None:
            full.model.float()
        return full

    def _run(self, method: str, batch: Any) -> Tensor:
        try:
            values = torch.as_tensor(getattr(self._plugin, method)(batch))
        except Exception as error:
            if out_of_memory(error):
                raise
            raise EncoderError(f"{method} of {self._path} failed: {failure_of(error)}") from error
        wanted = (len(batch), self.identity["dim"])
        if tuple(values.shape) != wanted:
            raise EncoderError(f"{method} of {self._path} gave an array of shape {tuple(values.shape)}, not {wanted}: "
                               "give a row per item, as wide as `dim`")
        return values

    def _attribute(self, name: str, kind: Any) -> Any:
        value = getattr(self._plugin, name, None)
        if not isinstance(value, kind):
            raise EncoderError(f"{self._path} gave a {type(self._plugin).__name__} without "
                               f"`{name}` ({getattr(kind, '__name__', kind)}): docs/extending.md lists what an encoder "
                               "needs")
        return value

    def _declared(self) -> Any:
        declared = getattr(self._plugin, "identity", None)
        if declared is None and self.model is not None:
            return {}
        try:
            if isinstance(declared, dict) and declared:
                canonical(declared)
                return declared
        except (TypeError, ValueError):
            pass
        raise EncoderError(f"{self._path} needs `identity`, a dict of JSON values that change whenever its embeddings "
                           'do, such as {"version": 1}: stores know their encoder by it')

    def _preparation(self, spec: EncoderSpec, module: Any) -> Preparation:
        given = getattr(self._plugin, "preprocess", None)
        if isinstance(given, Preparation) and not self.second:
            return replace(given, decode=spec.decode, exif=spec.exif, frames=self.frames)
        if not callable(given):
            raise EncoderError(f"{self._path} needs `preprocess`: a function from a Pillow image "
                               + ("and its mask to floats (channels, height, width)" if self.second else
                                  "to floats (3, height, width), or an "
                                  "onceclip.pipeline.decoding.preparation.Preparation"))
        if spec.decode != "exact":
            raise EncoderError(f"--decode {spec.decode.partition('-')[0]}: {self._path} prepares images by itself: "
                               "leave it away, or give it a Preparation")
        shapes = set()
        for size in _SAMPLES:
            try:
                shown = [Image.new("RGB", size), *([Image.new("L", size)] if self.second else [])]
                shapes.add(np.asarray(given(*shown), np.float32).shape)
            except Exception as error:
                raise EncoderError(f"preprocess of {self._path} failed on a grey picture: {failure_of(error)}"
                                   ) from error
        shape = shapes.pop()
        if shapes or len(shape) != 3 or (shape[0] != 3 and not self.second):
            raise EncoderError(f"preprocess of {self._path} gave arrays of shape "
                               f"{' and '.join(map(str, {shape, *shapes}))}: give "
                               f"({'channels' if self.second else 3}, height, width), the same for every picture")
        return Preparation(size=shape[1:], exif=spec.exif, custom=_path_of(given, module, self._path),
                           second=self.second, channels=shape[0], frames=self.frames)


def frames_of(path: str) -> int:
    """Frames of a video that the encoder of a class `module:class` takes as one input; 0 for images.

    Raises EncoderError if it cannot be imported, or has no such number.
    """
    return _frames(import_function(path, EncoderError)[0], path)


def _frames(thing: Any, path: str) -> int:
    frames = getattr(thing, "frames", 0)
    if frames and not (isinstance(frames, int) and 2 <= frames <= MOST_FRAMES):
        raise EncoderError(f"{path} has frames {frames!r}: give a whole number from 2 to {MOST_FRAMES:,}")
    return frames or 0


def _made(make: Callable[[], Any], path: str) -> Any:
    try:
        return make()
    except EncoderError:
        raise
    except Exception as error:
        raise EncoderError(f"{path} failed: {failure_of(error)}") from error


def _network(plugin: Any) -> nn.Module | None:
    network = plugin if isinstance(plugin, nn.Module) else getattr(plugin, "model", None)
    return network if isinstance(network, nn.Module) else None


def _path_of(preprocess: Any, module: Any, path: str) -> str:
    """`module:name` under which the processes that decode images find a preprocessing."""
    home, name = getattr(preprocess, "__module__", ""), getattr(preprocess, "__qualname__", "")
    if name and getattr(sys.modules.get(home), name, None) is preprocess:
        return f"{home}:{name}"
    for name, value in vars(module).items():
        if value is preprocess:
            return f"{module.__name__}:{name}"
    raise EncoderError(f"preprocess of {path} must be a function (or object) at the top level of {module.__name__}: "
                       "the processes that decode images import it from there")
