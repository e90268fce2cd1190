"""What every kind of encoder has, whichever library its model comes from: how it runs, and what its weights are."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from onceclip.pipeline.decoding.preparation import Preparation
from onceclip.pipeline.encoders.spec import EncoderSpec
from onceclip.pipeline.errors import EncoderError
from onceclip.stores.identity import digest, fingerprint

EMBEDDING, PREPROJ, TOKEN, STATISTICS = OUTPUTS = ("embedding", "preproj", "token", "statistics")
LAST, VALUE = TOKENS = ("last", "value")
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_OUT_OF_MEMORY = ("not enough memory", "out of memory", "can't allocate memory")
_ENTRIES = ("state_dict", "model_state_dict", "model")  # of a training checkpoint, that hold the weights
_WRAPPERS = ("module.", "model.")  # what DistributedDataParallel and Lightning put before every name
_COMPILED = "_orig_mod."  # what torch.compile puts into names
_POINTER = b"version https://git-lfs"
_UNREACHED = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError", "URLError"}


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
        """Run the image tower once, on pixels (n, 3, height, width); gives the outputs asked for, and maybe more."""

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


def read_weights(path: str | os.PathLike[str], *_: Any, **__: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, without what training tools put around and before the names.

    Further arguments are those of open_clip's own reader, in whose place this one is used.
    Raises EncoderError if the file holds no weights, or cannot be read without running code.
    """
    check_weights_file(path)
    try:
        found = (load_file(path) if str(path).endswith(".safetensors")
                 else torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise EncoderError(f"{path} cannot be read as weights ({reason_of(error)}): fetch it again if it is damaged; "
                           "if it holds more than tensors, which onceclip does not open, save its state_dict alone "
                           "as .safetensors") from error
    entries: dict[str, Any] = found if isinstance(found, dict) else {}
    entries = next((entries[entry] for entry in _ENTRIES if isinstance(entries.get(entry), dict)), entries)
    weights = {str(name).replace(_COMPILED, ""): value for name, value in entries.items() if isinstance(value, Tensor)}
    if not weights:
        raise EncoderError(f"{path} holds no weights: give a file of the model's state_dict")
    while wrapper := next((each for each in _WRAPPERS if all(name.startswith(each) for name in weights)), ""):
        weights = {name.removeprefix(wrapper): value for name, value in weights.items()}
    return weights


def check_weights_file(path: str | os.PathLike[str]) -> None:
    """Raise EncoderError for a file that is empty, or a pointer of Git LFS to the real one."""
    with Path(path).open("rb") as file:
        start = file.read(len(_POINTER))
    if not start:
        raise EncoderError(f"{path} is empty: fetch it again")
    if start == _POINTER:
        raise EncoderError(f"{path} is a Git LFS pointer, not the weights: fetch them with `git lfs pull`")


def check_finite(model: nn.Module, name: str) -> None:
    """Raise EncoderError if a weight of a model is NaN or infinite."""
    for weight, values in model.named_parameters():
        if not torch.isfinite(values).all():
            raise EncoderError(f"the weights of {name} are not finite ({weight}, {str(values.dtype)[6:]}): take "
                               "another checkpoint, or --precision fp32 if it is sound there")


def weights_digest(model: nn.Module) -> str:
    """Identity of all weights of a model, wherever they were read from."""
    parts = [[name, str(value.dtype), digest(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data).hex()]
             for name, value in sorted(model.state_dict().items())]
    return fingerprint(parts)


def load_failure(what: str, error: Exception, remedy: str, offline: str) -> EncoderError:
    """What to raise where something cannot be loaded. remedy, offline: how to mend it, the latter without a network."""
    cause: BaseException | None = error
    while cause is not None and type(cause).__name__ not in _UNREACHED:
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return EncoderError(f"cannot load {what} ({reason_of(error)}): {remedy}")
    return EncoderError(f"{what} is in no cache of this machine, and the network does not answer: check it, or "
                        f"{offline}; --model demo works without one")


def reason_of(error: Exception) -> str:
    """One line of a failure: its first line, and the indented ones below it, in which torch lists keys."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join([first, *(shorten(line, 150, placeholder=" ...") for line in others if line[:1].isspace())][:4])
