"""One encoder with its weights and its preparation of images: pixels and sentences into embeddings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters.cpu import DEFAULT, products
from onceclip.pipeline.encoders.backend import EMBEDDING, LAST, OUTPUTS, PRECISIONS, TOKENS, Backend, out_of_memory
from onceclip.pipeline.errors import EncoderError

_BATCH = {"cuda": 256}  # images per pass that keep a device busy
_CPU_BATCH = 32  # what a pass keeps stays in the caches


class Encoder:
    """A loaded encoder; make one with `open_encoder`. Threads may share it.

    info: JSON values that identify it, among them `name`, `fingerprint`, `dim` and `logit_scale`. dim: width of the
    embeddings. preparation: the bytes of an image file to the pixels that `encode_images` takes, as a value that
    decoding processes can take along. model: the torch module, if it is one. has_text: whether sentences can be
    embedded too.
    """

    def __init__(self, backend: Backend, device: torch.device, info: dict[str, Any], compiled: bool = False) -> None:
        self.device, self.info, self.dim = device, info, int(info["dim"])
        self.preparation, self.model, self.has_text = backend.preparation, backend.model, backend.has_text
        self._backend, self._dtype = backend, PRECISIONS[backend.precision]
        self._limit: int | None = None
        self._lock = threading.Lock()
        self._compiled = _Compiled(backend.images) if compiled else None

    @property
    def tokenizer(self) -> Callable[..., Tensor] | None:
        """Sentences to token ids (n, context); None if there is no text, or the model takes sentences themselves."""
        return self._backend.tokenizer

    @property
    def batch_size(self) -> int:
        """Images per pass that suit the device, fewer once its memory did not hold as many."""
        usual = _BATCH.get(self.device.type, _CPU_BATCH)
        return usual if self._limit is None else min(usual, self._limit)

    @cached_property
    def projection(self) -> np.ndarray | None:
        """Matrix (width, dim) float32 from "preproj" to "embedding", if the image tower ends in one."""
        return _array(self._backend.projection()[0])

    @cached_property
    def projection_bias(self) -> np.ndarray | None:
        """Bias (dim,) float32 that is added after `projection`, if there is one."""
        return _array(self._backend.projection()[1])

    def check_views(self) -> None:
        """Raise EncoderError if there can be no views of what it looks at."""
        if self.preparation.together:
            raise EncoderError(f"{self.info['name']} looks at {self.preparation.together}, of which there are no "
                               "views: leave --views, --crops and strategies that read views out")

    def output_shapes(self, outputs: Sequence[str], tokens: str = LAST) -> dict[str, tuple[int, ...]]:
        """Shape of each output of one image; see `encode_images`.

        Raises EncoderError if the encoder cannot give one of them.
        """
        if tuple(outputs) == (EMBEDDING,):
            return {EMBEDDING: (self.dim,)}
        found = self.encode_images(np.zeros((1, *self.preparation.shape), self.preparation.dtype), outputs, tokens)
        return {name: values.shape[1:] for name, values in found.items()}

    @torch.inference_mode()
    def encode_images(self, pixels: np.ndarray, outputs: Sequence[str] = (EMBEDDING,),
                      tokens: str = LAST) -> dict[str, np.ndarray]:
        """Run images through the encoder once.

        pixels: what `preparation.pixels` gave, stacked: uint8 (n, height, width, 3), or float32 (n, 3, height, width),
        which is taken as it is. outputs: "embedding" (n, dim), raw; "preproj" (n, width), before the projection;
        "token" (n, patches, dim); "statistics" (n, blocks, 2, width), mean and deviation of the patches. tokens: which
        patch tokens, "last" (the last layer's) or "value" (text-aligned; see `towers`). Gives each output as float32.
        Images whose embedding overflows in half precision are encoded again in full. A batch that does not fit into
        memory is halved, and so are later ones.
        Raises EncoderError if the encoder cannot give an output, or one image does not fit.
        """
        _check_outputs(outputs, tokens)
        if not len(pixels):
            return {name: np.zeros((0, *shape), np.float32)
                    for name, shape in self.output_shapes(outputs, tokens).items()}
        found: list[dict[str, np.ndarray]] = []
        done = 0
        while done < len(pixels):
            piece = pixels[done:done + (self._limit or len(pixels))]
            given = self._attempt(piece, tuple(outputs), tokens)
            if given is None:
                self._halve(len(piece))
                continue
            found.append(given)
            done += len(piece)
        if len(found) == 1:
            return found[0]
        return {name: np.concatenate([each[name] for each in found]) for name in outputs}

    @torch.inference_mode()
    def encode_tokens(self, tokens: Any) -> np.ndarray:
        """Embed one batch: (n, dim) float32, raw.

        tokens: token ids (n, context), or a list of sentences if the encoder has text but no `tokenizer`.
        Raises EncoderError if the encoder has no text.
        """
        if not self.has_text:
            raise EncoderError(f"{self.info['name']} embeds images only: it has no text encoder for prompts")
        batch = tokens.to(self.device) if isinstance(tokens, Tensor) else tokens
        with products(self.info.get("products", DEFAULT)):
            return self._backend.text(batch).float().cpu().numpy()

    def _attempt(self, pixels: np.ndarray, outputs: tuple[str, ...], tokens: str) -> dict[str, np.ndarray] | None:
        """One pass, or None if it did not fit into memory."""
        try:
            with products(self.info.get("products", DEFAULT)):
                return self._encode(pixels, outputs, tokens)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            return None

    def _halve(self, images: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if images == 1:
            raise EncoderError(f"one image does not fit into the memory of {self.device} with {self.info['name']}: "
                               "close what else uses it, or take a smaller model or another --device")
        with self._lock:
            self._limit = min(images // 2, self._limit or images)

    def _encode(self, pixels: np.ndarray, outputs: tuple[str, ...], tokens: str) -> dict[str, np.ndarray]:
        images = self._normalized(self._to_device(pixels))
        run = self._compiled or self._backend.images
        given = _arrays(run(images.to(self._dtype), outputs, tokens), outputs)
        if self._dtype == torch.float32:
            return given
        lost = np.flatnonzero(~np.logical_and.reduce([np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
                                                      for values in given.values()]))
        if len(lost):
            rows = torch.from_numpy(lost).to(self.device)
            full = _arrays(self._full_precision.images(images[rows], outputs, tokens), outputs)
            for name, values in full.items():
                given[name][lost] = values
        return given

    @cached_property
    def _full_precision(self) -> Backend:
        return self._backend.in_full_precision()

    @cached_property
    def _copies(self) -> Any:
        return torch.cuda.Stream(self.device)

    def _to_device(self, pixels: np.ndarray) -> Tensor:
        # torch warns of arrays that it could write to and must not, such as views of shared memory.
        host = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        if self.device.type != "cuda":
            return host.to(self.device)
        with torch.cuda.stream(self._copies):
            there = host.pin_memory().to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._copies)
        there.record_stream(computing)
        return there

    def _normalized(self, pixels: Tensor) -> Tensor:
        """In the arithmetic of torchvision's ToTensor and Normalize, step by step, so that bits agree."""
        if pixels.dtype != torch.uint8:
            return pixels.float()
        mean, deviation = (torch.tensor(values, dtype=torch.float32, device=pixels.device)[:, None, None]
                           for values in (self.preparation.mean, self.preparation.std))
        return pixels.movedim(-1, -3).contiguous().float().div_(255).sub_(mean).div_(deviation)


class _Compiled:
    """An image tower that torch has compiled, for one number of images: fewer are filled up with zeros."""

    def __init__(self, images: Callable[..., dict[str, Tensor]]) -> None:
        self._run = torch.compile(images, dynamic=False)
        self._rows = 0

    def __call__(self, pixels: Tensor, outputs: tuple[str, ...], tokens: str) -> dict[str, Tensor]:
        count = len(pixels)
        self._rows = max(self._rows, count)
        if count < self._rows:
            pixels = torch.cat([pixels, pixels.new_zeros(self._rows - count, *pixels.shape[1:])])
        try:
            given = self._run(pixels, outputs, tokens)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = str(error).strip().splitlines()[0]
            raise EncoderError(f"--compile does not work here ({reason}): it needs a C++ compiler such as g++ (and "
                               "Triton on CUDA); leave --compile away") from error
        return {name: values[:count] for name, values in given.items()}


def _check_outputs(outputs: Sequence[str], tokens: str) -> None:
    wrong = [*sorted({*outputs} - {*OUTPUTS}), *({tokens} - {*TOKENS})]
    if wrong or not outputs:
        raise EncoderError(f"no output {', '.join(wrong) or '(none given)'}: there are {', '.join(OUTPUTS)}, with "
                           f"tokens {' or '.join(TOKENS)}")


def _arrays(given: dict[str, Tensor], outputs: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: given[name].float().cpu().numpy() for name in outputs}


def _array(values: Tensor | None) -> np.ndarray | None:
    return None if values is None else values.detach().float().cpu().numpy()
