"""ZS-LP: a linear probe on cosines that starts from the zero-shot class vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.heads import Head
from onceclip.adapters.method import Hyperparameter, Method
from onceclip.adapters.prototypes import base_settings, base_vectors, cosine_head
from onceclip.adapters.recipe import recipe
from onceclip.adapters.starts import kaiming_normal
from onceclip.adapters.task import Task


class ZeroShotLinearProbe(Method):
    """One trained vector per class, compared with images by its cosine; training starts at zero-shot.

    `logits = s x . unit(p_c)`, `p_c = t_c` at the start. Views take turns over epochs: the published loader shuffles
    all views and then takes as many rows as there are images, which sees as much. The preset `reference` starts from
    raw prompt vectors and needs raw ones in the store: where an import holds unit vectors, the published step size is
    far too large for them, and the result falls below zero-shot. With `start=random`, the authors' comparison, the
    vectors start as Kaiming-normal noise and the text has no part in it.

    Source: A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models (Silva-Rodriguez et al., CVPR
    2024); step size, momentum, epochs and schedule from the authors' code.

    Example:
        >>> onceclip.ZeroShotLinearProbe(epochs=50).fit(task).logits(embeddings).shape
        torch.Size([5, 4])
    """

    name = "zs-lp"
    summary = "linear probe on cosines, started at zero-shot"
    family = "linear"
    source = ("Silva-Rodriguez et al., A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models, "
              "CVPR 2024")
    equation = "logits_c = s x.unit(p_c),  p_c from t_c by cross-entropy"
    hyperparameters = {
        "start": Hyperparameter("text", "start values of the class vectors: those that `base` names, or random ones",
                                choices=("text", "random"), retrain=True),
        **base_settings(length=10.0),
        **recipe(learning_rate=0.1, epochs=300, batch_size=256, weight_decay=0.0, optimiser="sgd", schedule="dassl"),
    }
    presets = {"reference": {"base": "raw"}}
    trained = True

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        vectors = base_vectors(prepared, self.base, self.length)
        return {"prototype": kaiming_normal((prepared.classes, prepared.dim), generator, vectors)
                if self.start == "random" else vectors}

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return cosine_head(prepared, parameters["prototype"])
