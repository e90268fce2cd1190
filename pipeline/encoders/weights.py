"""The weights of a model: read from a file without running code that it holds, and told apart."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from onceclip.pipeline.errors import EncoderError
from onceclip.stores.identity import digest, fingerprint

_ENTRIES = ("state_dict", "model_state_dict", "model")  # of a training checkpoint, that hold the weights
_WRAPPERS = ("module.", "model.")  # what DistributedDataParallel and Lightning put before every name
_COMPILED = "_orig_mod."  # what torch.compile puts into names
_POINTER = b"version https://git-lfs"


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


def reason_of(error: Exception) -> str:
    """One line of a failure: its first line, and the indented ones below it, in which torch lists keys."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join([first, *(shorten(line, 150, placeholder=" ...") for line in others if line[:1].isspace())][:4])
