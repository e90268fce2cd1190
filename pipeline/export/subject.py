"""What is exported: an adapter alone, or with its image encoder in front."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

import onceclip
from onceclip.adapters import Classifier
from onceclip.adapters.classifier import ClassifierModule
from onceclip.pipeline.encoders import Encoder
from onceclip.pipeline.export.image_classifier import ImageClassifier

OUTPUTS = ("logits", "probabilities")


@dataclass(frozen=True)
class Subject:
    """A classifier, and the encoder that goes into the file with it, if any."""

    classifier: Classifier
    encoder: Encoder | None = None

    @property
    def input(self) -> str:
        """Name of what goes in."""
        return "embeddings" if self.encoder is None else "pixels"

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

    def metadata(self) -> dict[str, str]:
        """What a reader of the file must know, as texts: some plain, some JSON."""
        made = self.classifier.provenance.get("encoder", {})
        values = {
            "method": self.classifier.method,
            "class_names": json.dumps(self.classifier.class_names),
            "temperature": repr(self.classifier.temperature),
            "encoder": str(made.get("name", "")),
            "encoder_fingerprint": str(made.get("fingerprint", "")),
            "inputs": json.dumps(self.classifier.inputs),
            "onceclip_version": onceclip.__version__,
        }
        if self.encoder is not None:
            preparation = self.encoder.preparation
            values["preprocessing"] = json.dumps(asdict(preparation))
            values["pixels"] = ("float32 (batch, 3, height, width) as the encoder's own preprocessing gives them"
                                if preparation.custom else
                                "float32 RGB (batch, 3, height, width) from 0 to 1; mean and std are applied inside")
        return values
