"""The format `safetensors`: weight and bias of an adapter that is one linear map."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import normalize

from onceclip.adapters.heads.linear import Projected, as_linear
from onceclip.adapters.task import EMBEDDING
from onceclip.pipeline.errors import ExportError
from onceclip.pipeline.export.model import Format, Subject

FORMULA = "logits = unit(x) @ weight.T + bias; probabilities = softmax(logits / temperature)"


class LinearFile(Format):
    """weight (classes, dim) and bias (classes,); the logit scale is part of both."""

    name = "safetensors"
    suffix = ".safetensors"

    @staticmethod
    def write(subject: Subject) -> bytes:
        """The file; see `Format`. Raises ExportError also for what is not one linear map of unit rows."""
        classifier = subject.classifier
        if subject.encoder is not None:
            raise ExportError("an encoder does not fit into a linear head: leave --with-encoder away, or use --to onnx")
        linear = as_linear(classifier.head)
        if linear is None or not (classifier.inputs == (EMBEDDING,) or isinstance(classifier.head, Projected)):
            raise ExportError(f"{classifier.method} is not one linear map from unit embeddings to logits: use --to "
                              "onnx, which takes every method")
        weight = linear.weight.detach().float().cpu().contiguous()
        bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.detach().float().cpu().contiguous()
        content = save({"weight": weight, "bias": bias}, metadata={
            **subject.metadata(), "format": "pt", "rows": "unit", "logit_scale": "included", "formula": FORMULA})
        # safetensors writes its header in random order; sorted, equal adapters give equal files.
        header, values = _split(content)
        text = json.dumps(header, sort_keys=True).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text + values

    @staticmethod
    def run(content: bytes, values: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities that a file gives of rows; see `Format`."""
        tensors = load(content)
        logits = normalize(values, dim=1) @ tensors["weight"].T + tensors["bias"]
        temperature = float(_split(content)[0]["__metadata__"]["temperature"])
        return logits, torch.softmax(logits / temperature, dim=1)


def _split(content: bytes) -> tuple[dict[str, dict[str, str]], bytes]:
    """The header of a safetensors file, and the rest."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]
