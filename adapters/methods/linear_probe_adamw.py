"""Linear probe by AdamW: the protocol of CLIP_benchmark."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.heads import Head, Linear
from onceclip.adapters.method import Method
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, linear_start, recipe


class LinearProbeAdamW(Method):
    """A linear layer with bias on unit embeddings, without logit scale and without text.

    The decay is chosen on validation rows, or zero. CLIP_benchmark compares 97 values of it in a search by halves whose
    first 7 are tried here, and the rest with `--search halves`, then trains anew on train and val together; here val
    rows never become support. It starts from random values, here from zero, so that neither seed nor order of classes
    matters. Its 20 epochs are 20 steps where the support fits one batch, too few for unequal shots: hence 200. The
    preset `reference` has its values.

    Source: CLIP_benchmark (Cherti et al., LAION-AI, 2022), `metrics/linear_probe.py`; step size, epochs and batch size
    from its README.
    """

    name = "linear-probe-adamw"
    summary = "linear layer by AdamW, as CLIP_benchmark trains it"
    family = "linear"
    equation = "logits = x.W' + b,  mean CE"
    hyperparameters = {
        "start": Hyperparameter("zero", "start values of the weights", choices=("zero", "random")),
        **recipe(learning_rate=0.1, epochs=200, batch_size=512, weight_decay=0.0),
        "weight_decay": Hyperparameter(0.0, "decay of the parameters", search=(0.0, 1e-6, 2.154e-5, 4.642e-4, 0.01,
                                       0.2154, 4.642), high=100.0),
    }
    presets = {"reference": {"start": "random", "epochs": 20}, "command-line": {"start": "random", "epochs": 10}}
    needs_text = False

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        like = prepared.text.embedding
        shape = prepared.classes, prepared.dim
        weight = linear_start(shape, generator, like) if self.start == "random" else like.new_zeros(shape)
        return {"weight": weight, "bias": like.new_zeros(prepared.classes)}

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return Linear(parameters["weight"], parameters["bias"])
