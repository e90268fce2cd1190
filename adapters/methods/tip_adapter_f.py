"""Tip-Adapter-F: the cache's keys become trained parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.heads import Head
from onceclip.adapters.method import Method
from onceclip.adapters.methods.tip_adapter import SHARPNESS, TipAdapter
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, keeping, recipe

_PUBLISHED = {"imagenet": 1.17, "caltech101": 3.0, "dtd": 2.0, "eurosat": 2.0, "fgvc": 5.0, "food101": 1.17,
              "oxford-flowers": 10.0, "oxford-pets": 1.17, "stanford-cars": 3.0, "sun397": 1.17, "ucf101": 3.0}


class TipAdapterF(TipAdapter):
    """Tip-Adapter whose keys are fine-tuned; labels and class weights stay as they are.

    Training runs with `train_alpha` and `train_beta`; afterwards `alpha` and `beta` may be chosen anew on
    validation rows. The keys are never scaled back to unit length, and the last epoch is kept: the published
    script keeps the epoch that is best on the test set, for which `keep=best` takes validation rows instead. The
    presets are its recipe for each data set, with the weight of the cache that was set by hand for it.

    Source: Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification (Zhang et al., ECCV 2022), section
    3.2; optimizer and epsilon from the authors' code.
    """

    name = "tip-adapter-f"
    summary = "Tip-Adapter with fine-tuned keys"
    equation = "as tip-adapter, with K trained by cross-entropy from the support keys"
    hyperparameters = {
        "alpha": Hyperparameter(1.17, "weight of the cache when predicting", high=50.0, retrain=False),
        "beta": Hyperparameter(1.0, "sharpness of the cache when predicting", search=SHARPNESS, high=1000.0,
                               retrain=False),
        "train_alpha": Hyperparameter(1.17, "weight of the cache in training", high=1000.0),
        "train_beta": Hyperparameter(1.0, "sharpness of the cache in training", high=1000.0),
        **recipe(learning_rate=1e-3, epochs=20, batch_size=256, epsilon=1e-4),
        **keeping(),
    }
    presets = {name: {"alpha": alpha, "train_alpha": alpha, "epochs": 100 if name == "eurosat" else 20, "keep": "best"}
               for name, alpha in _PUBLISHED.items()}
    check_left_out = Method.check_left_out  # keys that were trained on an image know it

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        return {"keys": prepared.support.keys}

    def training_head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return self.with_values(alpha=self.train_alpha, beta=self.train_beta).head(prepared, parameters)
