"""The format `safetensors`: weight and bias of an adapter that is one linear map."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from onceclip.adapters.heads.linear import Projected, as_linear
from onceclip.adapters.task import EMBEDDING
from onceclip.pipeline.errors import ExportError
from onceclip.pipeline.export.model import Subject

SUFFIX = ".safetensors"
FORMULA = "logits = unit(x) @ weight.T + bias; probabilities = softmax(logits / temperature)"


def write(subject: Subject, path: Path) -> None:
    """Write weight (classes, dim) and bias (classes,); the logit scale is part of both.

    Raises ExportError if the adapter is not one linear map of unit rows.
    """
    classifier = subject.classifier
    if subject.encoder is not None:
        raise ExportError("an encoder does not fit into a linear head: leave --with-encoder away, or use --to onnx")
    linear = as_linear(classifier.head)
    if linear is None or not (classifier.inputs == (EMBEDDING,) or isinstance(classifier.head, Projected)):
        raise ExportError(f"{classifier.method} is not one linear map from unit embeddings to logits: use --to onnx, "
                          "which takes every method")
    weight = linear.weight.detach().float().cpu().contiguous()
    bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.detach().float().cpu().contiguous()
    save_file({"weight": weight, "bias": bias}, path, metadata={
        **subject.metadata(), "format": "pt", "rows": "unit", "logit_scale": "included", "formula": FORMULA})
    _sort_header(path)


def run(path: Path, values: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and probabilities that a written file gives of rows."""
    with safe_open(path, framework="pt") as file:
        logits = normalize(values, dim=1) @ file.get_tensor("weight").T + file.get_tensor("bias")
        temperature = float(file.metadata()["temperature"])
    return logits, torch.softmax(logits / temperature, dim=1)


def _sort_header(path: Path) -> None:
    """Bring the metadata, which safetensors writes in random order, into one: equal adapters give equal files."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
