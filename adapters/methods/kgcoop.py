"""KgCoOp: learned prompts that stay near the written ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onceclip.adapters.method import class_head
from onceclip.adapters.methods.coop import CONTEXT, PAPER, TRAINING, CoOp
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter


class KgCoOp(CoOp):
    """CoOp with a penalty on the distance of its class vectors from those of the text set.

    `loss = CE + weight mean_c (1 - w_c . w_0c)`, which is half the mean of `|w_c - w_0c|^2`. The written vectors are
    the class vectors of the run's text set.

    Source: Visual-Language Prompt Tuning with Knowledge-Guided Context Optimization (Yao et al., CVPR 2023), equation
    5; the cosine is the authors' code's.
    """

    name = "kgcoop"
    summary = "CoOp that stays near the written prompts"
    equation = "logits = s x.unit(tower(v, name))'; loss = CE + weight mean(1 - w.w0)"
    hyperparameters = {
        **CONTEXT, **TRAINING,
        "weight": Hyperparameter(8.0, "weight of the distance from the written prompts", high=1e6),
    }
    presets = {"paper": {**PAPER, "words": "a photo of a", "weight": 8.0, "epochs": 100, "batch_size": 128}}
    needs_text = True

    def loss(self, prepared: Task, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
             generator: torch.Generator) -> Tensor:
        vectors = self.vectors(prepared, parameters)
        apart = 1 - (vectors * unit(prepared.text.class_weights)).sum(dim=1)
        return cross_entropy(class_head(prepared, vectors)(rows), label) + self.weight * apart.mean()
