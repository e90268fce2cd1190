"""Tip-Adapter: a key-value cache of the support images, without training."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.heads import Head, Kernel
from onceclip.adapters.method import Method, require_two_images, zero_shot_head
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

# Each is twice the one before the last: with one exponential comes that of the double (heads/kernel.py).
SHARPNESS = (0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0)


class TipAdapter(Method):
    """Zero-shot logits plus a sum over the support images that look alike.

    `logits = s x W^T + alpha exp(-beta (1 - x K^T)) L`; the keys K are the unit means of each image's raw
    views, L the one-hot labels.

    Source: Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification (Zhang et al., ECCV 2022), equations
    4 to 6; defaults alpha = 1, beta = 5.5 from there.
    """

    name = "tip-adapter"
    summary = "training-free cache of the support images"
    family = "cache"
    equation = "logits = s x.W' + alpha exp(-beta (1 - x.K')) L"
    hyperparameters = {
        "alpha": Hyperparameter(1.0, "weight of the cache", high=50.0, retrain=False),
        "beta": Hyperparameter(5.5, "sharpness of the cache", search=SHARPNESS, high=1000.0, retrain=False),
    }
    mixing = "alpha"
    weighs = True

    def terms(self, prepared: Task, parameters: dict[str, Tensor]) -> tuple[Head, Head]:
        support = prepared.support
        keys = parameters.get("keys", support.keys)
        return zero_shot_head(prepared), Kernel(keys, support.label, prepared.classes, self.beta, support.weight)

    def check_left_out(self, task: Task) -> None:
        require_two_images(task)

    def leave_one_out(self, prepared: Task) -> tuple[Tensor, Tensor]:
        support = prepared.support
        zero_shot, cache = self.terms(prepared, {})
        own = torch.exp(self.beta * ((support.unit * support.keys).sum(dim=1) - 1))
        without = cache(support.unit).scatter_add(1, support.label.unsqueeze(1), -own.unsqueeze(1))
        return zero_shot(support.unit), without
