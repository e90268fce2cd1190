"""What is exported, an adapter alone or with its image encoder in front, and what a format is."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from onceclip.adapters import Classifier
from onceclip.adapters.classifier import ClassifierModule
from onceclip.adapters.heads import pack, unpack
from onceclip.pipeline.encoders import Encoder
from onceclip.pipeline.encoders.opening import require_encoder
from onceclip.pipeline.errors import ExportError
from onceclip.pipeline.words import version

OUTPUTS = ("logits", "probabilities")


@dataclass(frozen=True)
class Subject:
    """A classifier, and the encoder that goes into the file with it, if any."""

    classifier: Classifier
    encoder: Encoder | None = None

    @property
    def what(self) -> str:
        """The largest part of it, for people."""
        return self.classifier.method if self.encoder is None else str(self.encoder.info["name"])

    @cached_property
    def module(self) -> nn.Module:
        """What goes in to logits and probabilities."""
        adapter = ClassifierModule(self.classifier)
        return (adapter if self.encoder is None else ImageClassifier(self.encoder, adapter, self.classifier)).eval()

    def random(self, rows: int) -> Tensor:
        """Rows to try it on, always the same: embeddings (rows, dim) or pixels (rows, 3, height, width)."""
        generator = torch.Generator().manual_seed(0)
        if self.encoder is None:
            return torch.randn(rows, self.classifier.dim, generator=generator)
        return torch.rand(rows, 3, *self.encoder.preparation.size, generator=generator)

    @torch.no_grad()
    def answers(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """What onceclip itself makes of rows: logits and probabilities, both (rows, classes)."""
        rows = self.module.rows(values) if isinstance(self.module, ImageClassifier) else values
        logits = self.classifier.logits(rows)
        return logits, (logits / self.classifier.temperature).softmax(dim=1)

    @torch.no_grad()
    def rounding(self, values: Tensor) -> float:
        """By how much onceclip's own logits of rows differ from those in float64: terms of sums may be large."""
        rows = self.module.rows(values) if isinstance(self.module, ImageClassifier) else values
        description, tensors = pack(self.classifier.head)
        exact = replace(self.classifier, head=unpack(description, {
            name: each.double() if each.is_floating_point() else each for name, each in tensors.items()}))
        return float((exact.logits(rows) - self.classifier.logits(rows)).abs().max())

    def metadata(self) -> dict[str, str]:
        """What a reader of the file must know, as texts: some plain, some JSON."""
        made = self.classifier.encoder
        values = {
            "method": self.classifier.method,
            "class_names": json.dumps(self.classifier.class_names),
            "temperature": repr(self.classifier.temperature),
            "encoder": str(made.get("name", "")),
            "encoder_fingerprint": str(made.get("fingerprint", "")),
            "inputs": json.dumps(self.classifier.inputs),
            "onceclip_version": version(),
        }
        if self.encoder is not None:
            preparation = self.encoder.preparation
            values["preprocessing"] = json.dumps(asdict(preparation))
            values["pixels"] = ("float32 (batch, 3, height, width) as the encoder's own preprocessing gives them"
                                if preparation.custom else
                                "float32 RGB (batch, 3, height, width) from 0 to 1; mean and std are applied inside")
        return values


class Format(ABC):
    """A kind of file that adapters are exported to; FORMATS lists all.

    name: as users name it. suffix: of its files.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]

    @staticmethod
    @abstractmethod
    def write(subject: Subject) -> bytes:
        """The content of a file. Raises ExportError for what the format cannot hold."""

    @staticmethod
    @abstractmethod
    def run(content: bytes, values: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities (rows, classes) that a file of this content gives of rows."""


class ImageClassifier(nn.Module):
    """Pixels (batch, 3, height, width) to logits and probabilities (batch, classes), in float32.

    Pixels are RGB from 0 to 1, prepared but not normalised; those of an encoder with a preprocessing of its own are
    what that gives.
    Raises ExportError if the encoder is no torch module, StoreMismatch if it is not the adapter's.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, adapter: ClassifierModule, classifier: Classifier) -> None:
        super().__init__()
        self._tokens = require_encoder(classifier, encoder, "export it alone, without --with-encoder")
        if encoder.preparation.together:
            raise ExportError(f"{encoder.info['name']} looks at {encoder.preparation.together}: export the adapter "
                              "alone, without --with-encoder")
        # As an encoder does for images that overflow in half precision: other programs compute in float32.
        backend = encoder._backend if encoder._backend.precision == "fp32" else encoder._full_precision
        if backend.model is None:
            raise ExportError(f"{encoder.info['name']} is no torch module, so it cannot be written into a file: export "
                              "the adapter alone, without --with-encoder")
        self.model, self.adapter = backend.model, adapter
        self._backend, self._inputs = backend, classifier.inputs
        self._custom = bool(encoder.preparation.custom)
        for name, values in (("mean", encoder.preparation.mean), ("std", encoder.preparation.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32, device=encoder.device).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Classify prepared pixels."""
        return self.adapter(self.rows(pixels))

    def rows(self, pixels: Tensor) -> Tensor:
        """What the adapter takes of prepared pixels: (batch, dim)."""
        images = pixels if self._custom else (pixels - self.mean) / self.std
        given = self._backend.images(images, self._inputs, self._tokens)
        return torch.cat([given[name].flatten(1) for name in self._inputs], dim=1)
