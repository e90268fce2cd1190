"""Cross-modal adapter: a bottleneck and a linear layer, trained on images and prompts."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.heads import Bottleneck, Head
from onceclip.adapters.method import share_setting
from onceclip.adapters.methods.cross_modal_lp import CrossModalLinearProbe
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, linear_start


class CrossModalAdapter(CrossModalLinearProbe):
    """A bottleneck in front of the cross-modal linear layer, both trained.

    `z = r relu(W2 relu(W1 x)) + (1 - r) x`, not scaled back to unit length, `logits = s z H^T`.

    Source: Multimodality Helps Unimodality: Cross-Modal Few-Shot Learning with Multimodal Models (Lin et al., CVPR
    2023); the ratio and the preset `reference`, that of cross-modal-lp, from the authors' code.
    """

    name = "cross-modal-adapter"
    summary = "bottleneck and linear layer trained on images and prompts"
    family = "adapter"
    equation = "logits = s (r relu(W2 relu(W1 x)) + (1-r) x).H',  min mean CE(images) + mean CE(prompts)"
    hyperparameters = {
        "ratio": Hyperparameter(0.2, "share of the adapted vector", high=1.0),
        "reduction": Hyperparameter(4, "width of the embedding over width of the bottleneck", low=1, high=4096),
        **CrossModalLinearProbe.hyperparameters,
        **share_setting(0.5),
        "learning_rate": Hyperparameter(1e-5, "step size at the start of the schedule", high=1000.0),
    }
    presets = {"reference": {**CrossModalLinearProbe.presets["reference"], "weight_decay": 1e-3}}

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        hidden, dim, like = max(1, prepared.dim // self.reduction), prepared.dim, prepared.text.embedding
        return {**super().initial(prepared, generator), "down": linear_start((hidden, dim), generator, like),
                "up": linear_start((dim, hidden), generator, like)}

    def training_head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        linear = super().training_head(prepared, parameters)
        return Bottleneck(parameters["down"], parameters["up"], self.ratio, linear, renormalize=False)
