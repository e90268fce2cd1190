"""TaskRes: a trained residual on the class vectors, independent of the text."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.heads import Head
from onceclip.adapters.method import Hyperparameter, Method
from onceclip.adapters.prototypes import base_settings, base_vectors, cosine_head
from onceclip.adapters.recipe import recipe
from onceclip.adapters.task import Task


class TaskRes(Method):
    """Class vectors `t_c + alpha r_c` with a trained residual r, zero at the start, compared by cosine.

    Adam with coupled decay, so that classes without evidence stay at their text. The paper trains 100 epochs up to 4
    shots and 200 from 8 on, with a tenth of the step size on ImageNet.

    Source: Task Residual for Tuning Vision-Language Models (Yu et al., CVPR 2023); optimiser and schedule from
    the authors' code. The "enhanced base", a text projection trained first, is not part of it.

    Example:
        >>> onceclip.TaskRes(alpha=1.0).fit(task).logits(embeddings).shape
        torch.Size([5, 4])
    """

    name = "taskres"
    summary = "trained residual on the class vectors"
    family = "residual"
    source = "Yu et al., Task Residual for Tuning Vision-Language Models, CVPR 2023"
    equation = "logits_c = s x.unit(t_c + alpha r_c),  r from 0 by cross-entropy"
    hyperparameters = {
        "alpha": Hyperparameter(0.5, "weight of the residual", search=(0.25, 0.5, 1.0), high=100.0, retrain=True),
        **base_settings(length=10.0),
        **recipe(learning_rate=2e-3, epochs=100, batch_size=256, weight_decay=5e-4, optimiser="adam",
                 schedule="dassl"),
    }
    presets = {"reference": {"base": "raw"}, "reference-8-shots": {"base": "raw", "epochs": 200},
               "reference-imagenet": {"base": "raw", "learning_rate": 2e-4}}
    trained = True

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        return {"residual": torch.zeros_like(prepared.text.class_weights)}

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        base = base_vectors(prepared, self.base, self.length)
        return cosine_head(prepared, base + self.alpha * parameters["residual"])
