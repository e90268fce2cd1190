"""LaFTer's first step: a linear head that is trained on prompts alone and used on images."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.heads import Head
from onceclip.adapters.method import Method, class_head
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, recipe


class LaFTerText(Method):
    """A linear head, started at the class vectors, trained to tell noisy prompts apart; no image is looked at.

    Every step adds noise to the unit vectors of all prompts, scales them to unit length again and lowers the
    cross-entropy of smoothed labels. `noise` is the length of the noise as a share of the vectors' own; the authors'
    code adds 0.1 to every coordinate, which in 512 dimensions is a length of 2.3 (`spread=coordinate`).

    The paper trains on many sentences per class, as a language model writes them; with one prompt each there is nothing
    to learn. The step size is of the latter case, chosen on training images of 17 groups of ImageNet's classes with
    features of CLIP ViT-B/32: in the mean of groups 1e-6 is 0.04 points above zero-shot, 1e-5 0.03 below, 1e-4 2.8
    below. With sentences of a language model try larger ones, on images that no accuracy is reported on.

    Source: LaFTer: Label-Free Tuning of Zero-shot Classifier using Language and Unlabeled Image Collections (Mirza et
    al., NeurIPS 2023), section 3.1.
    """

    name = "lafter-text"
    summary = "linear head trained on prompts with noise, no image"
    family = "linear"
    equation = "logits = s x.H',  H from W by cross-entropy of unit(t + noise)"
    hyperparameters = {
        "noise": Hyperparameter(0.1, "length of the noise as a share of the vectors', or its deviation per coordinate",
                                high=100.0),
        "spread": Hyperparameter("norm", "what `noise` is the size of", choices=("norm", "coordinate")),
        "smoothing": Hyperparameter(0.1, "share of every label that all classes have alike", high=1.0),
        **recipe(learning_rate=1e-6, epochs=200),
    }
    presets = {"reference": {"spread": "coordinate", "epochs": 1000}}
    needs_support = False

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        return {"weight": prepared.text.class_weights.clone()}

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return class_head(prepared, parameters["weight"])

    def training_rows(self, task: Task, prepared: Task, epoch: int) -> tuple[Tensor, Tensor]:
        return task.text.unit, task.text.class_index

    def loss(self, prepared: Task, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
             generator: torch.Generator) -> Tensor:
        size = self.noise / math.sqrt(rows.shape[1]) if self.spread == "norm" else self.noise
        noise = torch.randn(rows.shape, generator=generator).to(rows)
        logits = self.head(prepared, parameters)(unit(rows + size * noise))
        return cross_entropy(logits, label, label_smoothing=self.smoothing)
