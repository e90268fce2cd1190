"""Cross-modal linear probe: prompts are labelled samples beside the images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.heads import Head, Linear
from onceclip.adapters.method import Hyperparameter, Method, zero_shot_head
from onceclip.adapters.recipe import keeping, recipe
from onceclip.adapters.starts import linear_start
from onceclip.adapters.task import Task
from onceclip.adapters.unit import unit


class CrossModalLinearProbe(Method):
    """A linear layer trained on images and on prompts, each prompt of a class a sample of it.

    `logits = s x H^T`, H from the unit mean prompts and never scaled back to unit length. The loss is the mean
    cross-entropy of the images plus that of the prompts: what the published batches, half images and half prompts, have
    as their mean, but for a factor of two. All prompts take part in every step.

    Source: Multimodality Helps Unimodality: Cross-Modal Few-Shot Learning with Multimodal Models (Lin et al., CVPR
    2023); start and decay from the authors' code, which takes 12,800 small batches.

    Example:
        >>> onceclip.CrossModalLinearProbe(epochs=50).fit(task).logits(embeddings).shape
        torch.Size([5, 4])
    """

    name = "cross-modal-lp"
    summary = "linear layer trained on images and prompts"
    family = "linear"
    source = "Lin et al., Multimodality Helps Unimodality: Cross-Modal Few-Shot Learning, CVPR 2023"
    equation = "logits = s x.H',  min mean CE(images) + mean CE(prompts)"
    hyperparameters = {
        "start": Hyperparameter("zero-shot", "start values of the layer", choices=("zero-shot", "random"),
                                retrain=True),
        **recipe(learning_rate=1e-4, epochs=300),
        "learning_rate": Hyperparameter(1e-4, "step size at the start of the schedule", search=(1e-5, 3e-5, 1e-4, 3e-4),
                                        high=1000.0, retrain=True),
        **keeping(),
    }
    trained = True

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        mean = prepared.text.raw_mean
        random = self.start == "random"
        return {"weight": linear_start((prepared.classes, prepared.dim), generator, mean) if random else unit(mean)}

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return Linear(prepared.logit_scale * parameters["weight"], zero_shot_head(prepared).bias)

    def penalty(self, prepared: Task, parameters: dict[str, Tensor]) -> Tensor:
        return cross_entropy(self.head(prepared, parameters)(prepared.text.unit), prepared.text.class_index)
