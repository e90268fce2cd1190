"""WiSE-FT on a linear head: fine-tuned weights mixed with the zero-shot ones."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.heads import Head, Linear
from onceclip.adapters.method import Method, zero_shot_head
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, recipe


class WiseFT(Method):
    """A linear head fine-tuned from zero-shot, then averaged with it: `W = (1 - alpha) W0 + alpha W1`.

    The logit scale is part of W0 = s w. Of linear heads the average of weights is the average of logits, so the best
    alpha is found exactly. `merge` does the same with any two classifiers. The published script clips gradients and
    warms up over 500 steps, which is more than a few-shot training has; the preset `reference` has its numbers. It can
    also smooth labels (`smoothing`).

    Source: Robust Fine-tuning of Zero-shot Models (Wortsman et al., CVPR 2022), equation 1.
    """

    name = "wise-ft"
    summary = "linear head fine-tuned from zero-shot, mixed with it"
    family = "linear"
    equation = "logits = x.((1-alpha) W0 + alpha W1)' + b,  W1 from W0 by cross-entropy"
    hyperparameters = {
        "alpha": Hyperparameter(0.5, "share of the fine-tuned weights", high=1.0, retrain=False),
        **recipe(learning_rate=1e-2, epochs=300, weight_decay=0.0),
        "smoothing": Hyperparameter(0.0, "share of every label that all classes have alike, in training", high=1.0),
        "clip": Hyperparameter(0.0, "length that a step's gradient is cut to; 0 for none", high=1e6),
    }
    presets = {"reference": {"learning_rate": 1e-3, "weight_decay": 0.1, "epochs": 10, "batch_size": 512,
                             "schedule": "warmup", "warmup": 500, "clip": 1.0}}
    mixing = "alpha"

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        weight, bias = _start(prepared)
        return {"weight": weight, "bias": bias}

    def training_head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return Linear(parameters["weight"], parameters["bias"])

    def terms(self, prepared: Task, parameters: dict[str, Tensor]) -> tuple[Head, Head]:
        weight, bias = _start(prepared)
        return zero_shot_head(prepared), Linear(parameters["weight"] - weight, parameters["bias"] - bias)

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        weight, bias = _start(prepared)
        return Linear(torch.lerp(weight, parameters["weight"], self.alpha),
                      torch.lerp(bias, parameters["bias"], self.alpha))


def _start(task: Task) -> tuple[Tensor, Tensor]:
    """Weight (classes, dim) and bias (classes,) of zero-shot."""
    head = zero_shot_head(task)
    return head.weight, head.weight.new_zeros(task.classes) if head.bias is None else head.bias
