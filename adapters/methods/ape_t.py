"""APE-T: one residual per class, on chosen channels, shared by its text vector and its cached images."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.heads import Head, Kernel, Linear
from onceclip.adapters.method import Method, zero_shot_head
from onceclip.adapters.methods.ape import CRITERIA, TEXT, Channels
from onceclip.adapters.methods.tip_adapter import SHARPNESS
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, keeping, recipe

# Channels kept, alpha, learning rate, epsilon, epochs: what the authors' configurations hold for ResNet-50.
_PUBLISHED = {
    "caltech101": (900, 1.0, 1e-3, 1e-3, 30), "dtd": (700, 3.0, 1e-3, 1e-3, 20), "eurosat": (900, 1.0, 1e-3, 1e-3, 200),
    "fgvc": (900, 5.0, 1e-3, 1e-3, 30), "food101": (900, 0.8, 1e-4, 1e-3, 30), "imagenet": (500, 2.0, 1e-4, 1e-3, 20),
    "oxford-flowers": (800, 3.0, 1e-3, 1e-3, 60), "oxford-pets": (800, 2.0, 1e-4, 2e-3, 30),
    "stanford-cars": (800, 1.0, 1e-3, 5e-3, 30), "sun397": (800, 1.0, 1e-4, 1e-3, 30),
    "ucf101": (800, 2.0, 1e-3, 2e-3, 30)}


class APET(Method):
    """Class residuals r_c on the best channels and one weight u_i per cached image are trained.

    `logits = s x (W + r)^T + alpha exp(-beta (1 - x (K + r_y)^T)) (L u)`: r starts at zero and is zero on the channels
    that the text-only criterion leaves out, u starts at one; nothing is scaled to unit length again. Training runs
    with `train_alpha` and `train_beta`; afterwards `alpha` and `beta` may be chosen anew. The authors' script finds
    the full criterion of APE in its cache file and takes that, which only runs where both keep equally many channels
    (ImageNet, OxfordPets, SUN397): preset `reference`.

    Source: Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement (Zhu et al., ICCV 2023),
    section 3.3; recipe and presets from the authors' code and configurations.
    """

    name = "ape-t"
    summary = "class residuals on chosen channels, shared by text and cache"
    family = "cache"
    equation = "logits = s x.(W + r)' + alpha exp(-beta (1 - x.(K + r_y)')) (L u),  r on chosen channels"
    hyperparameters = {
        "alpha": Hyperparameter(1.0, "weight of the cache when predicting", high=100.0, retrain=False),
        "beta": Hyperparameter(1.0, "sharpness of the cache when predicting", search=SHARPNESS, high=1000.0,
                               retrain=False),
        "train_alpha": Hyperparameter(1.0, "weight of the cache in training; the authors' smallest", high=1000.0),
        "train_beta": Hyperparameter(1.0, "sharpness of the cache in training", high=1000.0),
        "similarity": Hyperparameter(0.2, "weight of the similarity against the variance", high=1.0),
        "channels": Hyperparameter(800, "trained of every 1,024 channels; the middle of the authors'", low=1,
                                   high=1024),
        "criterion": Hyperparameter(TEXT, "whether channels are chosen by the text alone or by the support too",
                                    choices=CRITERIA),
        **recipe(learning_rate=1e-4, epochs=30, batch_size=256, weight_decay=0.1, epsilon=1e-3),
        **keeping(),
    }
    presets = {
        "reference": {"criterion": "full", "similarity": 0.7, "learning_rate": 3e-4},
        **{name: {"channels": kept, "alpha": alpha, "train_alpha": alpha, "learning_rate": rate, "epsilon": epsilon,
                  "epochs": epochs, "keep": "best"}
           for name, (kept, alpha, rate, epsilon, epochs) in _PUBLISHED.items()},
    }
    mixing = "alpha"

    def prepare(self, task: Task) -> Channels:
        return Channels(task)

    def initial(self, prepared: Channels, generator: torch.Generator) -> dict[str, Tensor]:
        weights, support = prepared.task.text.class_weights, prepared.task.support
        return {"residual": torch.zeros_like(weights), "weight": weights.new_ones(len(support))}

    def terms(self, prepared: Channels, parameters: dict[str, Tensor]) -> tuple[Head, Head]:
        task = prepared.task
        chosen = prepared.best(self.criterion, self.similarity, self.channels)
        mask = task.text.embedding.new_zeros(task.dim).index_fill(0, chosen, 1.0)
        residual, text = mask * parameters["residual"], zero_shot_head(task)
        keys = task.support.keys + residual[task.support.label]
        cache = Kernel(keys, task.support.label, task.classes, self.beta, parameters["weight"])
        return Linear(text.weight + task.logit_scale * residual, text.bias), cache

    def training_head(self, prepared: Channels, parameters: dict[str, Tensor]) -> Head:
        return self.with_values(alpha=self.train_alpha, beta=self.train_beta).head(prepared, parameters)
