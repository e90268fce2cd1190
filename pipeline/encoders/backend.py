"""What every kind of encoder gives, whichever library its model comes from."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from onceclip.pipeline.decoding.preparation import Preparation
from onceclip.pipeline.encoders.spec import EncoderSpec
from onceclip.pipeline.errors import EncoderError

EMBEDDING, PREPROJ, TOKEN, STATISTICS = OUTPUTS = ("embedding", "preproj", "token", "statistics")
LAST, VALUE = TOKENS = ("last", "value")
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_OUT_OF_MEMORY = ("not enough memory", "out of memory", "can't allocate memory")


class Backend(ABC):
    """A loaded model and how to run it.

    model: the torch module, in the precision and on the device it runs on; None if there is none to move or cast.
    preparation: how an image file becomes the model's input. tokenizer: sentences to token ids (n, context), None if
    the model takes sentences themselves. info: JSON values that a reader wants to see, with `name`, `dim` and
    `logit_scale`. identity: JSON values that decide what the embeddings are. precision:
    what the model computes in, of PRECISIONS.
    """

    model: nn.Module | None
    preparation: Preparation
    tokenizer: Callable[[Sequence[str]], Tensor] | None
    info: dict[str, Any]
    identity: dict[str, Any]
    precision: str
    has_text = True

    @abstractmethod
    def images(self, pixels: Tensor, outputs: tuple[str, ...], tokens: str) -> dict[str, Tensor]:
        """Run the image tower once, on pixels (n, 3, height, width); gives the outputs asked for, of OUTPUTS."""

    @abstractmethod
    def text(self, tokens: Any) -> Tensor:
        """Run the text tower on one batch of what the tokenizer gave: (n, dim)."""

    def projection(self) -> tuple[Tensor | None, Tensor | None]:
        """The matrix (width, dim) between "preproj" and "embedding", and its bias (dim,); None where there is none."""
        return None, None

    def in_full_precision(self) -> Backend:
        """The same model in float32, for images whose embedding overflows in half precision."""
        full = copy.copy(self)
        full.model = None if self.model is None else copy.deepcopy(self.model).float()
        return full


def refuse(name: str, output: str, reason: str) -> EncoderError:
    """The error for an output that a model does not have."""
    return EncoderError(f"{name} cannot give the output {output!r} ({reason}): leave it away, or take a model whose "
                        "image tower is a vision transformer of open_clip or transformers")


def statistics_of(tokens: Tensor) -> Tensor:
    """Mean and deviation over the patches of a block, (n, 2, width), of its tokens (n, 1 + patches, width).

    Source: AdaIN (Huang and Belongie, ICCV 2017), where they are called the style of an image.
    """
    patches = tokens[:, 1:]  # behind the class token
    return torch.stack([patches.mean(dim=1), patches.std(dim=1, correction=0)], dim=1)


def default_precision(spec: EncoderSpec, device: torch.device) -> str:
    """What "auto" means for a CLIP model: float32 on a CPU, half precision on CUDA."""
    if spec.precision != "auto":
        return spec.precision
    return "fp16" if device.type == "cuda" else "fp32"


def preparation_values(preparation: Preparation) -> dict[str, Any]:
    """What decides an encoder's pixels, as JSON values for its identity; how files are decoded is added when chosen."""
    return {"size": list(preparation.size), "mean": list(preparation.mean), "std": list(preparation.std),
            "interpolation": preparation.interpolation, "resize_mode": preparation.resize_mode,
            "fill": preparation.fill, "style": preparation.style}


def out_of_memory(error: BaseException) -> bool:
    """Whether a failure of torch means that a batch did not fit into memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError)
                                              and any(words in text for words in _OUT_OF_MEMORY))


def without_questions() -> None:
    """Keep transformers from asking at the terminal whether it may run a repository's code: it never may."""
    import transformers.dynamic_module_utils as remote_code

    remote_code.TIME_OUT_REMOTE_CODE = 0
